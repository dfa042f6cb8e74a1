"""From trained weights to a finished dictionary: scaling undone, thresholds and gains calibrated, features measured.

Training works on ``s x`` (and reconstructs ``t y``) with decoder rows of length 1. As ReLU, top-k and thresholds all
commute with a positive factor, the finished dictionary reads x itself when

    W_enc <- W_enc s / t,   b_enc <- b_enc / t,   threshold <- threshold / t,   b_pre <- b_pre / s,
    b_dec <- b_dec / t,     W_skip <- W_skip s / t,   W_dec as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hfsae.sae.base import SparseCoder
from hfsae.sae.kernels import gather_decode, products_at, threshold_scan, topk_scan
from hfsae.sae.statistics import FeatureStatistics

_SLOTS = 8
"""Candidates of a token when a threshold is sought, as a multiple of the mean number that fire."""
_PULL = 10.0
"""How many firings weigh as much as the wish to leave a feature's scale as it is."""
_LEAST_GAIN = 0.1
_ITERATIONS = 20


@dataclass(frozen=True)
class Scales:
    """What activations are multiplied by before training."""

    x: float
    """What is read."""
    y: float
    """What is reconstructed; the same where both are one."""

    def undone(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a dictionary's weights for activations as they are."""
        ratio = self.x / self.y
        factors = {
            "W_enc": ratio,
            "b_enc": 1 / self.y,
            "threshold": 1 / self.y,
            "b_pre": 1 / self.x,
            "b_dec": 1 / self.y,
            "W_skip": ratio,
            "W_dec": 1.0,
        }
        return {name: tensor * factors[name] for name, tensor in tensors.items()}

    def applied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights for scaled activations: what `undone` takes back."""
        return Scales(1 / self.x, 1 / self.y).undone(tensors)


@torch.no_grad()
def threshold_for(tensors: dict[str, Tensor], x: Float[Tensor, "sample d_in"], l0: float) -> Float[Tensor, ""]:
    """Return the one threshold above which exactly so many features fire per token of a sample, on average.

    The exact quantile: a running mean of the smallest value kept in each batch, as is often used, lies below it.
    """
    centre = tensors["b_pre"] if "b_pre" in tensors else tensors["b_dec"]
    slots = min(round(_SLOTS * l0), len(tensors["W_enc"]))
    values, _ = topk_scan(x - centre, tensors["W_enc"], tensors["b_enc"], slots)
    return nth_largest(values.flatten(), l0 * len(x))


def nth_largest(values: Float[Tensor, "n"], count: float) -> Float[Tensor, ""]:
    """Return the value above which so many of them lie; 0 where there are none."""
    if not len(values):
        return values.new_zeros(())
    return values.topk(min(round(count), len(values) - 1) + 1).values[-1]


@torch.no_grad()
def unshrunk(tensors: dict[str, Tensor], x: Float[Tensor, "sample d_in"], y: Float[Tensor, "sample d_out"]) -> None:
    """Scale each feature so that together they reconstruct best; which of them fire does not change.

    L1 takes something off every value. Least squares for one factor a feature, by conjugate gradients, drawn towards 1
    where a feature fires too seldom to tell.

    Source: Wright and Sharkey 2024, "Addressing feature suppression in SAEs"; they train the factors.
    """
    centre = tensors["b_pre"] if "b_pre" in tensors else tensors["b_dec"]
    values, ids, offsets = threshold_scan(x - centre, tensors["W_enc"], tensors["b_enc"], None)
    left = y - tensors["b_dec"]
    if "W_skip" in tensors:
        left = left - x @ tensors["W_skip"].T
    if not len(values):
        return
    pull = float(values.square().mean()) * _PULL

    def correlation(output: Tensor) -> Tensor:
        """Return, for each feature, the sum of its value times what is written along it."""
        along = values * products_at(output, tensors["W_dec"], ids, offsets)
        return torch.zeros_like(tensors["b_enc"]).index_add_(0, ids, along)

    def normal(gains: Tensor) -> Tensor:
        return correlation(gather_decode(values * gains[ids], ids, tensors["W_dec"], None, offsets)) + pull * gains

    ones = torch.ones_like(tensors["b_enc"])
    residual = correlation(left) + pull * ones - normal(ones)
    gains = (ones + _conjugate_gradients(normal, residual)).clamp(min=_LEAST_GAIN)
    tensors["W_enc"] = tensors["W_enc"] * gains[:, None]
    tensors["b_enc"] = tensors["b_enc"] * gains


def _conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Return about the solution of ``product(solution) = target``, where the product is symmetric and positive."""
    solution, residual = torch.zeros_like(target), target
    direction, square = residual, residual.square().sum()
    for _ in range(_ITERATIONS):
        moved = product(direction)
        step = square / (direction * moved).sum().clamp(min=1e-30)
        solution, residual = solution + step * direction, residual - step * moved
        new = residual.square().sum()
        direction, square = residual + new / square.clamp(min=1e-30) * direction, new
    return solution


@torch.no_grad()
def measure(dictionary: SparseCoder, chunks: Iterable[Float[Tensor, "n d_in"]]) -> FeatureStatistics:
    """Return what the features of a dictionary do over some activations, sums in float64."""
    d_sae, d_in = dictionary.config.d_sae, dictionary.config.d_in
    device = dictionary.W_dec.device
    fired, total = (torch.zeros(d_sae, dtype=torch.float64, device=device) for _ in range(2))
    largest = torch.zeros(d_sae, device=device)
    x_sum, norm_sum, tokens = torch.zeros(d_in, dtype=torch.float64, device=device), 0.0, 0
    for x in chunks:
        _, features, values = dictionary.encode_sparse(x).fired()
        values = values.float()
        fired.index_add_(0, features, torch.ones_like(values, dtype=torch.float64))
        total.index_add_(0, features, values.double())
        largest.scatter_reduce_(0, features, values, "amax")
        x_sum += x.double().sum(0)
        norm_sum += float(x.double().norm(dim=1).sum())
        tokens += len(x)
    count = max(tokens, 1)
    return FeatureStatistics(
        density=(fired / count).float().cpu(),
        max=largest.cpu(),
        mean=(total / count).float().cpu(),
        mean_norm=norm_sum / count,
        tokens=tokens,
        mean_activation=(x_sum / count).float().cpu(),
    )
