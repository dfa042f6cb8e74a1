"""The losses of runs, summed over all predictions: next-token cross-entropy and KL, or a loss of the caller's."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from hfsae.data.tokens import TokenBatch
from hfsae.errors import InvalidType
from hfsae.measuring.passes import Passes, Run
from hfsae.metrics import LossSums, cross_entropy, kl_divergence

LossFn = Callable[[Any, TokenBatch], Tensor]
VARIANTS = ("clean", "spliced", "zero", "mean")
_LOGITS_AT_ONCE = 2**24  # 64 MB in float32: enough for a kernel to be busy, little beside a model


class NextTokenLosses:
    """Cross-entropy in nats per scored prediction, and KL(clean || spliced) per valid token."""

    name = "cross-entropy"

    def __init__(self, passes: Passes) -> None:
        self.sums = {variant: LossSums() for variant in VARIANTS}
        self.kl = LossSums()
        self._passes = passes

    def add_pair(self, clean: Run, spliced: Run, batch: TokenBatch) -> None:
        """Count a batch run clean and spliced."""
        targets, scored = next_tokens(batch)
        for at in self._blocks(clean, batch):
            logits, other = self._passes.logits(clean, at), self._passes.logits(spliced, at)
            self.sums["clean"].add(cross_entropy(logits, targets[:, at])[scored[:, at]])
            self.sums["spliced"].add(cross_entropy(other, targets[:, at])[scored[:, at]])
            self.kl.add(kl_divergence(logits, other)[batch.valid[:, at]])

    def add(self, variant: str, run: Run, batch: TokenBatch, row_of: Tensor) -> None:
        """Count a batch of which only the distinct rows were run."""
        targets, scored = next_tokens(batch)
        for at in self._blocks(run, batch):
            # cross_entropy of each row of the batch, without a copy of the logits for rows that are the same.
            logits = self._passes.logits(run, at).float()
            positions = torch.arange(len(at), device=logits.device)
            picked = logits[row_of[:, None], positions, targets[:, at]]
            self.sums[variant].add((logits.logsumexp(-1)[row_of] - picked)[scored[:, at]])

    def _blocks(self, run: Run, batch: TokenBatch) -> Iterator[Tensor]:
        positions = torch.arange(batch.valid.shape[1], device=batch.valid.device)
        vocabulary = self._passes.logits(run, positions[:1]).shape[-1]
        step = max(1, _LOGITS_AT_ONCE // (vocabulary * len(batch.valid)))
        for start in range(0, len(positions), step):
            yield positions[start : start + step]


class CallerLosses:
    """What a caller's loss makes of the outputs: one number per item, or the mean of a batch."""

    name = "loss_fn"

    def __init__(self, loss_fn: LossFn) -> None:
        self.sums = {variant: LossSums() for variant in VARIANTS}
        self.kl = LossSums()
        self._loss_fn = loss_fn

    def add_pair(self, clean: Run, spliced: Run, batch: TokenBatch) -> None:
        """Count a batch run clean and spliced."""
        for variant, run in (("clean", clean), ("spliced", spliced)):
            self.add(variant, run, batch, torch.arange(len(batch.valid)))

    def add(self, variant: str, run: Run, batch: TokenBatch, row_of: Tensor) -> None:
        """Count a batch; every row of it was run."""
        loss = self._loss_fn(run.outputs, batch)
        if not isinstance(loss, Tensor):
            raise InvalidType(f"loss_fn returned a {type(loss).__name__}. A tensor was expected, of any shape.")
        # A mean counts once for each row that it is a mean of.
        self.sums[variant].add(loss.expand(len(row_of)) if loss.dim() == 0 else loss)


Losses = NextTokenLosses | CallerLosses


def next_tokens(batch: TokenBatch) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """Return for each position the id that comes next, and whether that prediction is scored: both tokens are valid."""
    targets = functional.pad(batch.input_ids[:, 1:], (0, 1))
    return targets, batch.valid & functional.pad(batch.valid[:, 1:], (0, 1))
