"""Compiled and exported models, and what an idle site costs: all that the type checks of the test run would distort."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attach_cases import dictionary, inputs_for, logits, tiny

import hfsae.hooks
from hfsae.attach import attach
from hfsae.errors import InvalidValue

# These tests run again in a process without type checks, which cannot be traced and take time.
CHECKED = hasattr(hfsae.hooks.capture, "__wrapped__")
unchecked = pytest.mark.skipif(CHECKED, reason="runs in a process without type checks")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@unchecked
def test_a_model_compiled_before_attaching_follows_every_step():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    bare = logits(compiled, inputs)
    att = attach(compiled, 1, sae=dictionary())
    assert torch.equal(logits(compiled, inputs), bare)
    for edit in (att.splice(), att.ablate(range(64)), att.steer(3, 5.0) | att.scale(range(64), 2.0)):
        with edit:
            expected = logits(model, inputs)
            torch.testing.assert_close(logits(compiled, inputs), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(logits(compiled, inputs), bare)
    att.detach()
    assert torch.equal(logits(compiled, inputs), bare)


@unchecked
def test_edits_of_one_structure_share_one_graph():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    torch.compiler.reset()
    graphs = []

    def backend(graph, _examples):
        graphs.append(graph)
        return graph.forward

    with attach(model, 1, sae=dictionary()) as att:
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for feature in range(12):
            with att.set(feature, 0.5 * feature) as edit:
                expected = logits(model, inputs)
                torch.testing.assert_close(logits(compiled, inputs), expected, atol=1e-5, rtol=1e-5)
            assert edit.tokens_met == 20
    assert len(graphs) <= 2


def steered_everywhere(att):
    """Return an edit of as many parts as there are ways to select tokens."""
    ways = (
        {"positions": [0, 4, 11]},
        {"positions": -1},
        {"positions": slice(2, -2)},
        {"phase": "prompt"},
        {"rows": [1]},
    )
    edit = att.steer(3, torch.tensor([2.0, 9.0]), phase="generated")
    for feature, where in enumerate(ways, start=5):
        edit |= att.steer(feature, 5.0, **where)
    return edit


@unchecked
@pytest.mark.filterwarnings("ignore::hfsae.HfsaeWarning")  # a lone forward generates nothing
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compiled_forwards_count_real_tokens(family):
    model, inputs = tiny(family), inputs_for(family)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :3] = 0
    torch.compiler.reset()
    with attach(model, 1, sae=dictionary()) as att, steered_everywhere(att):
        expected = logits(model, inputs)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(logits(compiled, inputs), expected, atol=1e-5, rtol=1e-5)


@unchecked
def test_values_for_another_number_of_rows_are_refused_in_compiled_forwards_too():
    model, inputs = tiny("gpt2"), inputs_for("gpt2", batch=4)
    torch.compiler.reset()
    with attach(model, 1, sae=dictionary()) as att, att.steer(3, torch.tensor([1.0, 2.0])):
        with pytest.raises(InvalidValue, match="2 rows, the batch has 4"):
            logits(torch.compile(model, backend="eager"), inputs)
        logits(model, inputs_for("gpt2"))


@unchecked
def test_generating_with_a_compiled_decoder_selects_the_same_tokens():
    from transformers import CompileConfig

    model, ids = tiny("llama"), inputs_for("llama")["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    graphs = []

    def backend(graph, _examples):
        graphs.append(graph)
        return graph.forward

    compiling = CompileConfig(backend=backend, mode=None)
    compiling._compile_all_devices = True  # transformers compiles on accelerators alone
    options = {"attention_mask": mask, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with attach(model, 1, sae=dictionary()) as att, steered_everywhere(att):
        expected = model.generate(ids, **options)
        torch.compiler.reset()
        found = model.generate(ids, cache_implementation="static", compile_config=compiling, **options)
    assert torch.equal(found, expected)
    assert graphs


@unchecked
def test_rows_are_prompts_in_compiled_models_that_search_with_beams():
    model, ids = tiny("llama"), inputs_for("llama")["input_ids"]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False, "num_beams": 3}
    with attach(model, 1, sae=dictionary()) as att, att.steer(3, 9.0, rows=[1]):
        expected = model.generate(ids, **options)
        torch.compiler.reset()
        model.compile(backend="eager")
        assert torch.equal(model.generate(ids, **options), expected)


@unchecked
def test_an_exported_model_keeps_its_splice():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    with attach(model, 1, sae=dictionary()) as att:
        att.splice().apply()
        expected = logits(model, inputs)
        exported = torch.export.export(model, (), {**inputs, "use_cache": False}, strict=False)
        torch.testing.assert_close(exported.module()(**inputs, use_cache=False).logits, expected)


@unchecked
def test_an_idle_site_makes_no_more_than_eight_python_calls_beyond_those_of_a_hook():
    # What an idle site costs is a few microseconds of interpreter: calls tell of it, and no busy machine blurs them.
    hooked, sited, x = torch.nn.Identity(), torch.nn.Identity(), torch.randn(1, 128, 32)
    hooked.register_forward_hook(lambda module, inputs, output: None)

    def calls(module):
        seen = []
        sys.setprofile(lambda frame, event, _: seen.append(frame.f_code.co_name) if event == "call" else None)
        try:
            module(x)
        finally:
            sys.setprofile(None)
        return len(seen)

    with attach(torch.nn.ModuleDict({"site": sited}), module="site", sae=dictionary()):
        assert calls(sited) - calls(hooked) <= 8


@pytest.mark.skipif(not CHECKED, reason="this is that process")
def test_all_this_in_a_process_without_type_checks():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", __file__]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "9 passed" in done.stdout
