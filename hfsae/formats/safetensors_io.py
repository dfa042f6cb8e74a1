"""The safetensors container, read with nothing believed that was not checked.

1. The header's length is compared with the file's; the header must be UTF-8 JSON without duplicate keys.
2. Every tensor needs a known dtype, a shape of plain integers, and offsets that are exactly its size; together they
   must fill the file without holes, overlaps or a rest.
3. Names and shapes are compared with what the caller expects. Only now is anything allocated.
4. Whole tensors of a large file are mapped (private, copied when written to), those of a small one are read; rows are
   read one by one, so that 16 rows of a gigabyte cost 16 rows.
"""

import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from hfsae.errors import CheckpointError
from hfsae.formats.files import open_regular, parse_json_object, read_json, write_folder_atomically

__all__ = [
    "TensorInfo",
    "check_finite",
    "check_shapes",
    "read_header",
    "read_json",
    "read_tensors",
    "write_folder_atomically",
    "write_tensors",
]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LARGEST_HEADER = 16 * 2**20
_MOST_TENSORS = 10_000
# Below, a file is read whole: a mapped one that somebody cuts short in place would kill the process at its next use.
_MAPPED_FROM = 32 * 2**20


class TensorInfo(NamedTuple):
    """What a header says about a tensor, checked."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    stop: int
    """Byte after the last."""


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return what a safetensors file says it holds, and its metadata.

    Raises: CheckpointError, CheckpointNotFound: when it is not there, or its header is not sound.
    """
    with open_regular(path) as file:
        return _header(file, path)


