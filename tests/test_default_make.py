import json
import sys

import pytest
import torch

from hfsae.attach import attach
from hfsae.default import FILES, load_model, make, meaning
from hfsae.default.language_model import Recipe
from hfsae.dictionary import SAE
from hfsae.features import FeatureIndex
from hfsae.train import DataConfig, TrainConfig

SMALL = Recipe(vocabulary=300, context=32, width=16, blocks=2, heads=2, rows=4, steps=4)
TEXTS = [f"def function_{n}(x):\n    return x + {n}\n" * 8 for n in range(40)]


@pytest.fixture
def small(monkeypatch):
    """The steps of `make` on a model and texts that take seconds."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(make, "Recipe", lambda: SMALL)
    monkeypatch.setattr(
        make, "training_sources", lambda: dict.fromkeys(("library", "tests", "packages", "prose"), TEXTS)
    )
    monkeypatch.setattr(
        make, "library_texts", lambda split: {f"{split}_{n}.py": text for n, text in enumerate(TEXTS[:3])}
    )
    config = TrainConfig(d_sae=32, k=4, tokens=4096, data=DataConfig(context=32))
    monkeypatch.setattr(make, "DICTIONARIES", {0: config})
    monkeypatch.setattr(make, "INDEXED", 0)
    monkeypatch.setattr(meaning, "LEAST_FIRINGS", 1)
    monkeypatch.setattr(meaning, "LEAST_F1", 0.1)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the shipped texts are those of Python 3.11")
def test_make_texts_gives_the_shipped_paths(tmp_path):
    make.main(["texts", "--out", str(tmp_path)])
    made, shipped = (json.loads((folder / "texts.json").read_text())["sha256"] for folder in (tmp_path, FILES))
    for split in shipped:
        # Micro versions change some files, and distributions leave some out.
        assert len(made[split].keys() ^ shipped[split].keys()) <= 5


@pytest.mark.usefixtures("small")
def test_one_command_makes_texts_model_and_dictionaries(tmp_path):
    make.main(["all", "--out", str(tmp_path)])
    model, tokenizer = load_model(tmp_path)
    assert model.config.n_layer == SMALL.blocks
    assert json.loads((tmp_path / "model.json").read_text())["bits_per_byte"] > 0
    with attach(model, sae=SAE.from_pretrained(tmp_path / "resid_post.layer_0")) as attachment:
        assert attachment.top_features(tokenizer(TEXTS[0][:40], return_tensors="pt"))
        index = FeatureIndex.of(attachment.dictionary)
        assert index is not None
        assert index.fixed_rules is not None
        labels = attachment.dictionary.labels
        assert labels
        assert {label.source for label in labels.values()} == {"automatic"}
        assert all(index[i].label == label.text for i, label in labels.items())
    stored = json.loads((tmp_path / "resid_post.layer_0" / "eval.json").read_text())
    assert stored["l0"] <= 4
    assert all(example["held_out_f1"] >= 0.1 for example in stored["examples"])
    assert {example["feature"] for example in stored["examples"]} <= set(labels)
    assert not (tmp_path / "training_state.pt").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["resid_post.layer_0"]


def test_the_command_line_names_what_it_can_make(capsys):
    with pytest.raises(SystemExit):
        make.main(["tokenizer", "--out", "x"])
    assert "dictionaries" in capsys.readouterr().err
