"""Which tokens an edit acts on: `Selector`, and `Tokens`, the forward under way as selectors see it.

Positions count real tokens: padding on either side has none, and a token fed back by `generate` stands behind those in
the cache. So a position means the same token with padding and without, with the cache and without. A negative position
counts back from the end of the prompt. Rows are prompts: beams and returned sequences of one prompt are one row.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, SupportsIndex, TypeGuard

import torch
from torch import Tensor

from hfsae.errors import InvalidType, InvalidValue, OutOfRange, Unsupported, did_you_mean
from hfsae.forwards import Forward, Generation, generation_under_way

Positions = int | slice | Sequence[int] | Tensor | None
Rows = int | slice | Sequence[int] | None
Phase = Literal["all", "prompt", "generated"]
PHASES = ("all", "prompt", "generated")


class Tokens:
    """The tokens of one forward, at one site: their rows, positions and phase."""

    def __init__(self, shape: Sequence[int], device: torch.device, forward: Forward | None) -> None:
        self.device = device
        self.forward = forward or Forward()
        batch = self.forward.shape
        self.flattened_from = batch if batch is not None and tuple(shape) == (math.prod(batch),) else None
        """Batch and sequence that a site's ``[tokens, width]`` was flattened from, where it was."""
        self.shape = self.flattened_from or tuple(shape)
        self._generation: Generation | Literal[False] | None = False

    @property
    def generation(self) -> Generation | None:
        """What `generate` is doing, if it is."""
        if self._generation is False:
            self._generation = None if torch.compiler.is_compiling() else generation_under_way()
        return self._generation

    @property
    def mask(self) -> Tensor | None:
        """The attention mask: what the forward was given or, where its cache does not count, what `generate` holds."""
        if self.forward.attention_mask is None and self.forward.past is None and self.generation is not None:
            return self.generation.attention_mask
        return self.forward.attention_mask

    @property
    def expand(self) -> int:
        """How many rows `generate` makes of each prompt."""
        generation = self.generation
        if torch.compiler.is_compiling() and self.forward.is_cached:
            # Maybe in `generate`. No graph can hold a look at the call stack, so the compiled forward is left for it.
            generation = torch.compiler.disable(generation_under_way)()  # type: ignore[no-untyped-call]
        return 1 if generation is None else generation.expand

    def check_rows(self, what: str) -> None:
        """Refuse what needs rows and positions where the activation has none."""
        if self.forward.packed:
            raise Unsupported(
                f"{what} cannot be told apart in continuous batching, which packs prompts into one row. "
                "An edit for all tokens was expected. Use generate, or drop the selector."
            )
        if len(self.shape) != 2 or (self.forward.shape is not None and self.forward.shape[0] != self.shape[0]):
            raise Unsupported(
                f"{what} cannot be told apart at this site, whose activation is {[*self.shape, '...']}. "
                "[batch, seq, width] was expected. Choose a site on the residual stream, or drop the selector."
            )

    def per_row(self, values: Tensor) -> Tensor:
        """Return ``[rows, ...]`` as ``[batch, ...]``: one entry per row, those of one prompt alike."""
        self.check_rows("Rows")
        rows, batch = len(values), self.shape[0]
        prompts = batch // self.expand
        if rows != prompts:
            raise InvalidValue(
                f"The edit has values for {rows} rows, the batch has {prompts}. One value per row was expected. "
                f"Pass {prompts} values, or one for all."
            )
        return values.repeat_interleave(self.expand, 0) if self.expand > 1 else values

    @property
    def columns(self) -> Tensor:
        """Index of each token in its row, padding and cached tokens counted: ``[seq]``."""
        past = self.past
        if past is None:
            raise Unsupported(
                "This forward does not say how many tokens came before: its cache does not count them and there is no "
                "attention mask. Positions were to be counted. Pass attention_mask=, or drop positions= and phase=."
            )
        return torch.arange(self.shape[-1], device=self.device) + past

    @property
    def past(self) -> int | Tensor | None:
        """Columns before this forward's; None where nothing tells."""
        if self.mask is not None and self.mask.ndim == 2:
            return self.mask.shape[1] - self.shape[-1]
        if self.forward.past is None and self.generation is not None and self.generation.columns is not None:
            return self.generation.columns - self.shape[-1]
        return self.forward.past

    @property
    def real(self) -> Tensor | None:
        """Which tokens are real, ``[batch, seq]``; None when all are."""
        mask = self.mask
        if mask is None or mask.ndim != 2 or mask.shape[1] < self.shape[-1] or mask.shape[0] != self.shape[0]:
            return None
        return mask[:, mask.shape[1] - self.shape[-1] :].to(self.device) != 0

    @property
    def positions(self) -> Tensor:
        """Position of each token among the real ones, ``[batch, seq]`` or ``[1, seq]``; of padding: meaningless."""
        mask, ids = self.mask, self.forward.position_ids
        if mask is not None and mask.ndim == 2:
            return self._real_so_far[:, -self.shape[-1] :] - 1
        if ids is not None:
            return ids.to(self.device)
        if mask is not None:
            raise Unsupported(
                f"The attention mask is {list(mask.shape)} and there are no position ids. Positions count real tokens, "
                "which a [batch, seq] mask tells. Pass position_ids= or a mask of that shape."
            )
        return self.columns[None]

    @property
    def _real_so_far(self) -> Tensor:
        assert self.mask is not None
        return (self.mask != 0).to(self.device).long().cumsum(-1)

    @property
    def prompt_columns(self) -> int | Tensor:
        """Columns of the prompt; 0 where this forward only holds tokens that came after it."""
        if self.generation is not None and self.generation.prompt is not None:
            return self.generation.prompt
        if isinstance(self.past, Tensor):
            return torch.where(self.past == 0, self.shape[-1], 0)
        return 0 if self.past else self.shape[-1]

    @property
    def from_end(self) -> Tensor:
        """Position counted from the end of the prompt, whose last real token is -1; generated tokens are >= 0."""
        prompt = self.prompt_columns
        if self.mask is not None and self.mask.ndim == 2 and isinstance(prompt, int) and prompt:
            return self.positions - self._real_so_far[:, prompt - 1 : prompt]
        return (self.columns - prompt)[None]

    def in_phase(self, phase: str) -> Tensor:
        """Return which tokens belong to the prompt, or came after it: ``[1, seq]``."""
        generated = self.columns[None] >= self.prompt_columns
        return generated if phase == "generated" else ~generated


