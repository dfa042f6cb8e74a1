"""The one pass over the data: what every feature does, batch by batch, in memory that does not grow with the data.

For each batch: run the model to the site and stop; encode the tokens that the dictionary stands for; add to the counts,
sums, maxima and histograms; offer the strongest firing of each row as a top context, and a random firing of each range
of strengths as a sample (random by a hash of the row's tokens, so that shards and batches do not show).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfsae.data.tokens import TokenBatch
from hfsae.features.contexts import LEFT, WIDTH, BestContexts, Contexts, joined
from hfsae.features.firings import Fired
from hfsae.features.tallies import PairCounts
from hfsae.features.together import EVERY, Together

HISTOGRAM_FROM, HISTOGRAM_BINS = -10.0, 40
"""Half-octave bins of activation strength, the first from 2^-10 and the last open: bin i begins at 2^(-10 + i / 2)."""
POSITION_BINS = 12
"""Bins of position, doubling: 0, 1-2, 3-6, 7-14 and so on."""
SAMPLES_PER_RANGE, SAMPLE_RANGES = 2, 20
"""A random sample of contexts is kept for every octave of strength."""
_COUNTS = ("count", "total", "max", "histogram", "by_position", "token_count", "previous_count")
_HASH_ROW, _HASH_POSITION, _HASH_FEATURE = 0x5851F42D4C957F2D, 0x14057B7EF767814F, 0x2545F4914F6CDD1D


@dataclass(eq=False)
class Collected:
    """What was collected so far."""

    d_sae: int
    vocabulary: int
    contexts: int
    """Top contexts kept per feature."""
    tokens: int = 0
    rows: int = 0
    count: Tensor = field(init=False)
    total: Tensor = field(init=False)
    max: Tensor = field(init=False)
    histogram: Tensor = field(init=False)
    by_position: Tensor = field(init=False)
    token_count: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.count = torch.zeros(self.d_sae, dtype=torch.int64)
        self.total = torch.zeros(self.d_sae, dtype=torch.float64)
        self.max = torch.zeros(self.d_sae)
        self.histogram = torch.zeros(self.d_sae, HISTOGRAM_BINS, dtype=torch.int64)
        self.by_position = torch.zeros(self.d_sae, POSITION_BINS, dtype=torch.int64)
        self.token_count = torch.zeros(self.vocabulary, dtype=torch.int64)
        self.previous_count = torch.zeros(self.vocabulary, dtype=torch.int64)
        self.on_token = PairCounts(self.vocabulary)
        self.after_token = PairCounts(self.vocabulary)
        self.together = Together(self.d_sae)
        self.top = BestContexts(self.d_sae, self.contexts)
        self.samples = BestContexts(self.d_sae * SAMPLE_RANGES, SAMPLES_PER_RANGE)

    def add(self, batch: TokenBatch, mask: Tensor, fired: Fired) -> None:
        """Count in one batch.

        Args: mask: The tokens that were encoded, ``[batch, seq]``; fired: their firings.
        """
        self.tokens += int(mask.sum())
        self.rows += len(mask)
        previous = torch.cat([torch.full_like(batch.input_ids[:, :1], -1), batch.input_ids[:, :-1]], 1)
        self._add_numbers(fired)
        self._add_tokens(batch.input_ids, previous, mask, fired)
        row_hash = _row_hash(batch)
        self._add_together(mask, fired, row_hash)
        self._offer(batch, fired, row_hash)

    def _add_numbers(self, fired: Fired) -> None:
        feature, value = fired.feature, fired.value
        self.count += torch.bincount(feature, minlength=self.d_sae)
        self.total += torch.bincount(feature, weights=value.double(), minlength=self.d_sae)
        self.max.scatter_reduce_(0, feature, value, "amax")
        bins = feature * HISTOGRAM_BINS + histogram_bin(value)
        self.histogram += torch.bincount(bins, minlength=self.histogram.numel()).view_as(self.histogram)
        position = (fired.position + 1).double().log2().long().clamp(max=POSITION_BINS - 1)
        places = torch.bincount(feature * POSITION_BINS + position, minlength=self.by_position.numel())
        self.by_position += places.view_as(self.by_position)

    def _add_tokens(self, ids: Tensor, previous: Tensor, mask: Tensor, fired: Fired) -> None:
        self.token_count += torch.bincount(ids[mask], minlength=self.vocabulary)
        before = previous[mask]
        self.previous_count += torch.bincount(before[before >= 0], minlength=self.vocabulary)
        self.on_token.add(fired.feature, ids[fired.row, fired.position])
        before = previous[fired.row, fired.position]
        self.after_token.add(fired.feature[before >= 0], before[before >= 0])

    def _add_together(self, mask: Tensor, fired: Fired, row_hash: Tensor) -> None:
        place = torch.arange(mask.shape[1]) * _HASH_POSITION
        sampled = mask & (_mix(row_hash[:, None] + place) % EVERY == 0)
        chosen = sampled[fired.row, fired.position]
        token = fired.row[chosen] * mask.shape[1] + fired.position[chosen]
        self.together.add(int(sampled.sum()), token, fired.feature[chosen])

    def _offer(self, batch: TokenBatch, fired: Fired, row_hash: Tensor) -> None:
        keys, order = (_token_key(batch, fired.row, fired.position) * self.d_sae + fired.feature).sort()
        values = fired.value[order]
        tie = _mix(row_hash[fired.row] + fired.position * _HASH_POSITION + fired.feature * _HASH_FEATURE)

        def offer(best: BestContexts, group: Tensor, score: Tensor, chosen: Tensor) -> None:
            chosen = chosen[best.admits(group[chosen], score[chosen])]
            if len(chosen):
                ids, f = _windows(batch, fired, chosen, keys, values, self.d_sae)
                best.add(Contexts(group[chosen], score[chosen], tie[chosen], ids, f))

        strong = self.top.admits(fired.feature, fired.value).nonzero()[:, 0]
        offer(self.top, fired.feature, fired.value, strong[_peaks(fired, strong, self.d_sae)])
        ranges = histogram_bin(fired.value) * SAMPLE_RANGES // HISTOGRAM_BINS
        # float32 holds 24 bits of the hash exactly; what they leave equal, the tie decides.
        luck = (tie >> 39).float()
        offer(self.samples, fired.feature * SAMPLE_RANGES + ranges, luck, torch.arange(len(luck)))


def to_tensors(c: Collected) -> dict[str, Tensor]:
    """Return what was collected as named tensors, all that is needed to go on collecting."""
    tensors = {name: getattr(c, name) for name in _COUNTS}
    for name in ("on_token", "after_token"):
        features, tokens, counts = getattr(c, name).pairs()
        tensors |= {f"{name}.keys": features * c.vocabulary + tokens, f"{name}.counts": counts}
    tensors |= c.together.to_tensors()
    return tensors | c.top.best().to_tensors("top") | c.samples.best().to_tensors("samples")


def from_tensors(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Collected:
    """Build what was collected from its `to_tensors`."""
    if facts["d_sae"] != len(tensors["count"]):
        raise ValueError(f"d_sae is {facts['d_sae']!r:.40}, and there are counts of {len(tensors['count'])} features")
    c = Collected(facts["d_sae"], len(tensors["token_count"]), facts["contexts"], facts["tokens"], facts["rows"])
    for name in _COUNTS:
        if tensors[name].shape != getattr(c, name).shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(getattr(c, name).shape)}")
        setattr(c, name, tensors[name].to(getattr(c, name).dtype))
    for name in ("on_token", "after_token"):
        check_range(f"{name}.keys", tensors[f"{name}.keys"], 0, c.d_sae * c.vocabulary)
        setattr(c, name, PairCounts(c.vocabulary, tensors[f"{name}.keys"], tensors[f"{name}.counts"]))
    c.together = Together.from_tensors(c.d_sae, tensors)
    c.top = BestContexts(c.d_sae, c.contexts, _contexts(c, tensors, "top", c.d_sae))
    groups = c.d_sae * SAMPLE_RANGES
    c.samples = BestContexts(groups, SAMPLES_PER_RANGE, _contexts(c, tensors, "samples", groups))
    return c


def check_range(name: str, values: Tensor, first: int, after: int) -> None:
    """Refuse numbers of a file that stand for nothing.

    Raises: ValueError: naming them.
    """
    wrong = values[(values < first) | (values >= after)]
    if len(wrong):
        raise ValueError(f"{name} holds {int(wrong[0])}, not {first} to {after - 1}")


def _contexts(c: Collected, tensors: dict[str, Tensor], name: str, groups: int) -> Contexts:
    contexts = Contexts.from_tensors(tensors, name)
    shapes = {tuple(part.shape) for part in (contexts.group, contexts.score, contexts.tie)}
    if shapes != {(len(contexts),)} or not contexts.ids.shape == contexts.f.shape == (len(contexts), WIDTH):
        raise ValueError(f"{name}: the parts of the contexts differ in size")
    check_range(f"{name}.group", contexts.group, 0, groups)
    check_range(f"{name}.ids", contexts.ids, -1, c.vocabulary)
    check_range(f"{name}.ids", contexts.ids[:, LEFT], 0, c.vocabulary)
    return contexts


def merged(one: Collected, other: Collected) -> Collected:
    """Return what one pass over the data of both would have collected."""
    facts = {"d_sae": one.d_sae, "contexts": one.contexts, "tokens": one.tokens + other.tokens}
    first, second = to_tensors(one), to_tensors(other)
    tensors = {name: first[name] + second[name] for name in _COUNTS}
    tensors["max"] = torch.maximum(one.max, other.max)
    tensors |= {name: first[name] + second[name] for name in ("together.fires", "together.tokens")}
    for name in ("on_token", "after_token", "together"):
        keys, where = torch.cat([first[f"{name}.keys"], second[f"{name}.keys"]]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        counts = torch.cat([first[f"{name}.counts"], second[f"{name}.counts"]])
        tensors[f"{name}.keys"] = keys
        tensors[f"{name}.counts"] = torch.zeros(len(keys), dtype=torch.int64).index_add_(0, where, counts)
    for name in ("top", "samples"):
        both = joined([Contexts.from_tensors(t, name) for t in (first, second)])
        tensors |= both.to_tensors(name)
    return from_tensors(facts | {"rows": one.rows + other.rows}, tensors)


def histogram_bin(value: Tensor) -> Tensor:
    """Return the bin of each activation strength."""
    return ((value.double().log2() - HISTOGRAM_FROM) * 2).floor().long().clamp(0, HISTOGRAM_BINS - 1)


def _token_key(batch: TokenBatch, row: Tensor, position: Tensor) -> Tensor:
    return row * batch.input_ids.shape[1] + position


def _peaks(fired: Fired, chosen: Tensor, d_sae: int) -> Tensor:
    """Return which of the chosen firings are the strongest of their feature in their row; of equals, the first."""
    key = fired.row[chosen] * d_sae + fired.feature[chosen]
    order = fired.position[chosen].argsort(stable=True)
    order = order[fired.value[chosen][order].argsort(descending=True, stable=True)]
    order = order[key[order].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    return order[first]


def _windows(
    batch: TokenBatch, fired: Fired, chosen: Tensor, keys: Tensor, values: Tensor, d_sae: int
) -> tuple[Tensor, Tensor]:
    """Return token ids and activations around each chosen firing; ``keys`` are sorted, with their ``values``."""
    row, feature = fired.row[chosen, None], fired.feature[chosen, None]
    position = fired.position[chosen, None] + torch.arange(-LEFT, WIDTH - LEFT)
    length = batch.input_ids.shape[1]
    inside = (position >= 0) & (position < length)
    position = position.clamp(0, length - 1)
    # The special token that opens a row stands before every text, and says nothing of this one.
    opening = (position == 0) & batch.special_mask[row, position] & (position != fired.position[chosen, None])
    inside &= batch.valid[row, position] & ~opening
    ids = batch.input_ids[row, position].masked_fill(~inside, -1)
    wanted = _token_key(batch, row, position) * d_sae + feature
    slot = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    f = torch.where(inside & (keys[slot] == wanted), values[slot], 0.0)
    return ids.int(), f


def _row_hash(batch: TokenBatch) -> Tensor:
    """Return a number for each row that depends on its tokens alone."""
    length = batch.input_ids.shape[1]
    weights = _mix(torch.arange(1, length + 1) * _HASH_ROW)
    return ((batch.input_ids + 1) * batch.valid * weights).sum(1)


def _mix(number: Tensor) -> Tensor:
    """Scramble 64-bit numbers to non-negative ones; overflow wraps around, as a hash wants."""
    number = (number ^ (number >> 31)) * _HASH_FEATURE
    return ((number ^ (number >> 29)) * _HASH_ROW) & 0x7FFFFFFFFFFFFFFF
