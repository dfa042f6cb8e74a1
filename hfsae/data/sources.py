"""Text and token ids from anywhere, as something that can be read once an epoch, each time in another order."""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from warnings import warn

from torch import Tensor

from hfsae.errors import CheckpointNotFound, HfsaeWarning, InvalidValue, MissingPackage, TrainingError

_PIECE = 2**18
"""Bytes of a text file that are read at once, about."""
_PAUSES = (1.0, 4.0, 16.0)
"""Seconds to wait before a stream that broke is opened again."""


@runtime_checkable
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
        return (self._documents[i] for i in shuffled(len(self._documents), self._seed, number))

    def describe(self) -> dict[str, Any]:
        """Return how many there are."""
        return {"data": f"{len(self._documents)} documents"}


class StreamSource:
    """Documents that come one after the other, in their own order."""

    def __init__(self, documents: Iterable[object]) -> None:
        self._documents = documents
        self.repeatable = not isinstance(documents, Iterator)

    def epoch(self, number: int) -> Iterator[object]:
        """Yield the documents; the stream itself decides their order."""
        return unbroken(self._documents)

    def describe(self) -> dict[str, Any]:
        """Return what kind of stream it is."""
        return {"data": f"a stream ({type(self._documents).__name__})"}


class FileSource:
    """Text, jsonl and parquet files, shuffled; a text file in pieces of whole lines, the others by rows."""

    repeatable = True

    def __init__(self, paths: Sequence[Path], seed: int) -> None:
        for path in paths:
            if not path.is_file():
                raise CheckpointNotFound(f"{str(path)!r} is no file. Text, .jsonl or .parquet files were expected.")
        self._paths, self._seed = list(paths), seed

    def epoch(self, number: int) -> Iterator[object]:
        """Yield the documents, the files in another order each time."""
        for index in shuffled(len(self._paths), self._seed, number):
            path = self._paths[index]
            reader = _READERS.get(path.suffix)
            pieces = shuffled(math.ceil(path.stat().st_size / _PIECE), self._seed, number)
            yield from _pieces(path, pieces) if reader is None else reader(path)

    def describe(self) -> dict[str, Any]:
        """Return their names."""
        return {"data": [path.name for path in self._paths]}


class Mixture:
    """Several sources in given proportions of documents; one that ends begins anew, so it goes on without end.

    Args:
        sources: Each with its weight.
        seed: Of the draw.
    """

    repeatable = True

    def __init__(self, sources: Sequence[tuple[Any, float]], seed: int = 0) -> None:
        if not sources or any(not weight > 0 for _, weight in sources):
            raise InvalidValue("A mixture needs sources with weights above 0. Give pairs (data, weight).")
        self._sources, self._seed = [open_source(data, seed) for data, _ in sources], seed
        self._weights = [weight for _, weight in sources]

    def epoch(self, number: int) -> Iterator[object]:
        """Yield documents drawn by weight."""
        rng = random.Random(self._seed * 1_000_003 + number)
        epochs = [number] * len(self._sources)
        streams = [iter(source.epoch(number)) for source in self._sources]
        while True:
            (index,) = rng.choices(range(len(streams)), self._weights)
            document = next(streams[index], None)
            if document is None:
                epochs[index] += 1
                streams[index] = iter(self._sources[index].epoch(epochs[index]))
                document = next(streams[index], None)
                if document is None:
                    return
            yield document

    def describe(self) -> dict[str, Any]:
        """Return the parts and their weights."""
        parts = [source.describe()["data"] for source in self._sources]
        return {"data": [[part, weight] for part, weight in zip(parts, self._weights, strict=True)]}


def unbroken(documents: Iterable[object]) -> Iterator[object]:
    """Yield what a stream holds; where it breaks, open it again and skip what was yielded before.

    Warns: HfsaeWarning: each time it is opened again.
    Raises: TrainingError: when it breaks again and again, or is an iterator, which cannot be opened twice.
    """
    done = failures = 0
    while True:
        try:
            for document in islice(documents, done, None):
                done, failures = done + 1, 0
                yield document
            return
        except _network_errors() as error:
            what = f"The data broke off after {done} documents ({type(error).__name__}: {error})."
            if isinstance(documents, Iterator):
                raise TrainingError(
                    f"{what} An iterator cannot be opened again. Pass what it was made from."
                ) from error
            if failures == len(_PAUSES):
                raise TrainingError(f"{what} It was opened {failures} times more. Check the connection.") from error
            warn(f"{what} It is opened again.", HfsaeWarning, stacklevel=2)
            time.sleep(_PAUSES[failures])
            failures += 1


def _network_errors() -> tuple[type[Exception], ...]:
    # huggingface_hub reads through httpx, whose errors are no OSError; nobody can raise them before it is loaded.
    httpx = sys.modules.get("httpx")
    return (OSError,) if httpx is None else (OSError, httpx.HTTPError)


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """Return the numbers below ``count`` in an order that follows from seed and epoch."""
    order = list(range(count))
    random.Random(seed * 1_000_003 + epoch).shuffle(order)
    return order


def open_source(data: Any, seed: int) -> Source:
    """Return data of any kind as a source.

    Args:
        data: A text, texts, token ids, rows with a "text", "input_ids" or "messages" column, conversations, a dataset,
            paths of files.
        seed: Of the order of the documents.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, Path):
        return FileSource([data], seed)
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, Path) for item in data):
        return FileSource(data, seed)
    if isinstance(data, str):
        return ListSource([data], seed)
    if isinstance(data, Tensor):
        return ListSource(data[None] if data.ndim == 1 else data, seed)
    if isinstance(data, Sequence) or (
        hasattr(data, "__len__") and hasattr(data, "__getitem__") and not _is_mapping(data)
    ):
        return ListSource(data, seed)
    return StreamSource([data] if _is_mapping(data) else data)


def _is_mapping(data: object) -> bool:
    return hasattr(data, "keys")


def _pieces(path: Path, order: Sequence[int]) -> Iterator[object]:
    """Yield a text file in pieces of whole lines: each has the lines that begin within its stretch of the file.

    So a text of gigabytes is shuffled, and neither in memory at once nor put to the tokenizer.
    """
    with path.open("rb") as file:
        for piece in order:
            end = (piece + 1) * _PIECE
            file.seek(max(piece * _PIECE - 1, 0))
            if piece:
                file.readline()  # what belongs to the piece before
            block = file.read(max(end - file.tell(), 0))
            if len(block) and not block.endswith(b"\n"):
                block += file.readline()
            if block:
                yield block.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _jsonl(path: Path) -> Iterator[object]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise InvalidValue(
                        f"{path}, line {number}, is no JSON. Each line holds one row. Correct it."
                    ) from error


def _parquet(path: Path) -> Iterator[object]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackage("Reading parquet needs pyarrow. It is not installed. Run: pip install pyarrow") from error
    for batch in parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


_READERS: dict[str, Callable[[Path], Iterator[object]]] = {".jsonl": _jsonl, ".parquet": _parquet}
