"""What single elements of a dictionary stand for, scored alike for any dictionary, on data that did not pick it.

1. Every sample has labels: which true features made it, or which token it is, which one stands before it, whether it is
   a digit, and so on.
2. The samples are cut in two. On one part each element picks the label that fits it best.
3. On the other part it is scored by that label: the share of its strongest firings that carry it (purity), and the F1
   of "it fires" against "the label holds".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hfsae.errors import InvalidValue
from hfsae.sae.sparse import SparseFeatures

CONTEXTS = 16
"""Strongest firings of an element that its purity is taken over."""


@dataclass(frozen=True, eq=False)
class Meaning:
    """Scores of the elements that fire on both parts of the samples; 0..1, higher is better."""

    purity: Float[Tensor, " live"]
    """Share of an element's strongest firings that carry the label it picked."""
    f1: Float[Tensor, " live"]
    """F1 of its firing against the label it picked."""


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Scores of pairs of an element and a label, by key ``element * kinds + label``, sorted."""

    keys: Int[Tensor, " pairs"]
    scores: Float[Tensor, " pairs"]


def meaning(
    f: SparseFeatures,
    tokens: Int[Tensor, "count slots"],
    masks: Int[Tensor, "count more"],
    picking: Bool[Tensor, " count"],
) -> Meaning:
    """Score every element of a dictionary by the one label it fits best.

    Args:
        f: What fired, for each of the samples.
        tokens: Labels that purity is taken over, each once in a sample, -1 in slots that are empty.
        masks: Labels that F1 is taken over, likewise; for a label that holds nearly everywhere purity means nothing.
        picking: The samples on which elements pick their labels; on the others they are scored.
    Raises: InvalidValue: when there is not a label for every sample, or nothing on one side of the cut.
    """
    if not f.tokens == len(tokens) == len(masks) == len(picking):
        sizes = f"{f.tokens} samples, {len(tokens)} and {len(masks)} rows of labels, a cut of {len(picking)}"
        raise InvalidValue(f"There are {sizes}. As many of each were expected.")
    if picking.all() or not picking.any():
        raise InvalidValue("The cut leaves one side without samples. Both are needed.")
    sample, element, value = f.fired()
    parts = [_Part(sample, element, value, side) for side in (picking, ~picking)]
    live = (parts[0].fires(f.d_sae) > 0) & (parts[1].fires(f.d_sae) > 0)
    purity = _held_out(*(part.purities(tokens, f.d_sae) for part in parts), kinds=_kinds(tokens), d_sae=f.d_sae)
    f1 = _held_out(*(part.f1s(masks, f.d_sae) for part in parts), kinds=_kinds(masks), d_sae=f.d_sae)
    return Meaning(purity[live], f1[live])


class _Part:
    """The firings on one side of the cut."""

    def __init__(self, sample: Tensor, element: Tensor, value: Tensor, side: Tensor) -> None:
        mine = side[sample]
        self.sample, self.element, self.value, self.side = sample[mine], element[mine], value[mine], side

    def fires(self, d_sae: int) -> Tensor:
        return torch.bincount(self.element, minlength=d_sae)

    def purities(self, labels: Tensor, d_sae: int) -> _Pairs:
        top = self._strongest(d_sae)
        keys, counts = _count(self.sample[top], self.element[top], labels)
        return _Pairs(keys, counts / self.fires(d_sae).clamp(max=CONTEXTS)[keys // _kinds(labels)])

    def f1s(self, labels: Tensor, d_sae: int) -> _Pairs:
        kinds = _kinds(labels)
        mine = labels[self.side]
        holds = torch.bincount(mine[mine >= 0], minlength=kinds)
        keys, counts = _count(self.sample, self.element, labels)
        return _Pairs(keys, 2 * counts / (self.fires(d_sae)[keys // kinds] + holds[keys % kinds]))

    def _strongest(self, d_sae: int) -> Tensor:
        """Return the index of the strongest firings of every element."""
        order = self.value.argsort(descending=True, stable=True)
        order = order[self.element[order].argsort(stable=True)]
        counts = self.fires(d_sae)
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.element[order]]
        return order[rank < CONTEXTS]


def _kinds(labels: Tensor) -> int:
    return int(labels.max()) + 1


def _count(sample: Tensor, element: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of an element and a label that meet, as keys, and on how many of the firings they do."""
    label = labels[sample]
    keys = element[:, None] * _kinds(labels) + label
    found: tuple[Tensor, Tensor] = torch.unique(keys[label >= 0], return_counts=True)
    return found


def _held_out(picked: _Pairs, scored: _Pairs, *, kinds: int, d_sae: int) -> Float[Tensor, " d_sae"]:
    """Return how each element scores with the label that was best for it on the other side; of equals, the first."""
    element = picked.keys // kinds
    highest = torch.full((d_sae,), -1.0).scatter_reduce(0, element, picked.scores, "amax")
    best = picked.scores == highest[element]
    choice = torch.full((d_sae,), d_sae * kinds).scatter_reduce(0, element[best], picked.keys[best], "amin")
    if not len(scored.keys):
        return torch.zeros(d_sae)
    place = torch.searchsorted(scored.keys, choice).clamp(max=len(scored.keys) - 1)
    return torch.where(scored.keys[place] == choice, scored.scores[place], 0.0)
