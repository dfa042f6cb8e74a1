"""Synthetic worlds whose true features are known: sparse codes over random directions, plus noise.

1. Draw ``n`` unit directions in ``d`` dimensions, Gaussian; with ``coherence`` groups of four lean together.
2. For each sample decide which features fire. That is what the worlds differ in: `FIRINGS` holds one row for each.
3. A firing feature has magnitude ``1 + 0.3 * normal``, at least 0.2; the others are zero: the codes ``a``.
4. ``x = a @ directions + noise * normal``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from hfsae.errors import InvalidValue, did_you_mean

ZIPF_CAP = 0.3
"""Highest firing probability in the Zipf world."""
CHILD_SHARE = 0.75
"""How often a parent fires together with one of its three children."""
PAIR_SHARE = 0.6
"""P(b fires | a fires) in each pair of the hierarchical world."""
GROUP_SHARE = 0.5
"""P(i fires | j fires) for two features of one group of the correlated world."""
_CHILDREN = 3
_COHERENT_GROUP = 4
_CORRELATED_GROUP = 8

Firing = Callable[[int, Generator], Bool[Tensor, "count n"]]


def _independent(rates: Float[Tensor, " n"]) -> Firing:
    def fire(count: int, generator: Generator) -> Tensor:
        draws = torch.rand(count, len(rates), generator=generator, device=generator.device)
        return draws < rates.to(generator.device)

    return fire


def _uniform(n: int, l0: float) -> Firing:
    return _independent(torch.full((n,), l0 / n))


def _zipf(n: int, l0: float) -> Firing:
    inverse_rank = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    low, high = 0.0, ZIPF_CAP * n
    for _ in range(100):  # bisection: the mean number of firing features grows with the scale
        scale = (low + high) / 2
        low, high = (scale, high) if (scale * inverse_rank).clamp(max=ZIPF_CAP).sum() < l0 else (low, scale)
    return _independent((high * inverse_rank).clamp(max=ZIPF_CAP).float())


def _hierarchical(n: int, l0: float) -> Firing:
    trees, per_pair = n // 8, 2
    rate = l0 / (trees * (1 + CHILD_SHARE) + trees * per_pair + n // 4)

    def fire(count: int, generator: Generator) -> Tensor:
        def draw(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=generator.device)

        parent = draw(trees, 1) < rate
        # Cut [0, 1) into equal shares, one for each child and the rest for none: the children exclude each other.
        chosen = (draw(trees, 1) / (CHILD_SHARE / _CHILDREN)).floor()
        child = parent & (chosen == torch.arange(_CHILDREN, device=generator.device))
        first = draw(trees, 1) < rate
        alone = rate * (1 - PAIR_SHARE) / (1 - rate)  # so that b fires as often as a
        second = draw(trees, 1) < torch.where(first, PAIR_SHARE, alone)
        tree, pair = torch.cat([parent, child], dim=-1), torch.cat([first, second], dim=-1)
        return torch.cat([tree.flatten(1), pair.flatten(1), draw(n // 4) < rate], dim=-1)

    return fire


def _correlated(n: int, l0: float) -> Firing:
    groups, awake_rate = n // _CORRELATED_GROUP, l0 / n / GROUP_SHARE

    def fire(count: int, generator: Generator) -> Tensor:
        device = generator.device
        awake = torch.rand(count, groups, 1, generator=generator, device=device) < awake_rate
        member = torch.rand(count, groups, _CORRELATED_GROUP, generator=generator, device=device) < GROUP_SHARE
        return (awake & member).flatten(1)

    return fire


FIRINGS: dict[str, Callable[[int, float], Firing]] = {
    "uniform": _uniform,
    "zipf": _zipf,
    "hierarchical": _hierarchical,
    "correlated": _correlated,
}
"""World name to what decides, for n features and a mean L0, which of them fire. A new world is a row here."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Activations made of known features: ``x = codes @ directions + noise``.

    - uniform: every feature fires with probability ``l0 / n``, independently.
    - zipf: independently, with probability proportional to 1 / rank, at most 0.3.
    - hierarchical: n/8 trees of a parent and 3 mutually exclusive children (a child implies its parent, a parent has a
      child 75 % of the time), n/8 pairs with P(b|a) = 0.6, n/4 independent; all but the children fire equally often.
    - correlated: groups of eight; a feature fires half of the time that any given other one of its group does.

    Shape: directions: ``[n, d]``, unit rows. sample: x ``[count, d]``, codes ``[count, n]``, both float32.
    Example:
        >>> world = World(name="zipf", n=64, d=16, l0=2.0, seed=0)
        >>> x, codes = world.sample(1000, torch.Generator().manual_seed(1))
        >>> x.shape, codes.shape
        (torch.Size([1000, 16]), torch.Size([1000, 64]))

    Source: the world of Sharkey et al. 2022, "Taking features out of superposition with sparse autoencoders", with the
        hierarchy that makes absorption visible (Chanin et al. 2024, arXiv:2409.14507).
    """

    name: str = "uniform"
    """One of `FIRINGS`."""
    n: int
    """Number of true features."""
    d: int
    """Dimensions they are squeezed into."""
    l0: float
    """Mean number of features that fire in a sample."""
    noise: float = 0.02
    """Standard deviation of the isotropic noise, in each dimension; a feature has length about 1."""
    coherence: float = 0.0
    """Mean cosine of two directions of one group of four; 0: all directions independent."""
    seed: int = 0
    """Seed of the directions."""

    def __post_init__(self) -> None:
        if self.name not in FIRINGS:
            raise InvalidValue(f"There is no world {self.name!r}.{did_you_mean(self.name, FIRINGS)}")
        step = 1 if self.name in ("uniform", "zipf") and not self.coherence else _CORRELATED_GROUP
        if self.n < step or self.n % step or self.d < 1:
            raise InvalidValue(f"n={self.n}, d={self.d} make no world. n is a multiple of {step} and d is positive.")
        if not 0 < self.l0 <= self.n / 4:
            raise InvalidValue(
                f"l0={self.l0} is out of range. It lies above 0 and at most at n/4={self.n / 4}. Change l0."
            )
        if self.noise < 0 or not 0 <= self.coherence < 1:
            raise InvalidValue(
                f"noise={self.noise}, coherence={self.coherence} are out of range. "
                "Noise is at least 0, coherence in [0, 1). Change them."
            )

    @cached_property
    def directions(self) -> Float[Tensor, "n d"]:
        """The true features: unit rows."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randn(self.n, self.d, generator=generator)
        if self.coherence:
            shared = torch.randn(self.n // _COHERENT_GROUP, self.d, generator=generator)
            shared = shared.repeat_interleave(_COHERENT_GROUP, dim=0)
            rows = (1 - self.coherence) ** 0.5 * rows + self.coherence**0.5 * shared
        return torch.nn.functional.normalize(rows, dim=-1)

    @cached_property
    def _firing(self) -> Firing:
        return FIRINGS[self.name](self.n, self.l0)

    @property
    def trees(self) -> Int[Tensor, "trees four"] | None:
        """Feature ids of each parent, then its three children; None but in the hierarchical world."""
        if self.name != "hierarchical":
            return None
        return torch.arange(self.n // 2).view(-1, 1 + _CHILDREN)

    def sample(self, count: int, generator: Generator) -> tuple[Float[Tensor, "count d"], Float[Tensor, "count n"]]:
        """Draw activations and the codes that made them, on the generator's device.

        Args:
            count: Number of samples.
            generator: Source of all randomness of the draw; the directions depend on the world's own seed alone.
        Shape: returns: x ``[count, d]``, codes ``[count, n]``, >= 0, zero where a feature does not fire.
        """
        fired = self._firing(count, generator)
        codes = torch.zeros(fired.shape, device=fired.device)
        normal = torch.randn(int(fired.sum()), generator=generator, device=fired.device)
        codes[fired] = (1 + 0.3 * normal).clamp(min=0.2)
        x = codes @ self.directions.to(fired.device)
        return x + self.noise * torch.randn(x.shape, generator=generator, device=fired.device), codes

    def activations(self, samples: int, *, batch: int = 512, seed: int = 0) -> Iterator[Float[Tensor, "batch d"]]:
        """Yield a stream of activations to train on, ``samples`` in all, the same for the same seed.

        Shape: yields: ``[batch, d]``, the last one shorter where ``batch`` does not divide ``samples``.
        """
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, samples, batch):
            yield self.sample(min(batch, samples - start), generator)[0]