def read_tensors(
    path: Path,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    *,
    optional: Iterable[str] = (),
    rows: Mapping[str, Tensor] | None = None,
    finite: bool = True,
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Args:
        expected: The whole shape of each tensor; then no other may be there, and all must be float. None accepts any.
        optional: Those of `expected` that may be missing.
        rows: For a tensor named here, only these rows (of its first dimension) are read.
        finite: Refuse NaN and infinity; False leaves that to a caller who looks at every number anyway.
    Raises: CheckpointError, CheckpointNotFound: when the file is not there, not sound or not what was expected.
    """
    rows = rows or {}
    with open_regular(path) as file:
        infos, _ = _header(file, path)
        if expected is not None:
            check_shapes(path, infos, expected, optional)
        whole = {name: info for name, info in infos.items() if name not in rows}
        tensors = _whole(file, path, whole)
        for name, ids in rows.items():
            if name in infos:
                tensors[name] = _rows(file, path, name, infos[name], ids)
    if finite:
        for name, tensor in tensors.items():
            check_finite(path, name, tensor)
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file; it is not synced, since `write_folder_atomically` does that."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def check_shapes(
    path: Path,
    infos: Mapping[str, TensorInfo] | Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    optional: Iterable[str] = (),
) -> None:
    """Refuse a file whose tensors are not those expected, by name, shape and kind of number.

    Raises: CheckpointError: naming file, key and both shapes.
    """
    missing = sorted(set(expected) - set(infos) - set(optional))
    extra = sorted(set(infos) - set(expected))
    if missing:
        held = _listed(infos)
        raise CheckpointError(f"{path} has no tensor {missing[0]!r}. It needs {_listed(expected)}, and holds {held}.")
    if extra:
        raise CheckpointError(f"{path} holds an unexpected tensor {extra[0][:80]!r}. It may hold {_listed(expected)}.")
    for name, info in infos.items():
        if tuple(info.shape) != tuple(expected[name]):
            shapes = f"{list(info.shape)}. It must be {list(expected[name])}"
            turned = " It is the transpose." if tuple(info.shape) == tuple(expected[name])[::-1] else ""
            raise CheckpointError(f"{path}: {name!r} is {shapes}, by its config.{turned}")
        if not info.dtype.is_floating_point:
            raise CheckpointError(f"{path}: {name!r} holds {info.dtype}. Weights must be floating point.")


def check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor with a NaN or an infinity.

    Raises: CheckpointError: naming file, key and how many.
    """
    # One sum is the cheapest pass there is, and NaN and infinity show in it; it may overflow, hence the count.
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return
    wrong = sum(part.numel() - int(torch.isfinite(part).sum()) for part in torch.split(tensor.flatten(), 2**22))
    if wrong:
        raise CheckpointError(f"{path}: {name!r} holds {wrong} numbers that are NaN or infinite. All must be finite.")


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(repr(n[:80]) for n in shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    first = os.pread(file.fileno(), 8, 0)
    _refuse_other_kinds(path, os.pread(file.fileno(), 64, 0))
    if len(first) < 8:
        raise CheckpointError(f"{path} has {size} bytes. A safetensors file has at least 10. Fetch it again.")
    (length,) = struct.unpack("<Q", first)
    if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
        raise CheckpointError(
            f"{path} declares a header of {length} bytes in a file of {size}. It is cut off, or no safetensors file."
        )
    header = os.pread(file.fileno(), length, 8)
    _refuse_too_many(path, header.count(b'"data_offsets"'))  # counted in the text first: parsing a crowd takes long
    declared = parse_json_object(header, f"{path} (its header)")
    metadata = declared.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: its metadata is not text by name, as safetensors requires.")
    _refuse_too_many(path, len(declared))
    infos = {name: _info(path, name, entry, 8 + length) for name, entry in declared.items()}
    _check_filled(path, infos, 8 + length, size)
    return infos, metadata


def _refuse_too_many(path: Path, tensors: int) -> None:
    if tensors > _MOST_TENSORS:
        raise CheckpointError(f"{path} declares {tensors} tensors. No dictionary has more than {_MOST_TENSORS}.")


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    kinds = {
        b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull`",
        b"<": "an HTML or XML page; the download failed",
        b"PK\x03\x04": "a zip or a torch pickle, which is never unpickled here",
        b"\x80": "a pickle, which is never unpickled here",
    }
    for prefix, kind in kinds.items():
        # A header of 60 or 128 bytes begins with "<" or "\x80" too; seven zero bytes and a brace follow then.
        if start.startswith(prefix) and start[8:9] != b"{":
            raise CheckpointError(f"{path} is {kind}. A safetensors file was expected.")


def _info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    where = f"{path}: {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} is declared without exactly dtype, shape and data_offsets.")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where} has the dtype {str(entry['dtype'])[:40]!r}. Known: {', '.join(_DTYPES)}.")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > 8:
        raise CheckpointError(f"{where} has the shape {str(shape)[:80]}. It must be at most 8 sizes of 0 or more.")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where} has the offsets {str(offsets)[:80]}. They must be two positions.")
    start, stop = offsets
    size = math.prod(shape) * dtype.itemsize
    if stop - start != size:
        raise CheckpointError(f"{where} spans {stop - start} bytes. Its shape {shape} and dtype need {size}.")
    return TensorInfo(dtype, tuple(shape), data + start, data + stop)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_filled(path: Path, infos: Mapping[str, TensorInfo], start: int, size: int) -> None:
    end = start
    for name, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            what = "overlaps another tensor" if info.start < end else "leaves a hole before it"
            raise CheckpointError(f"{path}: {name[:80]!r} {what}. Tensors must follow one another. Fetch it again.")
        end = info.stop
    if end != size:
        what = f"is cut off: {end - size} bytes are missing" if end > size else f"has {size - end} bytes too many"
        raise CheckpointError(f"{path} {what}. Its header declares {end}, it has {size}. Fetch it again.")


def _whole(file: BinaryIO, path: Path, infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    size = sum(info.stop - info.start for info in infos.values())
    if size < _MAPPED_FROM:
        return {name: _from_file(file, path, name, info) for name, info in infos.items()}
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _view(mapped, info) for name, info in infos.items()}


def _view(buffer: mmap.mmap, info: TensorInfo) -> Tensor:
    count = math.prod(info.shape)
    if not count:
        return torch.empty(info.shape, dtype=info.dtype)
    if info.start % info.dtype.itemsize:
        raw = torch.frombuffer(buffer, dtype=torch.uint8, count=info.stop - info.start, offset=info.start)
        return raw.clone().view(info.dtype).view(info.shape)
    return torch.frombuffer(buffer, dtype=info.dtype, count=count, offset=info.start).view(info.shape)


def _from_file(file: BinaryIO, path: Path, name: str, info: TensorInfo) -> Tensor:
    tensor = torch.empty(info.shape, dtype=info.dtype)
    _fill(file, f"{path}: {name!r}", _bytes_of(tensor), info.start)
    return tensor


def _rows(file: BinaryIO, path: Path, name: str, info: TensorInfo, ids: Tensor) -> Tensor:
    out = torch.empty((len(ids), *info.shape[1:]), dtype=info.dtype)
    stride = math.prod(info.shape[1:]) * info.dtype.itemsize
    raw = _bytes_of(out)
    for position, row in enumerate(ids.tolist()):
        part = raw[position * stride : (position + 1) * stride]
        _fill(file, f"{path}: {name!r}", part, info.start + row * stride)
    return out


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _fill(file: BinaryIO, what: str, buffer: memoryview, start: int) -> None:
    done = 0
    while done < len(buffer):
        got = os.preadv(file.fileno(), [buffer[done : done + 2**30]], start + done)
        if not got:
            raise CheckpointError(f"{what} ended while it was read. The file has changed. Load it again.")
        done += got
