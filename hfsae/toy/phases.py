"""What trained toys do as inputs get sparser: when they take in another feature, how many they hold, in what shape."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from hfsae.errors import InvalidValue, did_you_mean
from hfsae.toy.closed_form import phase_boundary
from hfsae.toy.geometry import SHAPES, dimensionality, features_held
from hfsae.toy.model import ToyConfig, ToyModel, sparse_inputs, train_toys

SHAPE_DENSITY = {
    "orthogonal": 1.0,
    "digon": 0.05,
    "triangle": 0.6,
    "tetrahedron": 0.7,
    "pentagon": 0.05,
    "square": 0.05,
    "square antiprism": 0.02,
}
"""Shape to a density of inputs at which toys of its n and d settle into it. The triangle and the tetrahedron need dense
inputs: with sparse ones a digon beside lone features is better, since a ReLU hides what antipodal features say."""
_HELD = 0.3
_COUNTED = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseGrid:
    """Whether n=2 features share d=1 dimension, for each importance of the second one and each density."""

    importances: Float[Tensor, " rows"]
    """Of the second feature; the first has 1."""
    densities: Float[Tensor, " columns"]
    """Probability that a feature is active."""
    trained: Bool[Tensor, "rows columns"]
    """The best trained toy holds both features, in opposite directions."""
    predicted: Bool[Tensor, "rows columns"]
    """The density lies below `phase_boundary`."""

    @property
    def agreement(self) -> int:
        """Number of cells where training and formula agree."""
        return int((self.trained == self.predicted).sum())


def phase_grid(
    importances: Float[Tensor, " rows"],
    densities: Float[Tensor, " columns"],
    *,
    restarts: int = 4,
    steps: int = 1000,
    seed: int = 0,
) -> PhaseGrid:
    """Train toys with n=2, d=1 in every cell and compare the best restart of each with the closed form.

    The formula holds the pair to b = 0 and unit length. Trained toys have a bias, so near the boundary they may share
    where the formula drops.

    Args:
        importances: Of the second feature.
        densities: Of both features.
        restarts: Random starts in each cell; the one of lowest loss on fresh inputs counts.
        steps: Optimizer steps, at 256 samples a step.
        seed: Of starts and inputs.

    Source: the phase change of Elhage et al. 2022, arXiv:2209.10652; they train, the formula is `phase_boundary`.
    """
    cells = torch.cartesian_prod(importances, densities).repeat_interleave(restarts, dim=0)
    weights = torch.stack([torch.ones(len(cells)), cells[:, 0]], dim=-1)
    density = cells[:, 1].contiguous()
    config = ToyConfig(n=2, d=1, toys=len(cells), steps=steps, learning_rate=0.02, seed=seed)
    toys = train_toys(config, lambda generator: sparse_inputs(256, 2, density, generator), weights)
    loss = toys.loss(sparse_inputs(4096, 2, density, Generator().manual_seed(seed + 1)), weights)
    best = loss.view(-1, restarts).argmin(dim=-1) + restarts * torch.arange(len(cells) // restarts)
    pair = toys.W[best, :, 0]
    shared = (pair.abs() > _HELD).all(dim=-1) & (pair.prod(dim=-1) < 0)
    boundary = torch.tensor([phase_boundary(float(importance)) for importance in importances])
    return PhaseGrid(
        importances=importances,
        densities=densities,
        trained=shared.view(len(importances), len(densities)),
        predicted=densities < boundary[:, None],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Holding:
    """How toys of equal importance fill their dimensions, for each density of inputs."""

    densities: Float[Tensor, " toys"]
    """Probability that a feature is active."""
    held: Float[Tensor, " toys"]
    """`features_held`."""
    count: Int[Tensor, " toys"]
    """How many features are longer than a half; unlike `held` it does not grow with their lengths."""
    dimensionality: Float[Tensor, "toys n"]
    """Share of a dimension that each feature has; a row adds up to d at most."""


def holding(
    n: int, d: int, densities: Float[Tensor, " toys"], *, steps: int = 1500, batch: int = 256, seed: int = 0
) -> Holding:
    """Train one toy of n features in d dimensions at each density and see how many features it holds.

    Args:
        n: Features, of equal importance.
        d: Dimensions.
        densities: Of the inputs, one for each toy.
        steps: Optimizer steps.
        batch: Samples for each toy in a step.
        seed: Of starts and inputs.

    Source: Elhage et al. 2022, arXiv:2209.10652, section "The geometry of superposition"; they take n=400, d=30.
    """
    config = ToyConfig(n=n, d=d, toys=len(densities), steps=steps, learning_rate=0.02, seed=seed)
    toys = train_toys(config, lambda generator: sparse_inputs(batch, n, densities, generator))
    return Holding(
        densities=densities,
        held=features_held(toys.W),
        count=(toys.W.norm(dim=-1) > _COUNTED).sum(dim=-1),
        dimensionality=dimensionality(toys.W),
    )


def settle(name: str, *, restarts: int = 6, steps: int = 1000, seed: int = 0) -> ToyModel:
    """Train toys of a shape's n and d from random starts and return the best of them.

    Args:
        name: One of `SHAPES`; inputs have the density `SHAPE_DENSITY` gives it.
        restarts: Random starts.
        steps: Optimizer steps, at 512 samples a step.
        seed: Of starts and inputs.
    Shape: returns: W ``[n, d]``, b ``[n]``.
    """
    if name not in SHAPES:
        raise InvalidValue(f"There is no shape {name!r}.{did_you_mean(name, SHAPES)}")
    (n, d), density = SHAPES[name].shape, SHAPE_DENSITY[name]
    config = ToyConfig(n=n, d=d, toys=restarts, steps=steps, learning_rate=0.02, seed=seed)
    toys = train_toys(config, lambda generator: sparse_inputs(512, n, density, generator))
    return toys.best(sparse_inputs(20_000, n, density, Generator().manual_seed(seed + 1)))
