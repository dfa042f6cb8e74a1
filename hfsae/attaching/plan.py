"""What is to be done at one attachment: `Plan`, made once when an edit is entered, so that a forward only runs it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfsae.interventions import FeatureIntervention, Intervention, Push, Record, Replace, Splice
from hfsae.sae.base import SparseCoder


class Counter:
    """How many tokens an edit met and how many it changed; summed on the device, read when the edit closes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[torch.device, Tensor] = {}
        self.compiled = False

    def add(self, met: Tensor, changed: Tensor) -> None:
        """Count the tokens of one forward."""
        pair = torch.stack((met, changed)).detach()
        with self._lock:
            before = self._sums.get(pair.device)
            self._sums[pair.device] = pair if before is None else before + pair

    def read(self) -> tuple[int, int]:
        """Return the tokens met and the tokens changed so far."""
        with self._lock:
            met, changed = 0, 0
            for pair in self._sums.values():
                met, changed = met + int(pair[0]), changed + int(pair[1])
            return met, changed

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class Entry(NamedTuple):
    """An intervention and the counter of the edit it belongs to."""

    intervention: Intervention
    counter: Counter


class Step(NamedTuple):
    """A change of features, and where its features are among the columns that are read."""

    change: FeatureIntervention
    counter: Counter
    slots: Tensor | None
    """Index of each of its features; None when they are all the columns, in order."""
    when: Tensor | None
    """Index of each feature that it waits for."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The changes at one attachment, sorted by what they act on; each kind in the order the edits were entered."""

    entries: tuple[Entry, ...]
    features: Tensor | None
    """Ids of every feature that is named, each once; None when none is."""
    rows: Tensor | None
    """Their rows in the dictionary, on its device."""
    steps: tuple[Step, ...]
    pushes: tuple[Entry, ...]
    splices: tuple[Entry, ...]
    replacements: tuple[Entry, ...]
    records: tuple[Entry, ...]

    @property
    def reads(self) -> bool:
        """A change depends on what the features are."""
        return any(step.change.reads or step.when is not None for step in self.steps)

    @property
    def reads_all(self) -> bool:
        """The whole code is needed, not only the features that are named."""
        return bool(self.splices or self.records)


NO_PLAN = Plan((), None, None, (), (), (), (), ())


def make_plan(entries: Sequence[Entry], dictionary: SparseCoder) -> Plan | None:
    """Return the plan for these entries; None when there are none."""
    if not entries:
        return None
    changes = [entry for entry in entries if isinstance(entry.intervention, FeatureIntervention)]
    columns = _columns(changes)
    return Plan(
        entries=tuple(entries),
        features=columns,
        rows=None if columns is None else dictionary.rows(columns),
        steps=tuple(_step(entry, columns) for entry in changes),
        pushes=_of(Push, entries),
        splices=_of(Splice, entries),
        replacements=_of(Replace, entries),
        records=_of(Record, entries),
    )


def _of(kind: type[Intervention], entries: Sequence[Entry]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if isinstance(entry.intervention, kind))


def _named(change: Any) -> list[Tensor]:
    return [change.features] if change.when is None else [change.features, change.when]


def _columns(changes: Sequence[Entry]) -> Tensor | None:
    """Return the ids of all features that are named, each once, in the order they are first named."""
    named = [ids for entry in changes for ids in _named(entry.intervention)]
    if len(named) < 2:
        return named[0] if named else None
    return torch.tensor(list(dict.fromkeys(torch.cat(named).tolist())))


def _step(entry: Entry, columns: Tensor | None) -> Step:
    change = entry.intervention
    assert isinstance(change, FeatureIntervention)
    assert columns is not None
    if columns is change.features:
        return Step(change, entry.counter, None, None)
    place = {feature: slot for slot, feature in enumerate(columns.tolist())}
    slots = [torch.tensor([place[feature] for feature in ids.tolist()]) for ids in _named(change)]
    return Step(change, entry.counter, slots[0], slots[1] if len(slots) > 1 else None)
