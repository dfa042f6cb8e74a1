"""Attachments inside nnsight traces, wrapped before or after."""

import pytest
import torch
from attach_cases import dictionary, inputs_for, logits, tiny, tiny_tokenizer

from hfsae.attach import attach
from hfsae.errors import Unsupported

nnsight = pytest.importorskip("nnsight")
pytestmark = pytest.mark.filterwarnings("ignore")


def wrapped(order, sae, **options):
    """Return an nnsight view of a tiny model with ``sae`` on layer 1, attached before or after wrapping."""
    model = tiny("gpt2")
    if order == "attach first":
        att = attach(model, 1, sae=sae, **options)
        return model, nnsight.NNsight(model), att
    lm = nnsight.NNsight(model)
    return model, lm, attach(lm, 1, sae=sae, **options)


IDS = list(range(64))
ORDERS = pytest.mark.parametrize("order", ["attach first", "wrap first"])


@ORDERS
def test_a_trace_reads_and_edits_features(order):
    sae, inputs = dictionary(), inputs_for("gpt2")
    model, lm, att = wrapped(order, sae)
    bare = logits(model, inputs)
    with lm.trace(**inputs):
        raw = lm.transformer.h[1].output.save()
        read = lm.transformer.h[1].sae.input.save()
        f = lm.transformer.h[1].sae.features.output.save()
        written = lm.transformer.h[1].sae.output.save()
        following = lm.transformer.h[2].input.save()
        idle = lm.output.logits.save()
    assert f.shape == (2, 10, 96)
    assert torch.equal(idle, bare)
    raw = raw[0] if isinstance(raw, tuple) else raw
    assert torch.equal(raw, read)
    assert torch.equal(written, following)
    with att.ablate(IDS):
        expected = logits(model, inputs)
    assert not torch.equal(expected, bare)
    with lm.trace(**inputs):
        lm.transformer.h[1].sae.features.output[..., IDS] = 0
        edited = lm.output.logits.save()
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-5)
    with lm.trace(**inputs):
        lm.transformer.h[1].sae.features.output = lm.transformer.h[1].sae.features.output * 1.0
        assigned = lm.output.logits.save()
    assert torch.equal(assigned, bare)
    with att.splice():
        spliced = logits(model, inputs)
        with lm.trace(**inputs):
            traced = lm.output.logits.save()
    assert torch.equal(traced, spliced)


@ORDERS
def test_another_dictionary_attached_later_is_the_one_that_is_read(order):
    inputs = inputs_for("gpt2")
    _model, lm, att = wrapped(order, dictionary())
    with lm.trace(**inputs):
        lm.transformer.h[1].sae.features.output.save()
    att.detach()
    assert not hasattr(lm.transformer.h[1], "sae")
    with attach(lm, 1, sae=dictionary(d_sae=64)):
        with lm.trace(**inputs):
            f = lm.transformer.h[1].sae.features.output.save()
        assert f.shape[-1] == 64


def test_one_dictionary_on_two_layers_is_two_places():
    inputs, sae = inputs_for("gpt2"), dictionary()
    _model, lm, _att = wrapped("wrap first", sae)
    attach(lm, 2, sae=sae)
    with lm.trace(**inputs):
        one = lm.transformer.h[1].sae.features.output.save()
        two = lm.transformer.h[2].sae.features.output.save()
    assert not torch.equal(one, two)


def test_gradients_reach_the_features():
    inputs, sae = inputs_for("gpt2"), dictionary()
    model, lm, _att = wrapped("wrap first", sae, error="detach")
    model.requires_grad_(True)
    with lm.trace(**inputs):
        f = lm.transformer.h[1].sae.features.output
        loss = lm.output.logits.sum()
        with loss.backward():
            gradient = f.grad.save()
    assert gradient.shape == (2, 10, 96)
    assert gradient.abs().sum() > 0


def test_generate_with_iteration_sees_each_step():
    inputs, sae = inputs_for("gpt2", batch=1), dictionary()
    model = tiny("gpt2")
    lm = nnsight.TransformersModel(model, tokenizer=tiny_tokenizer())
    options = {"max_new_tokens": 4, "do_sample": False}
    with attach(lm, 1, sae=sae) as att, att.ablate(IDS):
        expected = model.generate(**inputs, **options)
        with lm.generate(inputs["input_ids"], **options) as tracer:
            steps = nnsight.save([])
            for _ in tracer.iter[:4]:
                steps.append(lm.transformer.h[1].sae.features.output)
            ids = tracer.result.save()
    assert [step.shape[1] for step in steps] == [10, 1, 1, 1]
    assert all(not step[..., IDS].any() for step in steps)
    assert torch.equal(ids, expected)


