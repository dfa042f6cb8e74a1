"""Checkpoints of a run: all it needs to go on bit for bit, whole on disk at every instant.

A run owns its folder while it trains. A checkpoint is written aside, synced and renamed; its tensors carry a sha256, so
that one that was cut or edited is noticed, and the one before it used. The last two are kept.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any
from warnings import warn

from safetensors import SafetensorError
from torch import Tensor

from hfsae.errors import CheckpointError, CheckpointNotFound, HfsaeWarning, TrainingError
from hfsae.formats.files import read_json, write_folder_atomically, write_json
from hfsae.formats.safetensors_io import read_tensors, write_tensors
from hfsae.train.signals import StopRequest, noted_signals

_KEPT = 2
_TENSORS, _NUMBERS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class RunState:
    """All of a run at one step: tensors by name, and numbers as JSON holds them."""

    tensors: dict[str, Tensor]
    """Weights, optimizer, clocks, ring, random states."""
    numbers: dict[str, Any]
    """Step, positions, scales, and what the run was asked to do."""


class Checkpoints:
    """The checkpoints in the folder of a run.

    Args:
        folder: Made when it is not there.
        every: Steps between two.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint, sound or not."""
        found = self._all()
        return found[-1] if found else None

    def save(self, state: RunState, step: int) -> None:
        """Write a checkpoint; where that fails, say so and leave the earlier ones as they are."""
        folder = self.folder / f"step-{step:09d}"

        def write(aside: Path) -> None:
            write_tensors(aside / _TENSORS, state.tensors)
            write_json(aside / _NUMBERS, {**state.numbers, "sha256": _sha256(aside / _TENSORS)})

        try:
            write_folder_atomically(folder, write)
        except (CheckpointError, SafetensorError) as error:
            warn(
                f"The checkpoint of step {step} could not be written ({error}). Training goes on. "
                f"The last good one is {self.latest}. Make room in {str(self.folder)!r}.",
                HfsaeWarning,
                stacklevel=2,
            )
            return
        for old in self._all()[:-_KEPT]:
            rmtree(old, ignore_errors=True)

    def save_if_due(self, state: Callable[[], RunState], step: int, last: bool, request: StopRequest) -> None:
        """Save every so many steps, after the last one, and when a signal asks the run to stop.

        Raises: SystemExit: after such a signal, once it is saved.
        """
        if request.signal is not None or last or step % self.every == 0:
            self.save(state(), step)
        if request.signal is not None:
            raise SystemExit(128 + request.signal)

    def load(self) -> RunState | None:
        """Return the newest checkpoint that is sound, or None where there is none; say which were not."""
        for folder in reversed(self._all()):
            try:
                numbers = read_json(folder / _NUMBERS)
                if numbers.pop("sha256", None) != _sha256(folder / _TENSORS):
                    raise CheckpointError(f"{folder / _TENSORS} is not what was written: its sha256 differs.")
                return RunState(read_tensors(folder / _TENSORS, finite=False), numbers)
            except (CheckpointError, CheckpointNotFound, OSError) as error:
                warn(f"A checkpoint cannot be used: {error} The one before it is tried.", HfsaeWarning, stacklevel=2)
        return None

    @contextmanager
    def held(self) -> Iterator[StopRequest]:
        """Own the folder, and note SIGINT and SIGTERM; the lock goes with the process, however that ends.

        Raises: TrainingError: when another run owns it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            if not _locked(file):
                raise TrainingError(
                    f"Another run is training in {str(self.folder)!r}. A folder serves one run at a time. "
                    "Wait for it, or name another folder."
                )
            with noted_signals() as request:
                yield request

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise when a run is to go on with other settings than it began with, listing them.

    Raises: TrainingError: naming each difference.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    names = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    if names:
        listed = "; ".join(f"{name}: {old.get(name)!r} before, {new.get(name)!r} now" for name in names)
        raise TrainingError(
            f"The run in {str(folder)!r} began with other settings ({listed}). A run goes on as it began. "
            "Restore them, or name another folder."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locked(file: Any) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows, where opening for writing is no lock either; two runs are then not told apart
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
