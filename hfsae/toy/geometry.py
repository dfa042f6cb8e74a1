"""How features lie in superposition: what share of a dimension each gets, and the shapes they form."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from hfsae.errors import InvalidValue, did_you_mean


def dimensionality(W: Float[Tensor, "*toys n d"]) -> Float[Tensor, "*toys n"]:
    """Return the share of a dimension that each feature has to itself, 0..1.

    ``|w_i|^2 / sum_j (w_i / |w_i| . w_j)^2``; 0 for a feature that is not held. It is at most the feature's leverage
    (Cauchy-Schwarz on the eigenvalues of W W.T), and leverages add up to the rank: the sum never exceeds d.

    Source: Elhage et al. 2022, arXiv:2209.10652.
    """
    gram = W @ W.mT
    squared_length = gram.diagonal(dim1=-2, dim2=-1)
    return squared_length.square() / gram.square().sum(dim=-1).clamp(min=torch.finfo(W.dtype).tiny)


def features_held(W: Float[Tensor, "*toys n d"]) -> Float[Tensor, "*toys"]:
    """Return how many features are held: the sum of the squared lengths; a feature at unit length counts 1.

    Source: Elhage et al. 2022, who plot d over this number, the dimensions per feature.
    """
    return W.square().sum(dim=(-2, -1))


def gaps(W: Float[Tensor, "n two"]) -> Float[Tensor, " n"]:
    """Return the angles between neighbouring features in the plane, in degrees, smallest first; they add up to 360."""
    angle = torch.atan2(W[:, 1], W[:, 0]).sort().values
    turn = torch.cat([angle[1:], angle[:1] + 2 * math.pi]) - angle
    return torch.rad2deg(turn).sort().values


def measured_interference(d: int, active: int, *, count: int = 4000, seed: int = 0) -> float:
    """Return the standard deviation of what random unit features add to the reading of another one, as sampled.

    `hfsae.toy.closed_form.interference` is its formula.

    Args:
        d: Dimensions.
        active: Features that are active beside the one that is read.
        count: Samples, each with directions of its own.
        seed: Of the directions.
    """
    drawn = torch.randn(count, active + 1, d, generator=Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize(drawn, dim=-1)
    return float((unit[:, 0] * unit[:, 1:].sum(dim=1)).sum(dim=-1).std())


def _circle(n: int, height: float = 0.0, turn: float = 0.0) -> Float[Tensor, "n three"]:
    angle = 2 * math.pi * torch.arange(n) / n + turn
    return torch.stack([angle.cos(), angle.sin(), torch.full((n,), height)], dim=-1)


def _square_antiprism() -> Float[Tensor, "8 3"]:
    # The height that makes every feature's share equal to d / n: a frame as tight as eight directions in space allow.
    height = 0.5**0.5
    return torch.cat([_circle(4, height), _circle(4, -height, turn=math.pi / 4)])


SHAPES: dict[str, Float[Tensor, "n d"]] = {
    "orthogonal": torch.eye(2),
    "digon": torch.tensor([[1.0], [-1.0]]),
    "triangle": _circle(3)[:, :2],
    "tetrahedron": torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]),
    "pentagon": _circle(5)[:, :2],
    "square": _circle(4)[:, :2],
    "square antiprism": _square_antiprism(),
}
"""Name to vertices ``[n, d]``: the shapes that features of equal importance settle into."""


def shape(name: str) -> Float[Tensor, "n d"]:
    """Return the unit vertices of one of `SHAPES`.

    Example:
        >>> dimensionality(shape("digon")).tolist()
        [0.5, 0.5]
    """
    if name not in SHAPES:
        raise InvalidValue(f"There is no shape {name!r}.{did_you_mean(name, SHAPES)}")
    return torch.nn.functional.normalize(SHAPES[name], dim=-1)
