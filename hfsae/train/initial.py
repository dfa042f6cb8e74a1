"""What a run takes from the first activations: their scale, their variance, and where the bias begins."""

import torch
from jaxtyping import Float
from torch import Tensor

from hfsae.errors import InvalidValue
from hfsae.train.recipe import Recipe

_MEDIAN_STEPS = 30


def scale_of(x: Float[Tensor, "sample d"]) -> float:
    """Return what x is multiplied by to have a mean squared norm of 1.

    Raises: InvalidValue: when all activations are zero.
    """
    mean_square = float(x.double().square().sum(1).mean())
    if mean_square <= 0:
        raise InvalidValue("All activations are zero. There is nothing to learn from them. Check the site.")
    return float(mean_square**-0.5)


def geometric_median(x: Float[Tensor, "sample d"]) -> Float[Tensor, " d"]:
    """Return the point whose distances to all rows have the smallest sum: a mean that outliers do not move.

    Source: Weiszfeld's iteration.
    """
    median = x.mean(0)
    for _ in range(_MEDIAN_STEPS):
        weights = 1 / (x - median).norm(dim=1, keepdim=True).clamp(min=1e-6)
        median = (x * weights).sum(0) / weights.sum()
    return median


@torch.no_grad()
def initialise(recipe: Recipe, x: Float[Tensor, "sample d_in"], y: Float[Tensor, "sample d_out"]) -> None:
    """Set a recipe's biases and the variance it divides by from a sample of scaled activations."""
    recipe.b_dec.copy_(geometric_median(y))
    if recipe.b_pre is not None:
        recipe.b_pre.copy_(geometric_median(x))
    recipe.variance.copy_((y - y.mean(0)).square().sum(1).mean().clamp(min=1e-12))