def test_scan_leaves_the_dictionary_on_its_device():
    inputs, sae = inputs_for("gpt2"), dictionary()
    weights = sae.W_enc.clone()
    lm = nnsight.TransformersModel(tiny("gpt2"), tokenizer=tiny_tokenizer())
    attach(lm, 1, sae=sae)
    with lm.scan(**inputs):
        shape = nnsight.save(lm.transformer.h[1].sae.features.output.shape)
    assert tuple(shape) == (2, 10, 96)
    assert sae.W_enc.device.type == "cpu"
    assert torch.equal(sae.W_enc, weights)


def test_a_model_that_was_only_declared_is_loaded_first(tmp_path):
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lm = nnsight.TransformersModel(str(tmp_path), task="text-generation", tokenizer=tiny_tokenizer())
    assert not lm.dispatched
    with attach(lm, 1, sae=dictionary(), force=True) as att:
        assert lm.dispatched
        with att.splice():
            with lm.trace(**inputs):
                traced = lm.output.logits.save()
            with attach(model, 1, sae=att.dictionary) as other, other.splice():
                torch.testing.assert_close(traced, logits(model, inputs))


@ORDERS
def test_remote_runs_are_refused_while_something_is_attached(order):
    model, sae = tiny("gpt2"), dictionary()
    att = attach(model, 1, sae=sae) if order == "attach first" else None
    lm = nnsight.TransformersModel(model, tokenizer=tiny_tokenizer())
    att = att or attach(lm, 1, sae=sae)
    for remote in (True, "local"):
        with pytest.raises(Unsupported, match="remote=True"), lm.trace(**inputs_for("gpt2"), remote=remote):
            lm.output.save()
    att.detach()
    with lm.trace(**inputs_for("gpt2"), remote="local"):
        found = lm.output.logits.save()
    assert torch.equal(found, logits(model, inputs_for("gpt2")))


def test_remote_runs_are_refused_when_nnsight_came_after_the_dictionary(monkeypatch):
    from nnsight.modeling.mixins.remotable import Remotable

    model = tiny("gpt2")
    att = attach(model, 1, sae=dictionary())
    lm = nnsight.TransformersModel(model, tokenizer=tiny_tokenizer())
    monkeypatch.setattr(Remotable, "_remote_backend", Remotable._remote_backend.__wrapped__)
    with att.steer(3, 1.0):
        model(**inputs_for("gpt2"))
        with pytest.raises(Unsupported, match="remote=True"), lm.trace(**inputs_for("gpt2"), remote=True):
            lm.output.save()


@ORDERS
def test_the_older_language_model_serves_as_well(order):
    model, inputs, sae = tiny("gpt2"), inputs_for("gpt2"), dictionary()
    att = attach(model, 1, sae=sae) if order == "attach first" else None
    lm = nnsight.LanguageModel(model, tokenizer=tiny_tokenizer())
    att = att or attach(lm, 1, sae=sae)
    with att.ablate(IDS):
        expected = logits(model, inputs)
    with lm.trace(inputs["input_ids"]):
        lm.transformer.h[1].sae.features.output[..., IDS] = 0
        edited = lm.output.logits.save()
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-5)


@ORDERS
def test_invokes_share_one_forward_and_keep_their_own_edits(order):
    inputs = inputs_for("gpt2")
    model, _lm, att = wrapped(order, dictionary())
    lm, ids = nnsight.TransformersModel(model, tokenizer=tiny_tokenizer()), inputs["input_ids"]
    with att.ablate(IDS):
        expected = logits(model, {"input_ids": ids[1:]})
    with lm.trace() as tracer:
        with tracer.invoke(ids[:1]):
            untouched = lm.output.logits.save()
        with tracer.invoke(ids[1:]):
            lm.transformer.h[1].sae.features.output[..., IDS] = 0
            edited = lm.output.logits.save()
    torch.testing.assert_close(untouched, logits(model, {"input_ids": ids[:1]}), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-5)


@ORDERS
def test_standing_edits_of_nnsight_reach_the_features(order):
    inputs = inputs_for("gpt2")
    model, lm, att = wrapped(order, dictionary())
    with att.ablate(IDS):
        expected = logits(model, inputs)
    with lm.edit() as (_tracer, edited):
        edited.transformer.h[1].sae.features.output[..., IDS] = 0
    with edited.trace(**inputs):
        found = edited.output.logits.save()
    with lm.trace(**inputs):
        plain = lm.output.logits.save()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(plain, logits(model, inputs))


@ORDERS
def test_the_cache_of_a_trace_holds_the_features(order):
    inputs, sae = inputs_for("gpt2"), dictionary()
    _model, lm, _att = wrapped(order, sae)
    with lm.trace(**inputs):
        f = lm.transformer.h[1].sae.features.output.save()
    with lm.trace(**inputs) as tracer:
        cache = tracer.cache(modules=[lm.transformer.h[1].sae.features]).save()
    assert torch.equal(cache["model.transformer.h.1.sae.features"].output, f)
