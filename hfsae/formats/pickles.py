"""Tensors from `.pt` files, with nothing unpickled: `torch.load(weights_only=True)` and no other way.

Only torch's zip container is read, its members stored as they are: a compressed one could swell, and the older
container says how much to allocate before it holds anything.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.errors import CheckpointError
from hfsae.formats.files import open_regular

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)


def read_pt(path: Path) -> dict[str, Any]:
    """Return the dict in a `.pt` file: tensors, and plain values beside them.

    Raises: CheckpointError, CheckpointNotFound: when it is not there, no torch zip, holds anything but plain data, or
        a tensor claims more than is in the file.
    """
    _check_container(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values. Nothing else is ever unpickled. "
            "Ask its publisher for safetensors."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path} holds a {type(content).__name__}. It must hold tensors by name.")
    for key, value in content.items():
        if isinstance(value, Tensor):
            _check_tensor(path, key, value)
    return content


def tensors_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors among the content of a `.pt` file."""
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def keys_of(path: Path) -> set[str]:
    """Return the keys of a `.pt` file; none when it cannot be read."""
    if path.suffix not in (".pt", ".pth") or not path.is_file():
        return set()
    try:
        return set(read_pt(path))
    except CheckpointError:
        return set()


def _check_container(path: Path) -> None:
    with open_regular(path) as file:
        try:
            members = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError) as error:
            raise CheckpointError(
                f"{path} is no torch file of today: it is damaged, cut off, or older than torch 1.6. Save it again."
            ) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path} has compressed members. torch stores them plain. It was not saved by torch.")


def _check_tensor(path: Path, key: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = list(tensor.shape)
        raise CheckpointError(f"{path}: {key[:80]!r} claims the shape {shape}, which is more than the file holds.")
