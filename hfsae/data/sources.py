"""Text and token ids from anywhere, as something that can be read once an epoch, each time in another order."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Data for `hfsae.data.tokens.batches`, an epoch at a time."""

    repeatable: bool
    """Whether there can be another epoch."""

    def epoch(self, number: int) -> Iterable[object]:
        """Return the documents of an epoch, in an order that follows from its number and the seed alone."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return where they come from, as JSON can hold it."""
        ...


class ListSource:
    """Documents that can be counted: a list of texts or of rows, a tensor of ids, a map-style dataset."""

    repeatable = True

    def __init__(self, documents: Any, seed: int) -> None:
        self._documents, self._seed = documents, seed

    def epoch(self, number: int) -> Iterator[object]:
        """Yield the documents, shuffled."""
        order = list(range(len(self._documents)))
        random.Random(self._seed * 1_000_003 + number).shuffle(order)
        return (self._documents[i] for i in order)

    def describe(self) -> dict[str, Any]:
        """Return how many there are."""
        return {"data": f"{len(self._documents)} documents"}


class StreamSource:
    """Documents that come one after the other, in their own order."""

    def __init__(self, documents: Iterable[object]) -> None:
        self._documents = documents
        self.repeatable = not isinstance(documents, Iterator)

    def epoch(self, number: int) -> Iterable[object]:
        """Return the documents; the stream itself decides their order."""
        return self._documents

    def describe(self) -> dict[str, Any]:
        """Return what kind of stream it is."""
        return {"data": f"a stream ({type(self._documents).__name__})"}


def open_source(data: Any, seed: int) -> Source:
    """Return data of any kind as a source.

    Args:
        data: A text, texts, token ids, rows with a "text" or "input_ids" column, a dataset.
        seed: Of the order of the documents.
    """
    if isinstance(data, str):
        return ListSource([data], seed)
    if isinstance(data, Tensor):
        return ListSource(torch.atleast_2d(data), seed)
    if isinstance(data, Sequence) or (
        hasattr(data, "__len__") and hasattr(data, "__getitem__") and not _is_mapping(data)
    ):
        return ListSource(data, seed)
    return StreamSource([data] if _is_mapping(data) else data)


def _is_mapping(data: object) -> bool:
    return hasattr(data, "keys")
