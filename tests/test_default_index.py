"""The shipped dictionary's index: found with no option, small, and about that dictionary."""

import json
from pathlib import Path

import pytest
import torch

from hfsae.attach import attach
from hfsae.cli.features import features
from hfsae.cli.index import index as make_index
from hfsae.default import FILES, default_texts, load_default, load_index
from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue, Unsupported
from hfsae.features import FeatureIndex, rule_f1

FOLDER = FILES / "resid_post.layer_2"
CARD = Path(__file__).parents[1] / "model_cards" / "stdlib-gpt2.md"
RAISE = 3707


@pytest.fixture(scope="module")
def index():
    return load_index()


def test_it_is_the_one_beside_the_dictionary(index):
    dictionary = SAE.from_pretrained(FOLDER)
    assert index.dictionary == dictionary.id
    found = FeatureIndex.of(dictionary)
    assert found is not None
    assert str(found[RAISE]) == str(index[RAISE])
    with attach(load_default()[0], layer=2) as attachment:
        assert FeatureIndex.of(attachment.dictionary) is not None
    assert all(index[i].label == label.text for i, label in dictionary.labels.items())


def test_it_is_small_and_knows_every_living_feature(index):
    assert sum(path.stat().st_size for path in (FOLDER / "index").iterdir()) < 1_000_000
    assert len(index) == 4096
    alive = index.density > 0
    assert alive.float().mean() > 0.99
    cards = [index[i] for i in alive.nonzero()[::97, 0].tolist()]
    assert all(card.top and card.samples and card.label and card.promoted and card.neighbours for card in cards)


def test_its_contexts_are_where_the_feature_fires(index):
    model, tokenizer = load_default()
    texts = ["".join(example.tokens) for example in index[RAISE].top]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with attach(model, layer=2) as attachment, attachment.record() as record, torch.no_grad():
        model(**batch)
    # The model now reads an excerpt where it read the file: the strengths differ, the places do not.
    assert (record.at([RAISE])[..., 0].amax(1) > 5).all()


def test_listed_labels_predict_firing_on_text_the_dictionary_did_not_learn_from(index):
    examples = json.loads((FOLDER / "eval.json").read_text())["examples"]
    listed = {x["feature"]: x["held_out_f1"] for x in examples if x["source"] == "automatic"}
    assert len(listed) >= 20
    assert min(listed.values()) >= 0.7
    card = CARD.read_text()
    assert all(f"\n| {feature} | " in card for feature in listed)
    model, tokenizer = load_default()
    excerpts = [text[3_000:5_000] for split in ("validation", "heldout") for text in default_texts(split)]
    with attach(model, layer=2) as attachment:
        f1 = rule_f1(attachment, index, excerpts, tokenizer=tokenizer)
    # A tenth of the text: single features vary, most labels hold.
    assert sum(float(f1[feature]) >= 0.7 for feature in listed) >= 20


def test_automatic_labels_are_those_of_the_rules(index):
    labels = SAE.from_pretrained(FOLDER).labels
    automatic = {i: label.text for i, label in labels.items() if label.source == "automatic"}
    assert len(automatic) > 1_000
    assert all(index.rules[i].text(index.vocabulary) == text for i, text in automatic.items())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"text": "3707"}, "« raise»"),
        ({"search": "raise"}, f"feature {RAISE}: `raise`"),
        ({"search": "NotImplementedError"}, "on `ream`, `riter`, `NotImplementedError`"),
        ({"search": "no such words"}, "Nothing in"),
    ],
)
def test_the_command_line_finds_it(arguments, shown, capsys):
    features(**arguments)
    assert shown in capsys.readouterr().out


def test_the_command_line_writes_a_dashboard(tmp_path, capsys):
    features(text="import os", html=tmp_path / "dashboard")
    assert (tmp_path / "dashboard" / "index.html").as_posix() in capsys.readouterr().out
    assert 'class="text"' in (tmp_path / "dashboard" / "index.html").read_text()
    with pytest.raises(InvalidValue, match="Nothing to look at, or two things"):
        features(search="raise", html=tmp_path / "dashboard")
    with pytest.raises(InvalidValue, match="none lies beside this dictionary"):
        features(layer=1, html=tmp_path / "other")


def test_the_command_line_makes_an_index_and_reads_it(tmp_path, capsys):
    make_index(out=tmp_path / "index", layer=1, max_tokens=600, small=True)
    assert "of 2,048 features fire" in capsys.readouterr().out
    features(text="12", index=tmp_path / "index")
    assert "feature 12: `Error`" in capsys.readouterr().out
    with pytest.raises(Unsupported, match="was trimmed"):
        make_index(out=tmp_path / "index", layer=1, max_tokens=600)
