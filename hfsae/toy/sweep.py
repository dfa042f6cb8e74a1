"""Where recovery breaks: dictionaries trained on worlds of more and more coherence and active features.

Theory answers for the worst case: while fewer than ``(1 + 1 / mu) / 2`` features are active, mu being the largest
cosine of two directions, sparse coding with the known dictionary is sure to find which. Training has to find the
dictionary too, but on typical samples instead of the worst ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from hfsae.toy.closed_form import incoherence_bound, mutual_coherence
from hfsae.toy.recovery import RecoveryScores, recovery
from hfsae.toy.worlds import World
from hfsae.train import TrainConfig, train

_BATCH = 512
_SCORED = 8192
_FRESH = 1_000_003
"""Added to a seed for the samples that score, so that they are not those that trained."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecoverySweep:
    """What training recovers in each cell; all but the bounds are means over seeds."""

    coherences: Sequence[float]
    """Rows: mean cosine of two directions of one group of four, as `World.coherence`."""
    l0s: Sequence[float]
    """Columns: mean number of active features."""
    rec90: Float[Tensor, "rows columns"]
    """Share of true directions found to a cosine above 0.9."""
    f1: Float[Tensor, "rows columns"]
    """F1 of the firing of matched features."""
    mutual_coherence: Float[Tensor, " rows"]
    """Largest absolute cosine of two directions."""

    @property
    def bound(self) -> Float[Tensor, " rows"]:
        """`incoherence_bound` of each row: with fewer active features than this, sparse coding is sure."""
        return torch.tensor([incoherence_bound(float(mu)) for mu in self.mutual_coherence])

    def reach(self, share: float = 0.8) -> list[float]:
        """Return for each row the largest of the l0s up to which at least this share is found; 0 where none is."""
        held = (self.rec90 >= share).long().cumprod(dim=1).sum(dim=1)
        return [float(self.l0s[int(count) - 1]) if count else 0.0 for count in held]


def recovery_sweep(
    coherences: Sequence[float] = (0.0, 0.3, 0.6),
    l0s: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    *,
    n: int = 128,
    d: int = 32,
    samples: int = 256_000,
    seeds: Sequence[int] = (0,),
) -> RecoverySweep:
    """Train a TopK dictionary with k and d_sae of the truth on a uniform world in every cell, and score it.

    Args:
        coherences: Rows. Above 0.74 the mean of a group of four is within a cosine of 0.9 of its members, so that one
            direction would count as all of them found.
        l0s: Columns; each at most n / 4.
        n: True features, a multiple of 8.
        d: Dimensions.
        samples: Activations that each dictionary is trained on.
        seeds: Of worlds, samples and trainings; scores are averaged over them.

    Source: the bound is Tropp's (2004) and Donoho and Elad's (2003); see `incoherence_bound`.
    """
    scores = torch.zeros(2, len(coherences), len(l0s))
    mu = torch.zeros(len(coherences))
    for seed in seeds:
        for row, coherence in enumerate(coherences):
            for column, l0 in enumerate(l0s):
                world = World(n=n, d=d, l0=float(l0), coherence=coherence, seed=seed)
                found = recovered(world, samples, seed)
                scores[:, row, column] += torch.tensor([found.rec90, found.f1]) / len(seeds)
            mu[row] += mutual_coherence(world.directions) / len(seeds)
    return RecoverySweep(coherences=coherences, l0s=l0s, rec90=scores[0], f1=scores[1], mutual_coherence=mu)


def recovered(world: World, samples: int, seed: int) -> RecoveryScores:
    """Train a TopK dictionary on a world, with the world's own n and (rounded) l0, and score it on fresh samples.

    Args:
        samples: Activations to train on.
        seed: Of the samples and of the training.
    """
    x, _ = world.sample(samples, Generator().manual_seed(seed))
    config = TrainConfig(d_sae=world.n, k=max(round(world.l0), 1), tokens=samples, batch_size=_BATCH, seed=seed)
    dictionary = train(activations=x, config=config, progress=False)
    return recovery(dictionary, world, *world.sample(_SCORED, Generator().manual_seed(_FRESH + seed)))
