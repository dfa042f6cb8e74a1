"""Measures of meaning equal their definitions."""

import pytest
import torch
from indexed import BOS, attached, features_of, make_dictionary
from test_tokens import make_tokenizer

from hfsae.attach import attach
from hfsae.errors import InvalidValue, Mismatch
from hfsae.features import compare, index_features, mask_f1, rule_f1, seed_stability
from hfsae.features.measures import line_starts, matching_tokens, positions

attachment = pytest.fixture(attached)


@pytest.fixture
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [[BOS, *torch.randint(3, 20, (25,), generator=generator).tolist()] for _ in range(12)]


def test_mask_f1_is_that_of_firing_against_the_mask(attachment, rows):
    found = mask_f1(attachment, rows, lambda ids: ids == 8, batch_size=5)
    f = torch.cat([features_of(attachment, row) for row in rows]) > 0
    holds = torch.tensor(rows).flatten() == 8
    expected = 2 * (f & holds[:, None]).sum(0) / (f.sum(0) + holds.sum())
    assert torch.allclose(found, expected)
    with pytest.raises(InvalidValue, match="holds on no token"):
        mask_f1(attachment, rows, lambda ids: ids == 95)


def test_rule_f1_on_the_same_text_is_that_of_the_index(attachment, rows):
    index = index_features(attachment, rows)
    found = rule_f1(attachment, index, rows)
    for feature, rule in enumerate(index.rules):
        assert float(found[feature]) == pytest.approx(0.0 if rule is None else rule.f1, abs=1e-6)
    other = attach(attachment.model, 2, sae=make_dictionary(seed=5).double())
    with pytest.raises(Mismatch, match="One of the attached dictionary"):
        rule_f1(other, index, rows)


def test_compare_finds_the_feature_of_the_token_that_differs(attachment, rows):
    assert compare(attachment, rows, rows) == []
    eights = [[BOS, *[8] * 20]]
    found = compare(attachment, eights, rows, most=3)
    assert len(found) == 3
    assert abs(found[0].effect) >= abs(found[1].effect)
    assert (found[0].rate_a > found[0].rate_b) == (found[0].effect > 0)
    swapped = compare(attachment, rows, eights, most=3)
    assert [c.feature for c in swapped] == [c.feature for c in found]
    assert swapped[0].effect == pytest.approx(-found[0].effect)
    with pytest.raises(InvalidValue, match="No token of these texts"):
        compare(attachment, [[BOS]], rows)


def test_a_dictionary_is_stable_against_itself_in_any_order():
    dictionary = make_dictionary()
    other = make_dictionary()
    other.W_dec.data = other.W_dec.data.flip(0) * 3
    assert torch.allclose(seed_stability(dictionary, other), torch.ones(24))
    assert seed_stability(dictionary, make_dictionary(seed=9)).mean() < 0.9


def test_ready_masks_hold_where_they_say():
    tokenizer = make_tokenizer(bos_token="<bos>")
    ids = torch.tensor([[1, 7, 17, 70]])
    assert matching_tokens(tokenizer, r"7\Z")(ids).tolist() == [[False, True, True, False]]
    assert positions(1, 2)(ids).tolist() == [[False, True, True, False]]
    assert line_starts(tokenizer)(ids).tolist() == [[False] * 4]
