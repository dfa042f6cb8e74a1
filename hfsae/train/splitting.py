"""Features that do the work of two: known by what they leave over, split with the help of a dead one.

Where one row of the dictionary stands for two features (a parent and its parent-with-child, two rare ones), gradient
descent does not get out again: the row is the best compromise. Yet what is left over gives it away. On the tokens where
such a row fires the error lies to either side of it along one direction, in two heaps, while noise lies in one.

1. On a sample of activations, find for each feature the direction, across its own, along which the error varies most
   where it fires: power iteration, on sparse codes.
2. Two heaps far apart have a kurtosis of 1, a normal distribution has 3, and the rare firing of something else more.
3. The feature leans to one side by as much as the error varies, and a dead feature becomes its copy leaning to the
   other. All else of the two is the same, so that training goes on from where it was.

Source: ours; the idea is that of splitting components of mixtures (Ueda et al. 2000, "SMEM algorithm for mixture
    models", Neural Computation 12).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hfsae.sae.base import SparseCoder
from hfsae.sae.kernels import products_at, sparse_weight_gradient
from hfsae.train.recipe import Recipe

_ITERATIONS = 4
_LEAST_FIRINGS = 20
_LARGEST_KURTOSIS = 2.5
"""Of two heaps; at 3, rows of rare features were split for nothing."""
_LEAST_VARIANCE = 3.0
"""Variance of the error along the direction found, as a multiple of that along any direction."""


class Heaps(NamedTuple):
    """Features whose error lies in two heaps, the worst first."""

    features: Int[Tensor, " n"]
    """Their ids."""
    directions: Float[Tensor, "n d_out"]
    """Unit rows: where the heaps lie, in what is reconstructed."""
    readings: Float[Tensor, "n d_in"]
    """Unit rows: what tells one from the other in what is read."""
    sizes: Float[Tensor, " n"]
    """Distance of each heap from the middle, as a share of the feature's mean activation."""


@torch.no_grad()
def two_heaps(
    dictionary: SparseCoder, x: Float[Tensor, "sample d_in"], y: Float[Tensor, "sample d_out"], seed: int
) -> Heaps:
    """Return the features of a dictionary that do the work of two on a sample: y is what x is to be decoded to."""
    codes = dictionary.encode_sparse(x)
    error = y - dictionary.decode(codes, x=x)
    tokens, features, values = codes.fired()
    d_sae, own = dictionary.config.d_sae, functional.normalize(dictionary.W_dec, dim=1)
    count = torch.bincount(features, minlength=d_sae).clamp(min=1)
    offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))

    def mean(entries: Tensor) -> Tensor:
        return entries.new_zeros(d_sae).index_add_(0, features, entries) / count

    def across(rows: Tensor) -> Tensor:
        return functional.normalize(rows - (rows * own).sum(1, keepdim=True) * own, dim=1)

    along = across(torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)).to(own))
    for _ in range(_ITERATIONS):
        places = products_at(error, along, features, offsets)
        along = across(sparse_weight_gradient(places, features, tokens, error, d_sae))
    places = products_at(error, along, features, offsets)
    places = places - mean(places)[features]
    variance = mean(places.square())
    kurtosis = mean(places.pow(4)) / variance.square().clamp(min=1e-12)
    excess = variance - _LEAST_VARIANCE * error.square().mean()
    found = ((count >= _LEAST_FIRINGS) & (kurtosis <= _LARGEST_KURTOSIS) & (excess > 0)).nonzero().flatten()
    found = found[(excess * count)[found].argsort(descending=True)]
    readings = along
    if dictionary.config.is_transcoder:
        readings = functional.normalize(sparse_weight_gradient(places, features, tokens, x, d_sae), dim=1)
    sizes = variance.sqrt() / mean(values).clamp(min=1e-12)
    return Heaps(found, along[found], readings[found], sizes[found])


@torch.no_grad()
def split(recipe: Recipe, optimizer: torch.optim.Optimizer, heaps: Heaps, dead: Int[Tensor, " dead"]) -> Tensor:
    """Split as many features as there are dead ones to take a half; return the ids of those that are taken."""
    old, new = heaps.features[: len(dead)], dead[: len(heaps.features)]
    n = len(old)
    for weight, directions in ((recipe.W_dec, heaps.directions), (recipe.W_enc, heaps.readings)):
        lean = heaps.sizes[:n, None] * directions[:n]
        rows = weight[old]
        lengths, middle = rows.norm(dim=1, keepdim=True), functional.normalize(rows, dim=1)
        weight[old] = functional.normalize(middle + lean, dim=1) * lengths
        weight[new] = functional.normalize(middle - lean, dim=1) * lengths
    for parameter in recipe.of_features():
        if parameter.ndim == 1:
            parameter[new] = parameter[old]
        state = optimizer.state.get(parameter, {})
        if state:
            state["exp_avg"][torch.cat([old, new])] = 0
            state["exp_avg_sq"][new] = state["exp_avg_sq"][old]
    return new
