"""A ring in which a stream of activations is shuffled, in place and in stated memory.

1. The ring is filled. A random order of its slots is drawn.
2. Batches are read along that order. Each slot that was read is filled with the stream's next row, a while later: what
   was read last can be looked at again (`past`).
3. At the end of the order a new one is drawn. So a row waits about one ring's length, at random, and is read just once.
4. When the stream ends, what is left is read out, in random order.

Everything can be saved and taken up again: slots, order, place in the stream, random state.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hfsae.errors import InvalidValue, TrainingError

_KEPT = 16_384
"""Rows that stay in their slots for a while after they were read."""


@runtime_checkable
class Rows(Protocol):
    """Activations to train on, in chunks; read again from the start as another epoch."""

    width: int
    """Numbers in a row."""
    repeatable: bool
    """Whether there can be another epoch."""

    def chunks(self, epoch: int, skip: int) -> Iterator[Tensor]:
        """Yield the chunks ``[n, width]`` of an epoch but for the first ``skip``, without their cost where possible."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return where the activations come from, as JSON can hold it."""
        ...


class ShuffleRing:
    """Random batches of a stream of rows.

    Args:
        rows: The stream.
        capacity: Rows held; memory is ``capacity * width`` numbers.
        limit: Rows taken from the stream in all.
        seed: Of the order.
    """

    def __init__(self, rows: Rows, *, capacity: int, limit: int, seed: int) -> None:
        self.rows, self.capacity, self.limit = rows, min(capacity, limit), limit
        self.epoch, self.chunk, self.taken = 0, 0, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._chunks: Iterator[Tensor] | None = None
        self._ended = False
        self._pending: Tensor | None = None
        self._slots: Tensor | None = None
        self._order = torch.zeros(0, dtype=torch.int64)
        self._read = self._filled = 0

    def take(self, count: int) -> Float[Tensor, "count width"]:
        """Return the next ``count`` rows; fewer, at last none, when the stream has ended.

        Slots are filled before their order is drawn anew, so that a stream that breaks (`TrainingError`) costs no row:
        what `state` returns then goes on without a gap.
        """
        self._open()
        assert self._slots is not None
        parts: list[Tensor] = []
        while count:
            try:
                self._refill()
            except TrainingError:
                if parts:
                    break  # what was read is not lost; the next call meets the error again
                raise
            if self._read == len(self._order):
                self._reorder()
            if not len(self._order):
                break
            chosen = self._order[self._read : self._read + count]
            parts.append(self._slots[chosen])
            self._read += len(chosen)
            count -= len(chosen)
        if not parts:
            return self._slots[:0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def peek(self, count: int) -> Float[Tensor, "count width"]:
        """Return up to ``count`` rows that are still to come, without taking them."""
        self._open()
        assert self._slots is not None
        return self._slots[self._order[self._read : self._read + count]]

    def past(self, count: int) -> Float[Tensor, "count width"]:
        """Return up to ``count`` of the rows that were taken last; fewer, or none, where a new order has begun."""
        if self._slots is None:
            return torch.zeros(0, self.rows.width)
        return self._slots[self._order[max(self._filled, self._read - count) : self._read]]

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs to go on exactly from here."""
        tensors = {
            "order": self._order,
            "generator": self._generator.get_state(),
            **({} if self._slots is None else {"slots": self._slots}),
            **({} if self._pending is None else {"pending": self._pending}),
        }
        numbers = ("epoch", "chunk", "taken", "_ended", "_read", "_filled")
        return {"tensors": tensors, "numbers": {name.lstrip("_"): int(getattr(self, name)) for name in numbers}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was called, on the same stream."""
        tensors, numbers = state["tensors"], state["numbers"]
        self._order, self._slots, self._pending = tensors["order"], tensors.get("slots"), tensors.get("pending")
        self._generator.set_state(tensors["generator"])
        self.epoch, self.chunk, self.taken = (numbers[name] for name in ("epoch", "chunk", "taken"))
        self._ended, self._read, self._filled = bool(numbers["ended"]), numbers["read"], numbers["filled"]
        self._chunks = None

    def _open(self) -> None:
        if self._slots is not None:
            return
        first = self._next_chunk()
        if first is None:
            raise InvalidValue(
                "The data hold no activations to train on. At least one token that is not left out is needed. "
                "An iterator that was used up before gives none: pass the data anew."
            )
        self._pending = first
        self._slots = first.new_empty(self.capacity, self.rows.width)
        self._order, self._read = torch.arange(self.capacity), self.capacity
        self._refill()
        self._reorder()

    def _reorder(self) -> None:
        filled = self._order[: self._filled]
        self._order = filled[torch.randperm(len(filled), generator=self._generator)]
        self._read = self._filled = 0

    def _refill(self) -> None:
        assert self._slots is not None
        due = self._read if self._read == len(self._order) else self._read - _KEPT
        while self._filled < due:
            if self._pending is None:
                self._pending = self._next_chunk()
                if self._pending is None:
                    return
            room = due - self._filled
            part, rest = self._pending[:room], self._pending[room:]
            self._slots[self._order[self._filled : self._filled + len(part)]] = part
            self._filled += len(part)
            self._pending = rest.clone() if len(rest) else None

    def _next_chunk(self) -> Tensor | None:
        """Return the next chunk that is not empty, going on to the next epoch where there is one."""
        while not self._ended and self.taken < self.limit:
            if self._chunks is None:
                self._chunks = self.rows.chunks(self.epoch, self.chunk)
            try:
                chunk = next(self._chunks, None)
            except TrainingError:
                self._chunks = None  # a generator that raised has ended: the next call has to open it anew
                raise
            if chunk is None:
                empty = self.chunk == 0
                self.epoch, self.chunk, self._chunks = self.epoch + 1, 0, None
                self._ended = empty or not self.rows.repeatable
                continue
            self.chunk += 1
            chunk = chunk[: self.limit - self.taken]
            self.taken += len(chunk)
            if len(chunk):
                return chunk
        return None
