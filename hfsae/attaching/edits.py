"""`Edit`: what a user opens and closes; one or more interventions, each at an attachment, and how much they did."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from hfsae.attaching import scope
from hfsae.attaching.mount import Mount
from hfsae.attaching.plan import Counter, Entry, make_plan
from hfsae.attaching.scope import Opening
from hfsae.errors import HfsaeWarning, InvalidType, InvalidValue
from hfsae.interventions import Intervention
from hfsae.tracing import guard_remote

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Part:
    """One intervention at one attachment."""

    mount: Mount
    intervention: Intervention
    text: str
    """The call that made it, as a person would write it."""
    counter: Counter = field(default_factory=Counter)


class Edit:
    """A change of a model's features; nothing happens until it is entered.

    ``with edit:`` acts in this thread or async task only. `apply` and `remove` act everywhere. `bind` carries it into
    another thread. ``a | b`` is both, in order. It is made by the methods of an `Attachment`.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._openings: list[Opening] = []
        self._is_bound = False

    @property
    def tokens_changed(self) -> int:
        """How many tokens it changed so far, summed over its parts; not counted under ``torch.compile``."""
        return sum(part.counter.read()[1] for part in self.parts)

    @property
    def tokens_met(self) -> int:
        """How many tokens it selected so far, whether or not that changed them; summed over its parts."""
        return sum(part.counter.read()[0] for part in self.parts)

    def __enter__(self) -> "Edit":
        self._check()
        if self._opening_here() is not None:
            raise InvalidValue(f"{self} is already open here. An edit is entered once at a time. Make a second one.")
        opening = Opening(tuple((part.mount, Entry(part.intervention, part.counter)) for part in self.parts))
        scope.enter(opening)
        self._openings.append(opening)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # By identity: a generator may be entered in one context and left in another.
        opening = self._opening_here() or (self._openings[-1] if self._openings else None)
        if opening is None:
            return
        scope.leave(opening)
        self._openings.remove(opening)
        if kind is None and not self._is_bound:
            self._warn_if_idle()

    def apply(self) -> "Edit":
        """Act in every thread from now on, until `remove`; does nothing when it already does."""
        self._check()
        for part in self.parts:
            entries = part.mount.standing.entries if part.mount.standing is not None else ()
            if all(entry.counter is not part.counter for entry in entries):
                entries = (*entries, Entry(part.intervention, part.counter))
                part.mount.standing = make_plan(entries, part.mount.dictionary)
        return self

    def remove(self) -> None:
        """Undo `apply`; harmless when it does not apply."""
        was_applied = False
        for part in self.parts:
            entries = part.mount.standing.entries if part.mount.standing is not None else ()
            kept = [entry for entry in entries if entry.counter is not part.counter]
            was_applied |= len(kept) < len(entries)
            part.mount.standing = make_plan(kept, part.mount.dictionary)
        if was_applied:
            self._warn_if_idle()

    def bind(self, fn: Callable[P, T]) -> Callable[P, T]:
        """Return ``fn`` so that this edit acts while it runs, in whatever thread that is.

        Example: ``Thread(target=edit.bind(model.generate), kwargs=dict(**inputs, streamer=streamer)).start()``
        """
        self._is_bound = True

        @functools.wraps(fn)
        def bound(*args: P.args, **kwargs: P.kwargs) -> T:
            if self._opening_here() is not None:
                return fn(*args, **kwargs)
            with self:
                return fn(*args, **kwargs)

        return bound

    def __or__(self, other: "Edit") -> "Edit":
        if not isinstance(other, Edit):
            return NotImplemented
        return Edit([replace(part, counter=Counter()) for part in (*self.parts, *other.parts)])

    def __repr__(self) -> str:
        return " | ".join(part.text for part in self.parts)

    def _opening_here(self) -> Opening | None:
        return next((opening for opening in reversed(scope.openings()) if opening in self._openings), None)

    def _check(self) -> None:
        if not all(part.mount.attached for part in self.parts):
            raise InvalidValue(
                f"{self} belongs to an attachment that was detached. It was to change a model. Attach again."
            )
        guard_remote()

    def _warn_if_idle(self) -> None:
        for part in self.parts:
            if part.counter.read()[0] == 0 and not part.counter.compiled:
                warnings.warn(
                    f"{part.text} closed without meeting a token that it selects: nothing was changed. A forward of "
                    "its model was expected while it was open, in this thread, with such tokens. Check its "
                    "selectors; for another thread use edit.bind(fn) or edit.apply().",
                    HfsaeWarning,
                    stacklevel=3,
                )


def sweep(edits: Sequence[Edit | None]) -> Edit:
    """Return one edit that does ``edits[i]`` to row i of a batch: many runs in one.

    Repeat the prompt ``len(edits)`` times. None leaves its row alone. The result equals the separate runs.

    Example: ``with hfsae.sweep([att.steer(7, s) for s in (0.0, 2.0, 5.0)]): model.generate(**three_rows)``
    Raises:
        InvalidValue: when there is no edit, or one already chooses rows or has values per row.
    """
    listed = list(edits)
    if not all(edit is None or isinstance(edit, Edit) for edit in listed):
        raise InvalidType(f"The sweep {listed!r:.80} holds what is no edit. Edits (or None) were expected.")
    parts = [
        replace(part, intervention=_on_row(part, row, len(listed)), counter=Counter())
        for row, edit in enumerate(listed)
        if edit is not None
        for part in edit.parts
    ]
    if not parts:
        raise InvalidValue("The sweep is empty. One edit or more was expected. Pass one for each row.")
    return Edit(parts)


def _on_row(part: Part, row: int, rows: int) -> Intervention:
    where = part.intervention.where
    if where.rows is not None or part.intervention.has_row_values:
        raise InvalidValue(
            f"{part.text} already tells rows apart. A sweep gives each edit its own row. "
            "Leave out rows= and values per row."
        )
    return replace(part.intervention, where=replace(where, rows=(row,), of_rows=rows))
