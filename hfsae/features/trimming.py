"""Make an index small: fewer, shorter contexts and rounded numbers, and none of the counts that only a pass needs.

What a card shows stays; what merging and going on need goes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from hfsae.features.collecting import SAMPLE_RANGES, SAMPLES_PER_RANGE, Collected
from hfsae.features.contexts import LEFT, WIDTH, BestContexts, Contexts


def trimmed_counts(c: Collected, contexts: int, samples: int, around: tuple[int, int]) -> Collected:
    """Return what was collected with so many top and sampled contexts per feature, each cut to ``around`` its token."""
    small = Collected(c.d_sae, c.vocabulary, contexts, c.tokens, c.rows)
    small.count, small.histogram, small.by_position = c.count, c.histogram, c.by_position
    small.total, small.max = c.total.float().double(), rounded(c.max)
    top, sampled = (_cut(best.best(), around) for best in (c.top, c.samples))
    rank, _ = _ranks(top.group, c.d_sae)
    small.top = BestContexts(c.d_sae, contexts, _in_order(top.pick(rank < contexts), c.d_sae))
    sampled = sampled.pick(_spread(sampled.group // SAMPLE_RANGES, c.d_sae, samples))
    groups = c.d_sae * SAMPLE_RANGES
    small.samples = BestContexts(groups, SAMPLES_PER_RANGE, _in_order(sampled, groups))
    return small


def trimmed_weights(weights: dict[str, Tensor], tokens: int, neighbours: int) -> dict[str, Tensor]:
    """Return so many promoted and suppressed tokens and neighbours of each feature, their numbers rounded."""
    features = ("neighbour", "cofiring")
    kept = {name: t[:, : neighbours if name.startswith(features) else tokens] for name, t in weights.items()}
    return {name: t.bfloat16().float() if t.is_floating_point() else t for name, t in kept.items()}


def rounded(values: Tensor) -> Tensor:
    """Return them as half precision holds them; as bfloat16 does where one is too large for that."""
    half = values.half()
    return (half if bool(half.isfinite().all()) else values.bfloat16()).float()


def _ranks(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the place of each entry in its group, and the size of that group; entries lie by group."""
    sizes = torch.bincount(group, minlength=groups)
    return torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group], sizes[group]


def _spread(group: Tensor, groups: int, most: int) -> Tensor:
    """Return a mask of at most so many of each group, at even distances from its first to its last."""
    rank, size = _ranks(group, groups)
    if not most:
        return torch.zeros_like(group, dtype=torch.bool)

    def before(place: Tensor) -> Tensor:
        return (2 * place * most + size) // (2 * size)

    return (size <= most) | (before(rank + 1) > before(rank))


def _cut(contexts: Contexts, around: tuple[int, int]) -> Contexts:
    """Return them narrower, and of those that now read the same for one feature only the first."""
    left, right = around
    place = torch.arange(WIDTH)
    outside = (place < LEFT - left) | (place > LEFT + right)
    ids = contexts.ids.masked_fill(outside, -1)
    cut = replace(contexts, ids=ids, f=rounded(contexts.f.masked_fill(outside, 0.0)))
    texts, text = torch.cat([contexts.group[:, None], ids], 1).unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    first = torch.full((len(texts),), len(ids)).scatter_reduce_(0, text, torch.arange(len(ids)), "amin")
    return cut.pick(first.sort().values)


def _in_order(contexts: Contexts, groups: int) -> Contexts:
    """Return them with their order in place of score and tie, which do not compress."""
    return replace(contexts, score=-_ranks(contexts.group, groups)[0].float(), tie=torch.zeros_like(contexts.tie))