@dataclass(frozen=True, kw_only=True, eq=False)
class Selector:
    """Which tokens an edit acts on: those that meet every condition given."""

    positions: tuple[int, ...] | slice | Tensor | None = None
    """Positions among the real tokens of a row, or a bool mask ``[rows, seq]`` of columns."""
    rows: tuple[int, ...] | slice | None = None
    """Rows of the batch, by prompt."""
    of_rows: int | None = None
    """How many rows the batch must have; None takes any number."""
    phase: Phase = "all"
    """``"prompt"``, ``"generated"`` or both."""

    @staticmethod
    def of(positions: object = None, rows: object = None, phase: object = "all") -> "Selector":
        """Check what a caller passed and return it as a selector.

        Raises:
            InvalidType: when positions or rows are no integers, slice or bool mask.
            InvalidValue: when there are none, or the phase is unknown.
        """
        if phase not in PHASES:
            raise InvalidValue(f"phase={phase!r} is unknown.{did_you_mean(str(phase), PHASES)}")
        if isinstance(positions, Tensor) and positions.dtype == torch.bool:
            return Selector(positions=_mask(positions), rows=_indices("rows", rows), phase=phase)  # type: ignore[arg-type]
        return Selector(positions=_indices("positions", positions), rows=_indices("rows", rows), phase=phase)  # type: ignore[arg-type]

    @property
    def selects_all(self) -> bool:
        """It has no condition at all."""
        return self.positions is None and self.rows is None and self.phase == "all"

    def mask(self, tokens: Tokens) -> Tensor | None:
        """Return which tokens of a forward are meant, bool, broadcasting to ``[batch, seq]``; None for all."""
        if self.selects_all:
            return None
        tokens.check_rows("Positions and rows")
        chosen = [self._by_position(tokens), self._by_row(tokens)]
        if self.phase != "all":
            chosen.append(tokens.in_phase(self.phase))
        masks = [mask for mask in chosen if mask is not None]
        mask = masks[0]
        for other in masks[1:]:
            mask = mask & other
        return mask

    def _by_position(self, tokens: Tokens) -> Tensor | None:
        if self.positions is None:
            return None
        if isinstance(self.positions, Tensor):
            return _columns_of_mask(self.positions, tokens)
        if isinstance(self.positions, slice):
            chosen = _in_slice(self.positions, tokens)
        else:
            chosen = _among(self.positions, tokens)
        return chosen if tokens.real is None else chosen & tokens.real

    def _by_row(self, tokens: Tokens) -> Tensor | None:
        if self.rows is None:
            return None
        prompts = tokens.shape[0] // tokens.expand
        wanted = range(prompts)[self.rows] if isinstance(self.rows, slice) else self.rows
        if self.of_rows is not None and self.of_rows != prompts:
            raise InvalidValue(
                f"The sweep has {self.of_rows} edits, the batch has {prompts} rows. One row per edit was expected. "
                f"Repeat the prompt {self.of_rows} times."
            )
        outside = [row for row in wanted if not -prompts <= row < prompts]
        if outside:
            raise OutOfRange(
                f"rows={outside[0]} is out of range: the batch has {prompts} rows. Name 0 to {prompts - 1}."
            )
        mask = torch.zeros(prompts, 1, dtype=torch.bool)
        mask[list(wanted)] = True
        return mask.repeat_interleave(tokens.expand, 0).to(tokens.device)


