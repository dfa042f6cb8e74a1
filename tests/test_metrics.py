"""Every number equals its definition, however the tokens are split into batches."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from hfsae.errors import InvalidValue
from hfsae.metrics import (
    BINS_PER_OCTAVE,
    FiringSums,
    LossSums,
    ReconstructionSums,
    Spread,
    cross_entropy,
    fvu,
    kl_divergence,
    loss_recovered,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator) + 3
    return x, x + 0.3 * torch.randn(50, 6, generator=generator)


def sums_of(x: torch.Tensor, x_hat: torch.Tensor, size: int) -> ReconstructionSums:
    sums = ReconstructionSums(x.shape[-1])
    for one, other in zip(x.split(size), x_hat.split(size), strict=True):
        sums.add(one, other)
    return sums


@pytest.mark.parametrize("size", [1, 7, 50])
def test_reconstruction_sums_equal_their_definitions_in_any_batches(pair, size):
    x, x_hat = (t.double() for t in pair)
    sums = sums_of(*pair, size)
    expected = {
        "fvu": float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()),
        "mse": float((x - x_hat).square().mean()),
        "cosine": float(functional.cosine_similarity(x, x_hat).mean()),
        "l2_ratio": float(x_hat.norm(dim=1).sum() / x.norm(dim=1).sum()),
        "relative_bias": float(x_hat.square().sum() / (x * x_hat).sum()),
    }
    assert {name: getattr(sums, name) for name in expected} == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(sums.mean, x.mean(0), rtol=1e-12)
    assert sums.tokens == 50


def test_variance_survives_one_token_of_massive_norm(pair):
    x, x_hat = (t.clone() for t in pair)
    x[17] = x_hat[17] = 1e6
    exact = (x - x_hat).double().square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert sums_of(x, x_hat, 8).fvu == pytest.approx(float(exact), rel=1e-9)


def test_fvu_is_0_for_x_itself_and_1_for_its_mean(pair):
    x, _ = pair
    assert fvu(x, x) == 0.0
    assert fvu(x.view(5, 10, 6), x.mean(0).expand(5, 10, 6)) == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(fvu(x[:1], x[:1]))


def test_cosine_is_0_where_a_norm_is_0(pair):
    x, _ = pair
    assert sums_of(x, torch.zeros_like(x), 50).cosine == 0.0
    assert math.isnan(sums_of(x, torch.zeros_like(x), 50).relative_bias)


def test_no_tokens_change_nothing_and_give_nan(pair):
    sums = ReconstructionSums(6)
    sums.add(torch.zeros(0, 6), torch.zeros(0, 6))
    assert sums.tokens == 0
    assert math.isnan(sums.fvu)


def test_shapes_that_differ_are_refused():
    with pytest.raises(InvalidValue, match=r"x \[3, 6\] and x_hat \[3, 5\] cannot be compared"):
        ReconstructionSums(6).add(torch.zeros(3, 6), torch.zeros(3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_cross_entropy_is_that_of_torch(dtype):
    logits = (20 * torch.randn(4, 5, 30, generator=torch.Generator().manual_seed(0))).to(dtype)
    targets = torch.randint(30, (4, 5), generator=torch.Generator().manual_seed(1))
    expected = functional.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="none").view(4, 5)
    assert torch.allclose(cross_entropy(logits, targets).double(), expected, rtol=1e-5, atol=1e-5)


def test_kl_divergence_is_0_for_equals_positive_else_and_finite_under_underflow():
    logits, other = 40 * torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kl_divergence(logits, logits), torch.zeros(3))
    expected = functional.kl_div(
        other.double().log_softmax(-1), logits.double().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert torch.allclose(kl_divergence(logits, other).double(), expected, rtol=1e-5)
    assert (expected > 0).all()
    assert torch.isfinite(kl_divergence(logits.half(), other.half())).all()


def test_kl_divergence_ignores_tokens_that_are_ruled_out():
    logits = torch.tensor([0.0, 1.0, -math.inf])
    assert kl_divergence(logits, logits) == 0.0
    assert kl_divergence(logits, torch.tensor([0.0, 1.0, -3.0])) > 0.0


def test_loss_recovered_is_1_for_clean_0_for_ablated_and_nan_when_nothing_is_lost():
    assert loss_recovered(3.0, 3.0, 5.0) == 1.0
    assert loss_recovered(3.0, 5.0, 5.0) == 0.0
    assert math.isnan(loss_recovered(3.0, 3.1, 3.0))


def test_firing_sums_count_tokens_per_feature():
    firing = FiringSums(4)
    firing.add(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 0]), tokens=2)
    firing.add(torch.tensor([0]), torch.tensor([0]), tokens=2)
    assert firing.by_number.tolist() == [1, 2, 1]
    assert firing.density.tolist() == [0.75, 0.0, 0.25, 0.0]
    assert firing.l0 == 1.0
    assert firing.dead_fraction == 0.5


def test_loss_sums_weigh_every_loss_alike():
    sums = LossSums()
    assert math.isnan(sums.mean)
    sums.add(torch.tensor([1.0, 2.0, 3.0]))
    sums.add(torch.tensor([10.0]))
    assert (sums.mean, sums.count) == (4.0, 4)


def test_a_spread_counts_every_positive_number_in_its_bin():
    values = (torch.randn(500, generator=torch.Generator().manual_seed(0)) * 4).exp()
    spread = Spread()
    spread.add(torch.cat([values, torch.zeros(3)]))
    first, counts = spread.histogram()
    assert first <= float(values.min())
    edges = [first * 2 ** (i / BINS_PER_OCTAVE) for i in range(len(counts) + 1)]
    assert counts.tolist() == [int(((values >= a) & (values < b)).sum()) for a, b in pairwise(edges)]
    spread.add(torch.tensor([1e-30, 1e30]))
    assert int(spread.histogram()[1].sum()) == 502
    assert len(Spread().histogram()[1]) == 0
