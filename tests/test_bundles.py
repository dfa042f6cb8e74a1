"""Edits as JSON, models saved with their dictionaries, steering baked into a bias."""

import json

import pytest
import torch
from attach_cases import dictionary, inputs_for, logits, tiny

from hfsae.attach import attach, attachments
from hfsae.attaching.edits import sweep
from hfsae.baking import bake
from hfsae.bundles import load_attached, load_edits, save_attached, save_edits
from hfsae.errors import CheckpointError, CheckpointNotFound, Mismatch, Unsupported


def test_edits_survive_json(tmp_path):
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    with attach(model, 1, sae=dictionary()) as att:
        edits = [
            att.ablate([3, 5], to="mean", positions=[0, -1]),
            att.clamp(4, max=0.1, when=list(range(40, 60))) | att.splice(positions=slice(2, None)),
            sweep([att.steer(3, 2.0, unit="max"), None]),
            att.steer(torch.ones(32), torch.tensor([1.0, 2.0])),
            att.patch([1, 2], torch.rand(1, 4, 2)),
            att.set(3, [0.5], only_if_active=True, rows=[1]) | att.scale([1, 2], [0.5, 2.0], phase="prompt"),
        ]
        path = save_edits(tmp_path / "edits.json", *edits)
        for edit, loaded in zip(edits, load_edits(path, model), strict=True):
            assert repr(loaded) == repr(edit)
            with edit:
                expected = logits(model, inputs)
            with loaded:
                assert torch.equal(logits(model, inputs), expected)
        with pytest.raises(Unsupported, match="function"):
            save_edits(path, att.replace(torch.zeros_like))
    with pytest.raises(Mismatch, match="Attached: nothing"):
        load_edits(path, model)
    with attach(model, 1, sae=dictionary(seed=9)), pytest.raises(Mismatch, match="force=True"):
        load_edits(path, model)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="no JSON"):
        load_edits(path, model)
    path.write_text(json.dumps({"version": 2}))
    with pytest.raises(CheckpointError, match="version 2"):
        load_edits(path, model)
    with pytest.raises(CheckpointNotFound, match="does not exist"):
        load_edits(tmp_path / "none.json", model)


def test_a_saved_model_brings_its_dictionaries_and_edits(tmp_path):
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    first = attach(model, 1, sae=dictionary("topk"))
    second = attach(model, module="transformer.h.2.mlp", sae=dictionary(seed=5), name="other")
    (first.steer(3, 2.0) | second.ablate(5)).apply()
    expected = logits(model, inputs)
    save_attached(model, tmp_path)
    loaded = load_attached(tmp_path).eval()
    assert [str(att.site) for att in attachments(loaded)] == [str(first.site), str(second.site)]
    assert torch.equal(logits(loaded, inputs), expected)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path).eval(), inputs), bare)


def test_trained_dictionaries_are_saved_beside_a_stock_model(tmp_path):
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    names = list(model.state_dict())
    att = attach(model, 1, sae=dictionary().requires_grad_(True), trainable=True)
    att.splice().apply()
    expected = logits(model, inputs)
    save_attached(model, tmp_path)
    stock, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert list(stock.state_dict()) == names
    loaded = load_attached(tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), expected)
    assert any("sae.dictionary.W_dec" in name for name, _ in loaded.named_parameters())


def test_constant_steering_is_baked_into_a_bias():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    att = attach(model, 1, sae=dictionary())
    with att.steer([3, 5], [2.0, 1.0]) as edit:
        expected = logits(model, inputs)
    assert bake(model, edit) == ["transformer.h.1.mlp.c_proj.bias"]
    att.detach()
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-5)


def test_what_is_no_constant_or_has_no_bias_is_not_baked():
    model, inputs = tiny("llama"), inputs_for("llama")
    bare = logits(model, inputs)
    with attach(model, 1, sae=dictionary()) as att:
        with pytest.raises(Unsupported, match="No bias"):
            bake(model, att.steer(3, 2.0))
        for edit in (att.ablate(3), att.steer(3, 2.0, positions=[1]), att.steer(3, torch.tensor([1.0, 2.0]))):
            with pytest.raises(Unsupported, match="not the same for every token"):
                bake(model, edit)
    assert torch.equal(logits(model, inputs), bare)
