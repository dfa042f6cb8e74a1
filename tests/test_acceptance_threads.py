"""Edits of different threads and contexts never mix."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attach_cases import dictionary, inputs_for, logits, tiny

from hfsae.attach import attach
from hfsae.errors import InvalidValue


def generate(model, ids):
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)


def test_threads_with_different_edits_never_mix():
    model, ids = tiny("gpt2"), inputs_for("gpt2")["input_ids"]
    with attach(model, 1, sae=dictionary()) as att:
        edits = [lambda s=s: att.steer(s, 4.0 + s, positions=[s, 11]) for s in range(5)]

        def run(make):
            results = []
            for _ in range(3):
                with make():
                    results.append(generate(model, ids))
            return results

        serial = [run(make) for make in edits]
        with ThreadPoolExecutor(5) as pool:
            together = list(pool.map(run, edits))
    for one, other in zip(serial, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_threads_keep_their_own_masks_inside_one_forward():
    model, ids = tiny("gpt2"), inputs_for("gpt2", batch=1)["input_ids"]
    barrier = threading.Barrier(2, timeout=20)
    masks = [torch.ones(1, 10, dtype=torch.long), (torch.arange(10) >= 4).long()[None]]
    wait = None

    def run(mask):
        with att.steer(3, 6.0, positions=[2, 3]), torch.no_grad():
            return model(ids, attention_mask=mask).logits

    with attach(model, 1, sae=dictionary()) as att:
        serial = [run(mask) for mask in masks]
        wait = model.transformer.h[0].register_forward_pre_hook(lambda *_: (barrier.wait(), None)[1])
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(run, masks))
        wait.remove()
    assert all(torch.equal(a, b) for a, b in zip(serial, together, strict=True))


@pytest.mark.parametrize("inside", [True, False])
def test_a_bound_function_carries_its_edit_into_another_thread(inside):
    model, ids = tiny("gpt2"), inputs_for("gpt2")["input_ids"]
    results = []
    with attach(model, 1, sae=dictionary()) as att:
        with att.steer(3, 6.0):
            expected = generate(model, ids)
        edit = att.steer(3, 6.0)
        bound = edit.bind(lambda: results.append(generate(model, ids)))
        thread = threading.Thread(target=bound)
        if inside:
            with edit:
                thread.start()
                thread.join()
                bound()
        else:
            thread.start()
            thread.join()
        assert not torch.equal(generate(model, ids), expected)
    assert all(torch.equal(result, expected) for result in results)


def test_an_edit_left_in_another_context_is_closed_everywhere():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    with attach(model, 1, sae=dictionary()) as att:
        edit = att.steer(3, 6.0)
        one, other = contextvars.copy_context(), contextvars.copy_context()
        one.run(edit.__enter__)
        assert not torch.equal(one.run(logits, model, inputs), bare)
        assert torch.equal(other.run(logits, model, inputs), bare)
        other.run(edit.__exit__, None, None, None)
        assert torch.equal(one.run(logits, model, inputs), bare)
        assert torch.equal(logits(model, inputs), bare)


def test_edits_may_be_left_in_any_order():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    with attach(model, 1, sae=dictionary()) as att:
        first, second = att.steer(3, 6.0), att.ablate(5)
        with second:
            expected = logits(model, inputs)
        first.__enter__()
        second.__enter__()
        with pytest.raises(InvalidValue, match="already open"):
            first.__enter__()
        model(**inputs)
        first.__exit__(None, None, None)
        torch.testing.assert_close(logits(model, inputs), expected)
        second.__exit__(None, None, None)
        assert torch.equal(logits(model, inputs), bare)


def test_an_applied_edit_reaches_every_thread_until_removed():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    with attach(model, 1, sae=dictionary()) as att:
        with att.steer(3, 6.0):
            expected = logits(model, inputs)
        edit = att.steer(3, 6.0).apply().apply()
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(logits, model, inputs).result(), expected)
        edit.remove()
        assert torch.equal(logits(model, inputs), bare)
        att.steer(3, 6.0).apply()
        att.clear()
        assert torch.equal(logits(model, inputs), bare)


def test_async_tasks_keep_their_own_edits():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")

    async def task(strength):
        with att.steer(3, strength):
            await asyncio.sleep(0)
            return logits(model, inputs), await asyncio.to_thread(logits, model, inputs)

    async def tasks():
        return await asyncio.gather(*(task(float(s)) for s in range(4)))

    with attach(model, 1, sae=dictionary()) as att:
        for strength, (here, there) in enumerate(asyncio.run(tasks())):
            with att.steer(3, float(strength)):
                expected = logits(model, inputs)
            assert torch.equal(here, expected)
            assert torch.equal(there, expected)
