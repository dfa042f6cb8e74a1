"""What features do together and to the output equals a computation by hand; a probe finds the feature that tells."""

import math

import pytest
import torch
from indexed import BOS, attached, features_of, make_dictionary
from torch import nn

from hfsae.attach import Attachment, attach
from hfsae.errors import InvalidValue, OutOfRange
from hfsae.features import ablation_sparsity, cofiring, sparse_probe
from hfsae.hooks import capture

attachment = pytest.fixture(attached)
TOKEN = 8


@pytest.fixture
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(5, 30, (24,), generator=generator).tolist()
    return [[BOS, *torch.randint(3, 20, (n,), generator=generator).tolist()] for n in lengths]


def test_cofiring_is_the_correlation_of_firing(attachment, rows):
    fires = torch.cat([features_of(attachment, row)[1:] for row in rows]) > 0
    expected = torch.corrcoef(fires.T.double()).nan_to_num(0.0)
    found = cofiring(attachment, rows, [3, 7], most=23, batch_size=5)
    assert set(found) == {3, 7}
    for feature, others in found.items():
        assert [value for _, value in others] == sorted((value for _, value in others), reverse=True)
        assert {other for other, _ in others} == set(range(24)) - {feature}
        assert all(value == pytest.approx(float(expected[feature, other]), abs=1e-5) for other, value in others)
    with pytest.raises(InvalidValue, match="No token was encoded"):
        cofiring(attachment, [[BOS]], [3])
    with pytest.raises(OutOfRange, match="Feature 24 does not exist"):
        cofiring(attachment, rows, [24])


def test_ablation_sparsity_is_that_of_the_change_of_the_logits(attachment, rows):
    feature, shares = 7, []
    for row in rows:
        fired = (features_of(attachment, row)[:, feature] > 0).nonzero()[:, 0].tolist()
        if not fired:
            continue
        ids, at = torch.tensor([row]), fired[0]
        with torch.no_grad():
            clean = attachment.model(ids).logits[0]
            with attachment.ablate(feature, positions=[at]):
                d = (attachment.model(ids).logits[0] - clean)[at : at + 17]
        d = d - d.median(-1, keepdim=True).values
        shares.append(float((d.abs().sum() / d.norm()) ** 2 / d.numel()))
    found = ablation_sparsity(attachment, rows, [feature], batch_size=5)
    assert found[feature] == pytest.approx(sum(shares) / len(shares), rel=1e-4)
    assert 0 < found[feature] <= 1
    first = ablation_sparsity(attachment, rows, [feature], contexts=2, batch_size=1)
    assert first[feature] == pytest.approx(sum(shares[:2]) / 2, rel=1e-4)


def test_a_feature_that_never_fires_has_no_effect_to_measure(attachment, rows):
    attachment.dictionary.b_enc.data[5] = -1e6
    assert math.isnan(ablation_sparsity(attachment, rows, [5])[5])


@pytest.fixture
def telling(tiny_gpt2: nn.Module) -> Attachment:
    """A dictionary whose feature 0 fires on one token alone."""
    dictionary = make_dictionary()
    attachment = attach(tiny_gpt2, 0, "resid_pre", sae=dictionary)
    (x,) = capture(tiny_gpt2, [attachment.point], input_ids=torch.arange(3, 20)[:, None])
    direction = x[TOKEN - 3, 0] - x[:, 0].mean(0)
    dictionary.b_dec.zero_()
    dictionary.W_enc[0] = 100 * direction / direction.norm()
    dictionary.b_enc[0] = -0.7 * float(x[TOKEN - 3, 0] @ dictionary.W_enc[0])
    return attachment


def test_a_probe_finds_the_feature_of_the_label(telling):
    generator = torch.Generator().manual_seed(1)
    texts = [[BOS, *torch.randint(9, 20, (20,), generator=generator).tolist()] for _ in range(40)]
    labels = [row % 3 == 0 for row in range(40)]
    for text, label in zip(texts, labels, strict=True):
        text[4] = TOKEN if label else 3
    probe = sparse_probe(telling, texts, labels)
    assert probe.features == (0,)
    assert probe.accuracy == 1.0
    assert 0.5 < probe.majority < 0.8
    assert sparse_probe(telling, texts, labels, k=3).features[0] == 0


def test_a_probe_of_bad_input_is_one_clear_error(telling):
    texts = [[BOS, 3, 4]] * 4
    with pytest.raises(InvalidValue, match="One label for each text"):
        sparse_probe(telling, texts, [True])
    with pytest.raises(InvalidValue, match="k=25 is out of range"):
        sparse_probe(telling, texts, [True, False, True, False], k=25)
    with pytest.raises(InvalidValue, match="1 texts are labelled False"):
        sparse_probe(telling, texts, [True, True, True, False])
    with pytest.raises(InvalidValue, match="a share"):
        sparse_probe(telling, texts, [True, False, True, False], held_out=1.0)
