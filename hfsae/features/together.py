"""Which features fire together: counted on one token of sixteen, chosen by a hash of its row and place.

The same token is chosen whatever batch or shard it comes in. Every sixteenth is enough, since pairs that fire together
often are what is looked for, and a token on which 16 features fire counts for 120 pairs.
"""

import torch
from torch import Tensor

from hfsae.features.tallies import PairCounts

EVERY = 16
_LEAST = 3
"""Pairs met less often prove nothing."""


class Together:
    """How often features fire on the same token, over a sample of tokens.

    Args: d_sae: Number of features.
    """

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self.tokens = 0
        self.fires = torch.zeros(d_sae, dtype=torch.int64)
        self.pairs = PairCounts(d_sae)

    def add(self, tokens: int, token: Tensor, feature: Tensor) -> None:
        """Count more of the sampled tokens, given for each firing on them which of them it was on, and its feature."""
        self.tokens += tokens
        self.fires += torch.bincount(feature, minlength=self.d_sae)
        order = (token * self.d_sae + feature).argsort()
        token, feature = token[order], feature[order]
        # After an entry, those of its token that remain: each pair once, the lower feature first.
        after = torch.searchsorted(token, token, right=True) - torch.arange(len(token)) - 1
        first = torch.arange(len(token)).repeat_interleave(after)
        step = torch.arange(len(first)) - (after.cumsum(0) - after).repeat_interleave(after)
        self.pairs.add(feature[first], feature[first + 1 + step])

    def nearest(self, most: int) -> tuple[Tensor, Tensor]:
        """Return the features whose firing correlates most with that of each: (ids, phi), ``[d_sae, most]``.

        Ids are -1 where there are not so many. Phi is the correlation of firing: 1 where both fire on the same tokens.
        """
        one, other, both = self.pairs.pairs()
        often = both >= _LEAST
        one, other, both = torch.cat([one[often], other[often]]), torch.cat([other[often], one[often]]), both[often]
        phi = correlation(both.repeat(2).double(), self.fires[one].double(), self.fires[other].double(), self.tokens)
        order = phi.argsort(descending=True, stable=True)
        order = order[one[order].argsort(stable=True)]
        one, other, phi = one[order], other[order], phi[order]
        sizes = torch.bincount(one, minlength=self.d_sae)
        rank = torch.arange(len(one)) - (sizes.cumsum(0) - sizes)[one]
        ids, values = torch.full((self.d_sae, most), -1), torch.zeros(self.d_sae, most)
        shown = (rank < most) & (phi > 0)
        ids[one[shown], rank[shown]] = other[shown]
        values[one[shown], rank[shown]] = phi[shown].float()
        return ids, values

    def to_tensors(self) -> dict[str, Tensor]:
        """Return it as named tensors, for a file."""
        one, other, counts = self.pairs.pairs()
        keys = one * self.d_sae + other
        return {
            "together.keys": keys,
            "together.counts": counts,
            "together.fires": self.fires,
            "together.tokens": torch.tensor([self.tokens]),
        }

    @staticmethod
    def from_tensors(d_sae: int, tensors: dict[str, Tensor]) -> "Together":
        """Build it from its `to_tensors`."""
        found = Together(d_sae)
        found.tokens, found.fires = int(tensors["together.tokens"][0]), tensors["together.fires"].long()
        if len(found.fires) != d_sae:
            raise ValueError(f"together.fires is {list(found.fires.shape)}, not [{d_sae}]")
        found.pairs = PairCounts(d_sae, tensors["together.keys"], tensors["together.counts"])
        return found


def correlation(both: Tensor, one: Tensor, other: Tensor, tokens: int) -> Tensor:
    """Return the correlation of firing (phi), given on how many tokens both fire, and each."""
    spread = (one * (tokens - one) * other * (tokens - other)).sqrt()
    return torch.where(spread > 0, (tokens * both - one * other) / spread.clamp(min=1.0), 0.0)
