"""`hfsae train`: a text file in, a dictionary that loads and a picture of the run out; nothing is replaced."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfsae import SAE, load_default
from hfsae.cli.train import train
from hfsae.errors import InvalidValue


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
    assert f"written: {out}" in capsys.readouterr().out
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
