"""Files that may be damaged or hostile, and folders that are whole at every instant.

Reading: only regular files are opened (a FIFO would hang), sizes are checked before anything is read, JSON is refused
when it has duplicate keys, is nested beyond reason or holds numbers no config needs. Errors name the file and never
quote it: a link may lead to a private one.

Writing: a folder is written aside, every file is synced and made readable, and one rename puts it in place; an existing
folder is exchanged for the new one in one step where the system can. Killed at any instant, one of the two is there.
"""

import ctypes
import errno
import glob
import json
import os
import platform
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from uuid import uuid4
from zlib import crc32

from hfsae.errors import CheckpointError, CheckpointNotFound

_LARGEST_JSON = 16 * 2**20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, unbuffered; anything else is refused without being opened.

    Raises:
        CheckpointNotFound: when there is nothing at that path.
        CheckpointError: when it is no regular file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is {_kind_of(path)}. A dictionary is read from regular files only.")
        # Not blocking: should it have become a FIFO since, opening returns instead of waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise _unreadable(path, error) from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{path} is no regular file. A dictionary is read from regular files only.")
        yield file


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; a byte-order mark is accepted.

    Raises: CheckpointError, CheckpointNotFound: when it is not there, no UTF-8, no JSON object, larger than 16 MB,
        nested too deep, or has a key twice.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_JSON:
            raise CheckpointError(f"{path} has {size} bytes. A config has at most {_LARGEST_JSON}. It is no config.")
        return parse_json_object(_read_all(file, size), str(path))


def parse_json_object(data: bytes, source: str) -> dict[str, Any]:
    """Return the JSON object that bytes hold; `source` names them in errors.

    Raises: CheckpointError: as `read_json`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(
                f"{source} holds the key {twice[:80]!r} twice. Which one counts is unknown. Remove one."
            )
        return values

    def refuse(constant: str) -> NoReturn:
        raise CheckpointError(f"{source} holds the number {constant}. Numbers must be finite. Correct it.")

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source} is not UTF-8 (byte {error.start}). It must be JSON in UTF-8.") from None
    except RecursionError:
        raise CheckpointError(f"{source} is nested too deep to be read. It must be a flat JSON object.") from None
    except CheckpointError:
        raise
    except ValueError as error:  # also an integer of thousands of digits, which Python refuses to convert
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise CheckpointError(f"{source} is no valid JSON{where}. It may be cut off. Fetch it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds a {type(value).__name__}. It must be a JSON object.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, indented, keys in their order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_folder_atomically(folder: Path, writer: Callable[[Path], None]) -> None:
    """Make `folder` be what `writer` writes into the empty folder it is given; whole or not at all.

    What was in `folder` before is replaced.

    Raises: CheckpointError: when it cannot be written there. Nothing has changed then.
    """
    folder = folder.resolve()
    aside = _beside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        aside.mkdir()
        writer(aside)
        _seal(aside)
        _put_in_place(aside, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}. Nothing was changed.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_file_atomically(path: Path, writer: Callable[[Path], object]) -> None:
    """Make `path` be the file that `writer` writes at the path it is given; whole or not at all.

    Raises: CheckpointError: when it cannot be written there. Nothing has changed then.
    """
    aside = _beside(path)
    try:
        _sweep(path)
        writer(aside)
        aside.chmod(0o644)
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}. Nothing was changed.") from error
    finally:
        aside.unlink(missing_ok=True)


def safe_name(name: object, source: str) -> str:
    """Return the name of a file or folder that a config gives, if it stays inside the config's own folder.

    Raises: CheckpointError: when it is absolute, climbs, or is no name.
    """
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or any(p in ("", ".", "..") or "\\" in p or ":" in p or not p.isprintable() for p in parts):
        raise CheckpointError(f"{source} names the path {str(name)[:80]!r}. A path must stay inside its folder.")
    return "/".join(parts)


def _read_all(file: BinaryIO, size: int) -> bytes:
    chunks, left = [], size
    while left and (chunk := file.read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _kind_of(path: Path) -> str:
    return "a folder" if path.is_dir() else "a FIFO" if path.is_fifo() else "a device or a socket"


def _unreadable(path: Path, error: OSError) -> CheckpointError | CheckpointNotFound:
    if isinstance(error, (CheckpointError, CheckpointNotFound)):
        return error
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CheckpointNotFound(f"{path} does not exist. A dictionary's file was expected there. Check the path.")
    return CheckpointError(f"{path} cannot be read: {error.strerror}.")


def _beside(path: Path) -> Path:
    return path.with_name(f"{_aside_prefix(path)}{os.getpid()}-{uuid4().hex[:8]}")


def _aside_prefix(path: Path) -> str:
    """How names of files written aside begin here: a process of another machine may write into the same folder."""
    return f".{path.name}.tmp-{crc32(platform.node().encode()):08x}-"


def _sweep(path: Path) -> None:
    """Remove what writers of this folder or file left behind that were killed on this machine."""
    for stale in path.parent.glob(f"{glob.escape(_aside_prefix(path))}*-*"):
        pid = stale.name.split("-")[-2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _seal(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)
    folder.chmod(0o755)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(aside: Path, folder: Path) -> None:
    if not folder.exists():
        aside.rename(folder)
    elif not _exchanged(aside, folder):
        old = _beside(folder)
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _sync(folder.parent)


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; False where the system or its file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    return bool(libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)