def _mask(mask: Tensor) -> Tensor:
    if mask.ndim == 1:
        mask = mask[None]
    if mask.ndim != 2:
        raise InvalidValue(f"positions is a mask of shape {list(mask.shape)}. A mask [batch, seq] was expected.")
    return mask


def _indices(name: str, given: object) -> tuple[int, ...] | slice | None:
    if given is None:
        return None
    if isinstance(given, slice):
        if any(bound is not None and not _is_whole(bound) for bound in (given.start, given.stop, given.step)):
            raise InvalidType(f"{name}={given!r} has bounds that are no whole numbers.")
        if given.step not in (None, 1):
            raise InvalidValue(f"{name}={given!r} has a step. Pass the indices as a list.")
        return given
    if isinstance(given, Tensor):
        given = given.flatten().tolist()
    listed: list[object] = (
        list(given) if isinstance(given, Sequence | range) and not isinstance(given, str) else [given]
    )
    if not listed:
        raise InvalidValue(f"{name} is empty. One index or more was expected. Leave it out to mean all.")
    wrong = [index for index in listed if not _is_whole(index)]
    if wrong:
        raise InvalidType(f"{name} has {wrong[0]!r}. Whole numbers, a slice or a bool mask were expected.")
    return tuple(operator.index(index) for index in listed if _is_whole(index))


def _is_whole(index: object) -> TypeGuard[SupportsIndex]:
    return isinstance(index, SupportsIndex) and not isinstance(index, bool)


def _among(positions: tuple[int, ...], tokens: Tokens) -> Tensor:
    front = [position for position in positions if position >= 0]
    back = [position for position in positions if position < 0]
    found = []
    if front:
        found.append(torch.isin(tokens.positions, torch.tensor(front, device=tokens.device)))
    if back:
        found.append(torch.isin(tokens.from_end, torch.tensor(back, device=tokens.device)))
    return found[0] if len(found) == 1 else found[0] | found[1]


def _in_slice(wanted: slice, tokens: Tokens) -> Tensor:
    chosen = torch.ones_like(tokens.positions, dtype=torch.bool)
    if wanted.start is not None:
        chosen = chosen & ((tokens.positions if wanted.start >= 0 else tokens.from_end) >= wanted.start)
    if wanted.stop is not None:
        chosen = chosen & ((tokens.positions if wanted.stop >= 0 else tokens.from_end) < wanted.stop)
    return chosen


def _columns_of_mask(mask: Tensor, tokens: Tokens) -> Tensor:
    """Return the part of a mask that this forward's columns stand for; columns beyond it are not chosen."""
    mask = mask.to(tokens.device)
    if len(mask) > 1:
        mask = tokens.per_row(mask)
    past = tokens.past
    if past == 0 and mask.shape[1] == tokens.shape[1]:
        return mask
    if tokens.generation is None and past == 0:
        raise InvalidValue(
            f"positions is a mask of {list(mask.shape)}, the activation has {list(tokens.shape)} tokens. "
            "A mask [batch, seq] of the same columns was expected."
        )
    columns = tokens.columns
    inside = columns < mask.shape[1]
    return mask[:, columns.clamp(max=mask.shape[1] - 1)] & inside
