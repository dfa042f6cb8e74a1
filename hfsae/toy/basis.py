"""Is a basis privileged: do the coordinates of an activation differ from those of any other orthonormal basis?

A basis is privileged where something treats its axes apart: a non-linearity that acts on each coordinate (MLP neurons),
or an optimizer that does (Adam). The residual stream has no such non-linearity, and SGD knows no coordinates: turn the
start and it finds the turned solution. The directions that features lie along are another matter altogether.

The measure: the kurtosis of each coordinate over samples, 3 for a Gaussian, against that of coordinates turned at
random. Where both are alike the axes are like any other directions; where they differ, to either side, they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from hfsae.data.tokens import batches
from hfsae.errors import InvalidValue
from hfsae.hooks import capture
from hfsae.measuring.passes import at_rest
from hfsae.sites import Site, resolve, unwrap
from hfsae.toy.model import ToyConfig, sparse_inputs, train_toys

_ROTATIONS = 8


def kurtosis(x: Float[Tensor, "*toys count d"]) -> Float[Tensor, "*toys d"]:
    """Return the fourth standardised moment of each coordinate over samples: 3 for a Gaussian, more for heavy tails."""
    squared = (x - x.mean(dim=-2, keepdim=True)).square()
    variance = squared.mean(dim=-2)
    return squared.square().mean(dim=-2) / variance.square().clamp(min=torch.finfo(x.dtype).tiny)


def rotation(d: int, generator: Generator) -> Float[Tensor, "d d"]:
    """Draw an orthogonal matrix, uniformly."""
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator))
    # Without the signs, QR's own convention would prefer some of them.
    uniform: Tensor = q * r.diagonal().sign()
    return uniform


@dataclass(frozen=True, kw_only=True)
class Privilege:
    """How coordinates compare with those of a basis turned at random; each number is a kurtosis."""

    name: str
    own: float
    """Mean over the coordinates as they are."""
    turned: float
    """The same in bases turned at random, mean over these."""
    spread: float
    """Standard deviation over the bases turned at random: ``own`` further off than a few of these is no chance."""
    largest: float
    """Of any coordinate as they are."""

    @property
    def deviations(self) -> float:
        """How many spreads the coordinates are away from turned ones."""
        return (self.own - self.turned) / self.spread


def privilege(name: str, x: Float[Tensor, "count d"], *, seed: int = 0) -> Privilege:
    """Compare the coordinates of activations with those of turned ones.

    Args:
        name: What they are, for a table.
        x: At least two samples of at least two coordinates.
        seed: Of the rotations.
    Raises: InvalidValue: when there are fewer.
    """
    if min(x.shape) < 2:
        raise InvalidValue(f"x is {list(x.shape)}. At least 2 samples of 2 coordinates were expected.")
    generator = Generator().manual_seed(seed)
    centred = x - x.mean(dim=0)
    own = kurtosis(centred)
    turned = [kurtosis(centred @ rotation(x.shape[1], generator)).mean() for _ in range(_ROTATIONS)]
    means = torch.stack(turned).double()
    return Privilege(
        name=name,
        own=float(own.mean()),
        turned=float(means.mean()),
        spread=float(means.std()),
        largest=float(own.max()),
    )


def site_privileges(
    model: Any, texts: Sequence[str], sites: Sequence[Site], *, tokenizer: Any, max_tokens: int = 10_000, seed: int = 0
) -> list[Privilege]:
    """Say for sites of a model whether their coordinates are privileged, over the tokens of some texts.

    First and special tokens are left out: their activations are outliers that would be all that kurtosis sees.

    Args:
        sites: Of activations no wider than a few thousand; each is read whole.
        seed: Of the rotations.

    Source: Elhage et al. 2023, "Privileged bases in the transformer residual stream" (Transformer Circuits).
    """
    inner = unwrap(model)
    points = [resolve(inner, site.layer, site.site or "resid_post") for site in sites]
    parts = []
    with at_rest(inner):
        for batch in batches(texts, tokenizer=tokenizer, batch_size=16, context=256, max_tokens=max_tokens):
            mask = batch.valid & (batch.valid.cumsum(1) > 1) & ~batch.special_mask
            parts.append([x[mask].float() for x in capture(inner, points, **batch.model_inputs())])
    seen = [torch.cat(part) for part in zip(*parts, strict=True)]
    return [privilege(str(site), x, seed=seed) for site, x in zip(sites, seen, strict=True)]


def optimizer_privileges(
    *, n: int = 64, d: int = 16, density: float = 0.05, toys: int = 10, steps: int = 1000, seed: int = 0
) -> dict[str, list[Privilege]]:
    """Train toys with Adam and with SGD and say whether the coordinates of what lies between are privileged.

    The loss is the same in any basis, so only the optimizer can tell the coordinates apart. Adam's steps are about as
    long in each coordinate, which drives features towards the corners, away from the axes: kurtosis falls.

    Args:
        n: Features of equal importance.
        d: Dimensions between.
        density: Of the inputs.
        toys: Random starts with each optimizer.
        steps: Optimizer steps.
        seed: Of starts, inputs and rotations.
    Returns: One entry for each toy, by optimizer; both begin from the same weights.
    """
    x = sparse_inputs(20_000, n, density, Generator().manual_seed(seed + 1))[0]
    found = {}
    for optimizer, rate in (("adam", 0.003), ("sgd", 0.1)):
        config = ToyConfig(n=n, d=d, toys=toys, steps=steps, learning_rate=rate, optimizer=optimizer, seed=seed)
        trained = train_toys(config, lambda generator: sparse_inputs(256, n, density, generator))
        found[optimizer] = [
            privilege(f"{optimizer} {toy}", x @ W, seed=seed + 2 + toy) for toy, W in enumerate(trained.W)
        ]
    return found
