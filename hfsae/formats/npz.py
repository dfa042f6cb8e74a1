"""Arrays from `.npz` files: sizes are checked before anything is inflated, and objects are refused."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from hfsae.errors import CheckpointError
from hfsae.formats.files import open_regular

# Trained weights hardly compress; a member that claims to swell more than this is a bomb.
_MOST_SWELLING, _HEADER = 20, 10_000


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the float arrays of a `.npz` file as tensors.

    Raises: CheckpointError, CheckpointNotFound: when it is not there, damaged, holds anything but float arrays, or
        claims to be larger than it can be.
    """
    with open_regular(path) as file:
        size = path.stat().st_size
        try:
            archive = zipfile.ZipFile(file)
            members = archive.infolist()
            swollen = sum(member.file_size for member in members)
            if swollen > _MOST_SWELLING * size + _HEADER:
                raise CheckpointError(
                    f"{path} has {size} bytes and claims {swollen}. Weights do not compress like that."
                )
            return {member.filename.removesuffix(".npy"): _array(path, archive, member) for member in members}
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged or no .npz file. Fetch it again.") from error


def names_in(path: Path) -> set[str]:
    """Return the names of the arrays in a `.npz` file; none when it is no such file."""
    if not path.is_file():  # a FIFO would hang
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return set()


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    where = f"{path}: {member.filename[:80]!r}"
    with archive.open(member) as stream:
        start = io.BytesIO(stream.read(min(member.file_size, _HEADER)))
        version = npy.read_magic(start)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = reader(start, max_header_size=_HEADER)
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            raise CheckpointError(f"{where} holds {dtype}. It must hold floats; objects are never unpickled.")
        declared = start.tell() + math.prod(shape) * dtype.itemsize
        if declared != member.file_size:
            raise CheckpointError(f"{where} has {member.file_size} bytes. Its shape {list(shape)} needs {declared}.")
        data = start.read() + stream.read()
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=True))
