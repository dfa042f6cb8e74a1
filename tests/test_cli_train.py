"""`hfsae train`: a text file in, a dictionary that loads and a picture of the run out; nothing is replaced."""

import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfsae import SAE, load_default
from hfsae.cli.train import train
from hfsae.errors import InvalidValue
from hfsae.train import History


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    _, tokenizer = load_default()
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, **special)
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "text.txt").write_text("".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(400)))
    return path


def run(folder, out, **options):
    chosen = {"model": str(folder), "layer": 1, "features": 64, "k": 4, "tokens": 4096, **options}
    train([folder / "text.txt"], out=out, **chosen)


def test_train_writes_a_dictionary_and_a_picture(folder, tmp_path, capsys):
    out, picture = tmp_path / "dictionary", tmp_path / "run.png"
    run(folder, out, plot=picture)
    printed = capsys.readouterr().out
    assert re.search(r"last batch: FVU 0\.\d{3}, L0 4\.0, \d+\.\d% of the features dead", printed)
    assert f"written: {out}" in printed
    sae = SAE.from_pretrained(out)
    assert (sae.config.place, sae.config.d_sae, sae.config.k) == ("resid_post.layer_1", 64, 4)
    assert sae.statistics is not None
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_train_replaces_nothing(folder, tmp_path):
    picture, new = tmp_path / "run.png", tmp_path / "new"
    picture.touch()
    with pytest.raises(InvalidValue, match="Name another one with --out"):
        run(folder, tmp_path)
    with pytest.raises(InvalidValue, match="Name another one with --plot"):
        run(folder, new, plot=picture)
    assert not new.exists()


def test_train_takes_an_architecture(folder, tmp_path):
    run(folder, tmp_path / "out", architecture="batchtopk")
    assert SAE.from_pretrained(tmp_path / "out").config.architecture == "batchtopk"
    with pytest.raises(InvalidValue, match=r"no architecture 'batchtop'\. Did you mean 'batchtopk'"):
        run(folder, tmp_path / "other", architecture="batchtop")


def test_train_goes_on_from_its_checkpoints(folder, tmp_path, monkeypatch):
    steps = []

    class CutOff(Exception):
        """At the fifth step."""

    def cut_off(self, figures):
        steps.append(figures.step)
        if figures.step == 5:
            raise CutOff

    run(folder, tmp_path / "whole")
    monkeypatch.setattr(History, "on_figures", cut_off)
    with pytest.raises(CutOff):
        run(folder, tmp_path / "never", checkpoints=tmp_path / "saved")
    assert not (tmp_path / "never").exists()
    monkeypatch.setattr(History, "on_figures", lambda self, figures: steps.append(figures.step))
    run(folder, tmp_path / "resumed", checkpoints=tmp_path / "saved")
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    whole, resumed = (SAE.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
