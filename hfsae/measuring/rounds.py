"""An evaluation under way: the runs of each batch, and what is summed over them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hfsae.attaching.attachment import Attachment
from hfsae.data.tokens import TokenBatch, TokenCounts, spliced_mask
from hfsae.errors import InvalidValue
from hfsae.hooks import capture
from hfsae.measuring.evaluation import Evaluation
from hfsae.measuring.passes import Passes, Run, predicts_next_token
from hfsae.measuring.scoring import VARIANTS, CallerLosses, Losses, LossFn, NextTokenLosses
from hfsae.metrics import FiringSums, ReconstructionSums, Spread, loss_recovered
from hfsae.sae.config import SAEConfig
from hfsae.sites import base_model_id

_SAME = 1e-4  # relative difference of runs of equal rows: rounding, where other tokens would show as 1e-2 or more


@dataclass(frozen=True, eq=False)
class _Ablated:
    """What the second round needs of a batch: its rows that differ under an ablation."""

    batch: TokenBatch
    spliced: Bool[Tensor, "batch seq"]
    rows: Int[Tensor, "distinct"]
    """One row of each kind."""
    row_of: Int[Tensor, "batch"]
    """For each row of the batch, which of ``rows`` it is like."""


@dataclass(frozen=True, eq=False)
class _Activations:
    """What a clean run passes at the site."""

    run: Run
    x: Float[Tensor, "batch seq d_in"]
    """What the dictionary reads."""
    y: Float[Tensor, "batch seq d_write"]
    """What it reconstructs: x, except in a transcoder."""


class Measuring:
    """An evaluation under way: its runs, and its sums."""

    def __init__(self, attachment: Attachment, policy: SAEConfig, loss_fn: LossFn | None) -> None:
        self.attachment = attachment
        self.policy = policy
        self.loss_fn = loss_fn
        self.write = attachment.write_point
        self.passes = Passes(attachment.model, self.write, whole_outputs=loss_fn is not None)
        self.losses: Losses | None = None
        self.reconstruction = ReconstructionSums(policy.d_write)
        self.firing = FiringSums(policy.d_sae)
        self.errors = Spread()
        self.valid = 0
        self.ablated: list[_Ablated] = []
        self._rows_may_be_shared: bool | None = None if loss_fn is None and self.passes.is_residual else False

    def choose_loss(self, given: list[TokenBatch]) -> None:
        """Measure losses too: the caller's, or cross-entropy where the model predicts next tokens."""
        if self.loss_fn is not None:
            self.losses = CallerLosses(self.loss_fn)
            return
        row = next((row for batch in given for row in _first_tokens(batch)), None)
        if row is None:
            raise InvalidValue(
                "No prediction can be scored: every row has a single token. Rows of two or more are needed. "
                "Give longer texts, or metrics='reconstruction'."
            )
        if not predicts_next_token(self.passes, row.to(self.passes.device)):
            raise InvalidValue(
                f"{type(self.passes.model).__name__} has no next-token loss: it gives no logits, or they depend on "
                "later tokens. evaluate needs a loss. Pass loss_fn=..., or metrics='reconstruction'."
            )
        self.losses = NextTokenLosses(self.passes)

    def first_round(self, number: int, batch: TokenBatch) -> None:
        """Add a batch to all sums but those of mean ablation."""
        batch = batch.to(self.passes.device)
        self.valid += batch.tokens
        here = self._read(batch)
        mask = spliced_mask(batch.to(here.x.device), here.x, self.policy).to(here.y.device)
        x_hat = self._reconstruct(number, here, mask)
        if self.losses is None:
            return
        filled = here.y.clone()
        filled[mask] = x_hat.to(filled)
        self.losses.add_pair(here.run, self.passes.replaced(here.run, self._edit(filled, mask)), batch)
        rows, row_of = self._distinct_rows(here, mask, batch)
        self.ablated.append(_Ablated(batch, mask, rows, row_of))
        self.losses.add("zero", self._zeroed(here.run, rows, mask), batch, row_of)

    def second_round(self, ablated: _Ablated) -> None:
        """Add a batch to the sum of mean ablation."""
        assert self.losses is not None
        inputs = {name: value[ablated.rows] for name, value in ablated.batch.model_inputs().items()}
        edit = self._edit(self.reconstruction.mean.float(), ablated.spliced[ablated.rows])
        self.losses.add("mean", self.passes.restarted(inputs, edit), ablated.batch, ablated.row_of)

    def check(self) -> None:
        """Refuse data of which no token is spliced.

        Raises: InvalidValue: when there is none.
        """
        if not self.reconstruction.tokens:
            raise InvalidValue(
                f"None of the {self.valid} tokens is spliced: all are special or excluded by the dictionary's policy. "
                "At least one other is needed. Give longer texts, or exclude_special_tokens=False."
            )

    def result(self, counts: TokenCounts) -> Evaluation:
        """Return the numbers."""
        sums, firing, point = self.reconstruction, self.firing, self.attachment.point
        first_error, counts_of_errors = self.errors.histogram()
        return Evaluation(
            model=base_model_id(self.passes.model),
            dictionary=getattr(self.attachment.dictionary, "id", None),
            site=str(point.site) if self.write is point else f"{point.site} to {self.write.site}",
            **self._losses(),
            fvu=sums.fvu,
            mse=sums.mse,
            cosine=sums.cosine,
            l2_ratio=sums.l2_ratio,
            relative_bias=sums.relative_bias,
            l0=firing.l0,
            density=firing.density,
            dead_fraction=firing.dead_fraction,
            l0_histogram=firing.by_number,
            fvu_histogram=counts_of_errors,
            fvu_histogram_from=first_error / sums.variance if sums.variance else None,
            tokens_valid=self.valid,
            tokens_spliced=sums.tokens,
            documents=counts.documents,
            documents_empty=counts.empty,
            documents_cut=counts.cut,
        )

    def _losses(self) -> dict[str, Any]:
        if self.losses is None:
            return {"loss": None, "tokens_scored": 0}
        clean, spliced, zero, mean = (self.losses.sums[variant].mean for variant in VARIANTS)
        return {
            "loss": self.losses.name,
            "ce_clean": clean,
            "ce_spliced": spliced,
            "ce_zero": zero,
            "ce_mean": mean,
            "recovered_zero": loss_recovered(clean, spliced, zero),
            "recovered_mean": loss_recovered(clean, spliced, mean),
            "kl": self.losses.kl.mean if self.losses.kl.count else None,
            "tokens_scored": self.losses.sums["clean"].count,
        }

    def _read(self, batch: TokenBatch) -> _Activations:
        inputs, points = batch.model_inputs(), [self.attachment.point, self.write]
        if self.losses is None:
            x, y = capture(self.passes.model, points, **inputs)
            return _Activations(Run(inputs, {}), x, y)
        run = self.passes.clean(inputs, watch=points)
        return _Activations(run, *run.seen)

    def _reconstruct(self, number: int, here: _Activations, mask: Tensor) -> Tensor:
        """Return what the dictionary makes of the spliced tokens, ``[tokens, d_write]``, and count it."""
        dictionary = self.attachment.dictionary
        x, y = here.x[mask.to(here.x.device)].to(dictionary.W_enc.device), here.y[mask]
        _check_finite(y, f"The model's activations at {self.write.site}", number)
        f = dictionary.encode_sparse(x)
        x_hat = dictionary.decode(f, x=x).to(y)
        _check_finite(x_hat, f"The reconstructions at {self.write.site}", number)
        self.reconstruction.add(y, x_hat)
        token, feature, _ = f.fired()
        self.firing.add(token, feature, len(x))
        self.errors.add((y - x_hat).float().square().sum(-1))
        return x_hat

    def _zeroed(self, run: Run, rows: Tensor, mask: Tensor) -> Run:
        return self.passes.replaced(run.rows(rows), self._edit(torch.zeros(self.policy.d_write), mask[rows]))

    def _edit(self, value: Tensor, mask: Tensor) -> AbstractContextManager[object]:
        # An edit that meets no token would warn; a batch without a spliced token is its own ablation.
        return self.attachment.replace(value, positions=mask) if bool(mask.any()) else nullcontext()

    def _distinct_rows(self, here: _Activations, mask: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return one row of each kind that an ablation leaves, and for each row of the batch which of them it is.

        Where the site is the whole residual stream, rows with the same tokens spliced and the same activations
        elsewhere go on alike. A model whose token ids reach later blocks in other ways is found out on the first batch.
        """
        rows = len(mask)
        apart = torch.arange(rows, device=mask.device)
        if self._rows_may_be_shared is False:
            return apart, apart
        like = _like_rows(here.y.masked_fill(mask[..., None], 0.0), mask, batch.valid.to(mask.device))
        doubled = next((row for row in range(rows) if like[row] != row), None)
        if self._rows_may_be_shared is None and doubled is not None:
            one, other = (self._zeroed(here.run, apart[row : row + 1], mask) for row in (like[doubled], doubled))
            self._rows_may_be_shared = self.passes.same(one, other, tolerance=_SAME)
            if not self._rows_may_be_shared:
                return apart, apart
        distinct = sorted(set(like))
        return apart[distinct], torch.tensor([distinct.index(row) for row in like], device=mask.device)


def _check_finite(values: Tensor, what: str, number: int) -> None:
    bad = int((~torch.isfinite(values).all(-1)).sum())
    if bad:
        raise InvalidValue(
            f"{what} are not finite in batch {number}: {bad} of {len(values)} tokens, in {values.dtype}. "
            "Finite numbers were expected. Load the model in bfloat16 or float32."
        )


def _like_rows(kept: Tensor, mask: Tensor, valid: Tensor) -> list[int]:
    """Return for each row the first one that it is like."""
    row_of: list[int] = []
    for row in range(len(kept)):
        alike = (
            other
            for other in sorted(set(row_of))
            if torch.equal(mask[row], mask[other])
            and torch.equal(valid[row], valid[other])
            and _close(kept[row][valid[row]], kept[other][valid[row]])
        )
        row_of.append(next(alike, row))
    return row_of


def _close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).float().norm()) <= 1e-6 * float(other.float().norm())


def _first_tokens(batch: TokenBatch) -> Iterator[Tensor]:
    for ids, valid in zip(batch.input_ids, batch.valid, strict=True):
        if int(valid.sum()) > 1:
            yield ids[valid][None, :8]
