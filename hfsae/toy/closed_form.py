"""What is known exactly about toy models of superposition; each is a formula, with nothing trained or sampled."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hfsae.errors import InvalidValue
from hfsae.toy.model import ToyModel


def linear_loss(d: int, importance: Float[Tensor, " n"]) -> float:
    """Return the lowest loss of the linear model without bias, one feature active at 1.

    It keeps the d most important features, at right angles, and drops the others: the mean over features of the
    importance it drops. At equal importance that is (n - d) / n, and any rotation of the kept plane is as good.
    """
    dropped = importance.sort(descending=True).values[d:]
    return float(dropped.sum() / len(importance))


def antipodal_pair(a: float = 1.0) -> ToyModel:
    """Return the ReLU model n=2, d=1 with features at a and -a and the bias 1 - a^2 that reads a lone feature right."""
    return ToyModel(W=torch.tensor([[a], [-a]]), b=torch.full((2,), 1 - a * a))


def antipodal_loss(a: float) -> float:
    """Return the loss of `antipodal_pair`, one feature active at 1: 0 from a = 1/sqrt(2) on, (1 - 2 a^2)^2 below."""
    return max(0.0, 1 - 2 * a * a) ** 2


def polygon_radius_squared(n: int) -> float:
    """Return the squared length of features at which n of them on a circle do not disturb each other.

    The bias ``1 - r^2`` takes away what a neighbour at angle ``2 pi / n`` adds just when ``r^2 = 1 / (1 - cos)``.
    So while one feature is active at a time, two dimensions hold any number at zero loss.

    Example:
        >>> [round(polygon_radius_squared(n), 4) for n in (3, 5, 8, 16)]
        [0.6667, 1.4472, 3.4142, 13.1371]
    """
    if n < 2:
        raise InvalidValue(f"n={n} makes no polygon. It takes at least 2 features. Raise n.")
    return 1 / (1 - math.cos(2 * math.pi / n))


def polygon(n: int) -> ToyModel:
    """Return the ReLU model of n features on a circle in two dimensions: zero loss while one is active at a time."""
    squared = polygon_radius_squared(n)
    angle = 2 * math.pi * torch.arange(n) / n
    return ToyModel(W=squared**0.5 * torch.stack([angle.cos(), angle.sin()], dim=-1), b=torch.full((n,), 1 - squared))


def superposed_loss(density: float, importance: float) -> float:
    """Return the loss of the antipodal pair (1, -1), b = 0, on independent inputs uniform in [0, 1].

    Only two active features disturb each other: each is off by the smaller of the two, and E[min^2] = 1/6, so the loss
    is ``p^2 (1 + I) / 6``.

    Args:
        density: Probability p that a feature is active.
        importance: I of the second feature; the first has 1.
    """
    return density**2 * (1 + importance) / 6


def dropped_loss(density: float, importance: float) -> float:
    """Return the loss of keeping the first feature and answering the second one's mean: ``I (p / 3 - p^2 / 4)``.

    The arguments are those of `superposed_loss`.
    """
    return importance * (density / 3 - density**2 / 4)


def phase_boundary(importance: float) -> float:
    """Return the density below which the antipodal pair beats dropping the second feature: ``4 I / (2 + 5 I)``.

    Where `superposed_loss` meets `dropped_loss`. The pair is held to b = 0 and unit length here; trained ones do better
    with a bias of their own, so their boundary lies higher.

    Example:
        >>> [round(phase_boundary(i), 3) for i in (1.0, 0.5, 0.1)]
        [0.571, 0.444, 0.16]
    """
    return 4 * importance / (2 + 5 * importance)


def interference(d: int, active: int) -> float:
    """Return the standard deviation of what ``active`` random unit features add to the reading of another one.

    Each adds a cosine of variance 1/d: ``sqrt(active / d)``, in units of a feature's own length.
    """
    return math.sqrt(active / d)


def mutual_coherence(directions: Float[Tensor, "n d"]) -> float:
    """Return the largest absolute cosine between two different directions, 0..1."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    return float((unit @ unit.T).fill_diagonal_(0).abs().max())


def welch_bound(n: int, d: int) -> float:
    """Return the lowest mutual coherence that n > d unit vectors in d dimensions can have.

    Source: Welch 1974, "Lower bounds on the maximum cross correlation of signals".
    """
    if n <= d:
        raise InvalidValue(f"n={n} directions fit d={d} dimensions at right angles. The bound needs n > d. Raise n.")
    return math.sqrt((n - d) / (d * (n - 1)))


def incoherence_bound(coherence: float) -> float:
    """Return below how many active features sparse coding is sure to tell them apart: ``(1 + 1 / coherence) / 2``.

    A worst case over all supports, for a dictionary that is already known; typical supports allow far more.

    Source: Tropp 2004, "Greed is good"; Donoho and Elad 2003.
    """
    return (1 + 1 / coherence) / 2
