"""Which edits are open here: in this thread or async task, and no other.

The open edits live in a context variable. While ``torch.compile`` traces, which cannot follow one, a thread-local copy
is read instead. An edit entered in one context and left in another is closed everywhere: leaving marks the opening.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from hfsae.attaching.plan import Counter, Entry, Plan, make_plan
from hfsae.sae.base import SparseCoder


@runtime_checkable
class Editable(Protocol):
    """What edits act on: a mounted dictionary, with the edits that always apply there."""

    dictionary: SparseCoder
    standing: Plan | None


@dataclass(eq=False)
class Opening:
    """An edit that was entered; closed for good when it is left, in whatever context."""

    entries: tuple[tuple[Editable, Entry], ...]
    closed: bool = False


@dataclass(frozen=True, eq=False)
class _Planned:
    mount: Editable
    standing: Plan | None
    plan: Plan | None


@dataclass(frozen=True, eq=False)
class Scope:
    """The open edits, in the order they were entered, and the plan they make at each attachment."""

    openings: tuple[Opening, ...] = ()
    planned: tuple[_Planned, ...] = ()
    is_pinned: bool = False
    """The plans hold whatever changes at the attachments meanwhile."""


_NOTHING = Scope()
_scope: ContextVar[Scope] = ContextVar("hfsae_scope", default=_NOTHING)
_traced = threading.local()


def current() -> Scope:
    """Return what is open here."""
    if torch.compiler.is_compiling():
        return getattr(_traced, "scope", _NOTHING)
    return _scope.get()


def openings() -> tuple[Opening, ...]:
    """Return what was entered here and not closed since, in order."""
    return tuple(opening for opening in current().openings if not opening.closed)


def enter(opening: Opening) -> None:
    """Open an edit here."""
    use(_scope_of((*openings(), opening)))


def leave(opening: Opening) -> None:
    """Close an edit, here and wherever else it was carried to."""
    opening.closed = True
    use(_scope_of(openings()))


def use(scope: Scope) -> None:
    """Make ``scope`` what is open here."""
    _scope.set(scope)
    _traced.scope = scope


@contextmanager
def using(scope: Scope) -> Iterator[None]:
    """While open, ``scope`` is what is open here."""
    before = current()
    use(scope)
    try:
        yield
    finally:
        use(before)


def pinned(mounts: Sequence[Editable]) -> Scope:
    """Return the plans of these mounts as they are now, for use when edits have been closed; they count nothing."""
    planned = []
    for mount in mounts:
        plan = plan_for(mount)
        entries = () if plan is None else plan.entries
        uncounted = [entry._replace(counter=Counter()) for entry in entries]
        planned.append(_Planned(mount, None, make_plan(uncounted, mount.dictionary)))
    return Scope((), tuple(planned), is_pinned=True)


def plan_for(mount: Editable) -> Plan | None:
    """Return what is to be done at a mount now: its standing edits, then those open here."""
    scope = current()
    if not scope.planned:
        return mount.standing
    if any(opening.closed for opening in scope.openings):
        scope = _scope_of(openings())
    for planned in scope.planned:
        if planned.mount is mount:
            if scope.is_pinned or planned.standing is mount.standing:
                return planned.plan
            return _planned(mount, scope.openings).plan
    return mount.standing


def _scope_of(opened: tuple[Opening, ...]) -> Scope:
    mounts = {id(mount): mount for opening in opened for mount, _ in opening.entries}
    return Scope(opened, tuple(_planned(mount, opened) for mount in mounts.values()))


def _planned(mount: Editable, opened: Sequence[Opening]) -> _Planned:
    standing = mount.standing
    entries = list(standing.entries) if standing is not None else []
    entries += [entry for opening in opened for owner, entry in opening.entries if owner is mount]
    return _Planned(mount, standing, make_plan(entries, mount.dictionary))
