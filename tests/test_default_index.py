"""The shipped dictionary's index: found with no option, small, and about that dictionary."""

import pytest
import torch

from hfsae.attach import attach
from hfsae.cli.features import features
from hfsae.default import FILES, load_default, load_index
from hfsae.dictionary import SAE
from hfsae.features import FeatureIndex

FOLDER = FILES / "resid_post.layer_2"
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
    assert {i: text for i, (text, _) in index.labels.items()} == {i: x.text for i, x in dictionary.labels.items()}


def test_it_is_small_and_knows_every_living_feature(index):
    assert sum(path.stat().st_size for path in (FOLDER / "index").iterdir()) < 1_000_000
    assert len(index) == 4096
    alive = index.density > 0
    assert alive.float().mean() > 0.99
    cards = [index[i] for i in alive.nonzero()[::97, 0].tolist()]
    assert all(card.top and card.samples and card.label and card.promoted and card.neighbours for card in cards)


def test_its_contexts_are_where_the_feature_fires(index):
    model, tokenizer = load_default()
    texts = ["".join(example.tokens[1:]) for example in index[RAISE].top]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with attach(model, layer=2) as attachment, attachment.record() as record, torch.no_grad():
        model(**batch)
    # The model now reads an excerpt where it read the file: the strengths differ, the places do not.
    assert (record.at([RAISE])[..., 0].amax(1) > 5).all()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"text": "3707"}, "« raise»"),
        ({"search": "raise"}, f"feature {RAISE}: `raise`"),
        ({"search": "NotImplementedError"}, "on 'ream', 'riter', ' NotImplementedError'"),
        ({"search": "no such words"}, "Nothing in"),
    ],
)
def test_the_command_line_finds_it(arguments, shown, capsys):
    features(**arguments)
    assert shown in capsys.readouterr().out
