import json
import subprocess
import sys
import warnings

import pytest
import torch

from hfsae.attach import attach, attachments, detach_all
from hfsae.check import check
from hfsae.default import default_texts, load_default
from hfsae.dictionary import SAE
from hfsae.errors import HfsaeWarning, InvalidValue
from hfsae.hooks import capture
from hfsae.sae.config import SAEConfig
from hfsae.sites import resolve

D, LAYER = 32, 1


@pytest.fixture
def texts():
    return list(torch.randint(3, 96, (8, 24), generator=torch.Generator().manual_seed(5)))


@pytest.fixture
def fitting(tiny_gpt2, texts):
    """A dictionary that stands for layer 1 alone: the mean there and both signs of the principal directions."""
    x = capture(tiny_gpt2, [resolve(tiny_gpt2, LAYER)], input_ids=torch.stack(texts))[0].flatten(0, 1)
    directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:12]
    sae = SAE(SAEConfig(architecture="standard", d_in=D, d_sae=24, site="resid_post", layer=LAYER))
    rows = torch.cat([directions, -directions])
    sae.load_state_dict({"W_enc": rows, "W_dec": rows, "b_enc": torch.zeros(24), "b_dec": x.mean(0)})
    return sae.eval()


def moved(sae, **fields):
    config = SAEConfig.from_dict(sae.config.to_dict() | fields)
    other = SAE(config)
    other.load_state_dict(sae.state_dict())
    return other.eval()


def test_dictionary_at_its_own_place_fits(tiny_gpt2, fitting, texts):
    fit = check(tiny_gpt2, fitting, texts)
    assert fit.ok, str(fit)
    assert str(fit).endswith("It fits.")


def test_model_is_left_as_it_was(tiny_gpt2, fitting, texts):
    check(tiny_gpt2, fitting, texts)
    assert attachments(tiny_gpt2) == []


def test_wrong_layer_is_named_with_the_right_one(tiny_gpt2, fitting, texts):
    fit = check(tiny_gpt2, moved(fitting, layer=2), texts, recorded={"fvu": 0.1})
    assert not fit.ok
    assert "FVU is" in fit.problems[0]
    assert "wrong site or layer" in fit.problems[-1]


def test_wrong_scale_is_named(tiny_gpt2, fitting, texts):
    x = capture(tiny_gpt2, [resolve(tiny_gpt2, LAYER)], input_ids=torch.stack(texts))[0]
    scale = D**0.5 / float(x.flatten(0, 1).norm(dim=-1).mean())
    scaled = moved(fitting)
    scaled.b_dec.data *= scale
    fit = check(tiny_gpt2, scaled, texts, recorded={"fvu": 0.0}, tolerance=0.0)
    assert any("wrong normalisation" in text for text in fit.problems)


def test_other_base_model_is_named(tiny_gpt2, fitting, texts):
    tiny_gpt2.config.name_or_path = "me/tuned"
    fit = check(tiny_gpt2, moved(fitting, base_model="me/base"), texts)
    assert fit.problems == (
        "It was trained on 'me/base'; this model is 'me/tuned'. A fine-tuned variant is another model.",
    )


def test_figures_beside_the_dictionary_are_compared_with(tiny_gpt2, fitting, texts, tmp_path):
    folder = fitting.save_pretrained(tmp_path / "saved")
    (folder / "eval.json").write_text(json.dumps({"fvu": 0.001, "l0": 500.0, "recovered_zero": 5.0}))
    fit = check(tiny_gpt2, SAE.from_pretrained(folder), texts, tolerance=0.0)
    assert fit.problems == check(tiny_gpt2, folder, texts, tolerance=0.0).problems
    assert [text.split(" is ")[0] for text in fit.problems[:3]] == ["FVU", "CE loss recovered", "L0"]


def test_negative_tolerance_is_refused(tiny_gpt2, fitting, texts):
    with pytest.raises(InvalidValue, match=r"tolerance=-1.0 is negative"):
        check(tiny_gpt2, fitting, texts, tolerance=-1.0)


def test_wrong_layer_is_named_with_nothing_recorded_to_compare_with():
    model, tokenizer = load_default()
    at_two, at_one = (attach(model, layer=layer).dictionary for layer in (2, 1))
    for sae in (at_two, at_one):
        assert check(model, moved(sae), default_texts("validation"), tokenizer=tokenizer, max_tokens=1000).ok
    fit = check(model, moved(at_two, layer=1), default_texts("validation"), tokenizer=tokenizer, max_tokens=1000)
    assert "It fits at resid_post.layer_2" in fit.problems[0]


def test_command_ends_with_1_where_it_does_not_fit(tmp_path):
    model, _ = load_default()
    folder = moved(attach(model, layer=2).dictionary, layer=1).save_pretrained(tmp_path)
    command = [sys.executable, "-m", "hfsae", "check", str(folder), "--max-tokens", "500"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "It does not fit:\n  - It fits at resid_post.layer_2" in done.stdout


def test_attach_warns_of_a_misfit_when_asked_to(tmp_path):
    model, _ = load_default()
    sae, texts = attach(model, layer=2).dictionary, default_texts("validation")[:2]
    detach_all(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(model, sae=moved(sae), check=texts).detach()
    with pytest.warns(HfsaeWarning, match="It fits at resid_post.layer_2"):
        attachment = attach(model, sae=moved(sae, layer=1), check=texts)
    assert attachment.live
    attachment.detach()
    with pytest.raises(InvalidValue):
        attach(model, sae=moved(sae), check=[])
    assert attachments(model) == []
    with pytest.raises(HfsaeWarning):  # warnings are errors here, and an error leaves nothing behind
        attach(model, sae=moved(sae, layer=1), check=texts)
    assert attachments(model) == []
