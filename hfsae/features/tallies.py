"""Count pairs of a feature and a token in bounded memory."""

import torch
from torch import Tensor

_MOST_PAIRS = 4_000_000
_PENDING = 2_000_000


class PairCounts:
    """How often each feature was seen with each token.

    Exact up to four million different pairs; beyond, pairs seen once are forgotten each time, rarest first.

    Args: tokens: Size of the vocabulary.
    """

    def __init__(self, tokens: int, keys: Tensor | None = None, counts: Tensor | None = None) -> None:
        self._tokens = tokens
        self._keys = torch.zeros(0, dtype=torch.int64) if keys is None else keys
        self._counts = torch.zeros(0, dtype=torch.int64) if counts is None else counts
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0

    def add(self, features: Tensor, tokens: Tensor) -> None:
        """Count pairs, one for each entry."""
        keys, counts = torch.unique(features * self._tokens + tokens, return_counts=True)
        self._pending.append((keys, counts))
        self._waiting += len(keys)
        if self._waiting > _PENDING:
            self._merge()

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (feature, token, count) of each pair, by feature and token."""
        self._merge()
        return self._keys // self._tokens, self._keys % self._tokens, self._counts

    def _merge(self) -> None:
        keys = torch.cat([self._keys, *(keys for keys, _ in self._pending)])
        counts = torch.cat([self._counts, *(counts for _, counts in self._pending)])
        self._keys, where = torch.unique(keys, return_inverse=True)
        self._counts = torch.zeros(len(self._keys), dtype=torch.int64).index_add_(0, where, counts)
        self._pending, self._waiting = [], 0
        rare = 1
        while len(self._keys) > _MOST_PAIRS:
            common = self._counts > rare
            self._keys, self._counts, rare = self._keys[common], self._counts[common], 2 * rare
