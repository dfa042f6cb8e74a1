import json
import math
import socket
import stat

import pytest
import torch

import hfsae.default
from hfsae.attach import attach
from hfsae.default import FILES, default_texts, load_default, shipped_texts
from hfsae.default.language_model import bits_per_byte

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def default():
    return load_default()


def stored(layer, name):
    return json.loads((FILES / f"resid_post.layer_{layer}" / name).read_text())


def test_load_default_opens_no_connection(monkeypatch):
    def refuse(*_args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model, tokenizer = load_default("cpu")
    assert model.name_or_path == model.config.name_or_path == hfsae.default.MODEL_NAME
    assert model.dtype == torch.float32
    assert not model.training
    assert tokenizer("import os").input_ids[0] == tokenizer.bos_token_id == model.config.bos_token_id


def test_the_default_model_generates_the_same_whichever_side_is_padded_alone(default, caplog):
    model, tokenizer = default
    prompts = ["def __init__(self, name", "raise ValueError("]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    together = model.generate(**batch, max_new_tokens=8, do_sample=False)
    for prompt, row in zip(prompts, together, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=8, do_sample=False)[0]
        assert torch.equal(alone[-8:], row[-8:])
    assert not caplog.records


def test_bits_per_byte_are_what_the_card_says(default):
    figures = json.loads((FILES / "model.json").read_text())
    texts = shipped_texts()["validation"]
    sizes = {path: len(text.encode()) for path, text in texts.items()}
    mean = sum(figures["bits_per_byte_of"][path] * size for path, size in sizes.items()) / sum(sizes.values())
    assert math.isclose(mean, figures["bits_per_byte"], rel_tol=1e-9)
    assert mean <= 1.25
    for path in ("uu.py", "idlelib/history.py"):
        measured = bits_per_byte(*default, [texts[path]])
        assert math.isclose(measured, figures["bits_per_byte_of"][path], rel_tol=1e-3)


def test_the_shipped_files_are_small_and_readable_by_all():
    files = [path for path in FILES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert (FILES / "LICENSE-PSF.txt").is_file()


@pytest.mark.parametrize("layer", LAYERS)
def test_attach_finds_the_shipped_dictionary(default, layer):
    with attach(default[0], layer=layer) as attachment:
        dictionary = attachment.dictionary
        assert (dictionary.config.layer, dictionary.config.site) == (layer, "resid_post")
        assert dictionary.W_dec.dtype == torch.float32
        assert len(dictionary.labels) >= 10
        assert dictionary.statistics.mean_norm > 0


@pytest.mark.parametrize("layer", LAYERS)
def test_the_shipped_dictionaries_are_good(layer):
    figures = stored(layer, "eval.json")
    assert figures["l0"] <= 16
    assert figures["fvu"] <= 0.12
    assert figures["recovered_zero"] >= 0.97
    assert figures["dead_fraction"] <= 0.01
    assert figures["tokens_spliced"] >= 400_000


@pytest.mark.parametrize("layer", LAYERS)
def test_the_stored_reconstruction_is_near_that_of_a_few_texts(default, layer):
    from hfsae.evaluate import evaluate

    texts = sorted(default_texts("validation"), key=len)[5:9]
    with attach(default[0], layer=layer) as attachment:
        measured = evaluate(attachment, texts, tokenizer=default[1], progress=False)
    assert measured.l0 <= 16
    assert abs(measured.fvu - stored(layer, "eval.json")["fvu"]) < 0.05
