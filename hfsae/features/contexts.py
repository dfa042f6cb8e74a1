"""Keep the best contexts of each group in bounded memory, the same whatever the batches and shards they come in.

A context is a window of tokens around one on which a feature fires. Candidates that cannot be among the best are
passed over at once; the others are gathered, and from time to time sorted and cut. Ties fall by a hash of the row of
tokens, so that the order of reading does not show.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

LEFT, RIGHT = 16, 8
WIDTH = LEFT + 1 + RIGHT
"""Tokens of a context; the firing one stands at index ``LEFT``."""
_PENDING = 32_768


@dataclass(frozen=True, eq=False)
class Contexts:
    """Some contexts, one per entry."""

    group: Tensor
    """What they compete within, ``[n]``: a feature, or a feature's range of strengths."""
    score: Tensor
    """The higher, the better, ``[n]``."""
    tie: Tensor
    """Hash that decides between equal scores, ``[n]``."""
    ids: Tensor
    """Token ids ``[n, WIDTH]``; -1 beyond the row."""
    f: Tensor
    """Activation of the feature on each token, ``[n, WIDTH]``."""

    def __len__(self) -> int:
        return len(self.group)

    def pick(self, chosen: Tensor) -> "Contexts":
        """Return those at an index, or under a mask."""
        return Contexts(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def to_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return them as named tensors, for a file."""
        return {f"{prefix}.{field.name}": getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], prefix: str) -> "Contexts":
        """Build them from their `to_tensors`."""
        parts = {field.name: tensors[f"{prefix}.{field.name}"] for field in fields(Contexts)}
        return Contexts(**parts | {"ids": parts["ids"].int()})

    @staticmethod
    def none() -> "Contexts":
        """Return no contexts."""
        ids = torch.zeros(0, WIDTH, dtype=torch.int32)
        empty = torch.zeros(0, dtype=torch.int64)
        return Contexts(empty, torch.zeros(0), empty, ids, torch.zeros(0, WIDTH))


def joined(parts: list[Contexts]) -> Contexts:
    """Return all of some contexts."""
    return Contexts(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Contexts)))


class BestContexts:
    """The contexts of highest score in each group.

    Args:
        groups: How many there are.
        keep: Most contexts kept in each.
    """

    def __init__(self, groups: int, keep: int, kept: Contexts | None = None) -> None:
        self.keep = keep
        self._least = torch.full((groups,), -torch.inf)
        self._kept = Contexts.none() if kept is None else kept
        self._pending: list[Contexts] = []
        self._count = 0
        self._cut()

    def admits(self, group: Tensor, score: Tensor) -> Tensor:
        """Return which candidates may be among the best: those not below the last that is kept."""
        return score >= self._least[group]

    def add(self, contexts: Contexts) -> None:
        """Count in more contexts."""
        self._pending.append(contexts)
        self._count += len(contexts)
        if self._count > max(_PENDING, len(self._kept) // 2):
            self._cut()

    def best(self) -> Contexts:
        """Return what is kept, by group and within it best first."""
        self._cut()
        return self._kept

    def _cut(self) -> None:
        contexts = joined([self._kept, *self._pending])
        order = contexts.tie.argsort(stable=True)
        order = order[contexts.score[order].argsort(descending=True, stable=True)]
        order = order[contexts.group[order].argsort(stable=True)]
        group = contexts.group[order]
        counts = torch.bincount(group, minlength=len(self._least))
        rank = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group]
        self._kept = contexts.pick(order[rank < self.keep])
        full = rank == self.keep - 1
        self._least[group[full]] = contexts.score[order[full]]
        self._pending, self._count = [], 0
