"""The files of an index: what is said in words as JSON, the numbers as safetensors.

Numbers are stored in the narrowest type that keeps them exactly. A packed index is compressed as well; how large it is
unpacked stands in the JSON, so that a file made to burst is refused before it does.
"""

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hfsae import hub
from hfsae.errors import CheckpointError, CheckpointNotFound
from hfsae.formats import native
from hfsae.formats.files import read_json, write_folder_atomically
from hfsae.formats.safetensors_io import read_tensors, write_tensors

FACTS, NUMBERS, PACKED = "index.json", "index.safetensors", "index.safetensors.xz"
_MOST_UNPACKED = 2**32
_MOST_MEMORY = 2**28
_INTEGERS = (torch.int8, torch.int16, torch.int32)
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def write_index(folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], *, packed: bool) -> None:
    """Write the files of an index, all or none; what was in the folder is replaced."""

    def write(target: Path) -> None:
        told = dict(facts)
        write_tensors(target / NUMBERS, {name: _narrowed(tensor) for name, tensor in tensors.items()})
        if packed:
            unpacked = (target / NUMBERS).read_bytes()
            told["unpacked_bytes"] = len(unpacked)
            (target / PACKED).write_bytes(lzma.compress(unpacked, preset=9 | lzma.PRESET_EXTREME))
            (target / NUMBERS).unlink()
        (target / FACTS).write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8")

    write_folder_atomically(folder, write)


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `write_index` wrote: the facts, and the numbers as int64 and as float32 or wider.

    Raises: CheckpointError, CheckpointNotFound: when a file is missing or damaged, by name.
    """
    facts = read_json(folder / FACTS)
    if "unpacked_bytes" not in facts:
        return facts, _widened(read_tensors(folder / NUMBERS))
    with TemporaryDirectory() as aside:
        unpacked = Path(aside) / NUMBERS
        unpacked.write_bytes(_unpacked(folder / PACKED, facts["unpacked_bytes"]))
        try:
            return facts, _widened(read_tensors(unpacked))
        except CheckpointError as error:
            raise CheckpointError(f"{folder / PACKED}, unpacked: {error}") from error


def located(source: str | Path, which: Mapping[str, Any]) -> Path:
    """Return the folder of an index: the one named, or fetched from beside a dictionary on the Hub.

    Raises: CheckpointNotFound: when the repository holds no such dictionary, or no index of it.
    """
    folder = Path(source).expanduser()
    if isinstance(source, Path) or folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        return folder
    dictionary = hub.fetch(source, beside=native.FEATURE_INDEX_FILES, **which)
    if not (dictionary / native.FEATURE_INDEX / FACTS).is_file():
        raise CheckpointNotFound(
            f"{source!r} holds no feature index of {dictionary.name!r}. Make one with hfsae.index_features."
        )
    return dictionary / native.FEATURE_INDEX


def _unpacked(path: Path, size: object) -> bytes:
    if type(size) is not int or not 0 < size <= _MOST_UNPACKED:
        raise CheckpointError(f"{path.with_name(FACTS)}: unpacked_bytes is {size!r:.40}. A size was expected.")
    if not path.is_file():
        raise CheckpointError(f"{path} is not there, or no file. {FACTS} says that the index is packed in it.")
    reader = lzma.LZMADecompressor(memlimit=_MOST_MEMORY)
    try:
        data = reader.decompress(path.read_bytes(), max_length=size)
    except lzma.LZMAError as error:
        raise CheckpointError(f"{path} cannot be unpacked: {error}. Make the index again.") from error
    if len(data) != size or not reader.eof:
        raise CheckpointError(f"{path} does not unpack to {size} bytes. It is cut off, or of another index.")
    return data


def _narrowed(tensor: Tensor) -> Tensor:
    for kind in _FLOATS if tensor.is_floating_point() else _INTEGERS:
        if kind.itemsize < tensor.dtype.itemsize and torch.equal(tensor.to(kind).to(tensor.dtype), tensor):
            return tensor.to(kind)
    return tensor


def _widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor if tensor.dtype == torch.float64 else _wide(tensor) for name, tensor in tensors.items()}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor.long()
