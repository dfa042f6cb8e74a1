"""Continuous batching (``generate_batch``): prompts packed into one row, run in a thread of their own.

Applied edits for all tokens act there. Others cannot, and an error in that thread would be logged and not raised; so
they are refused where the batching begins, in the caller's thread.
"""

import weakref
from typing import Any

from torch import nn

from hfsae.attaching import scope
from hfsae.attaching.mount import Mount
from hfsae.errors import Unsupported
from hfsae.hooks import find_dispatcher
from hfsae.interventions import Intervention

_ENTRY = "init_continuous_batching"


class _Guard:
    """Stands before a model's method that begins batching, as an attribute of the model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)  # the model holds its guard

    def __reduce__(self) -> Any:
        return _Guard, (self._model(),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self._model()
        assert model is not None
        _check(model)
        return getattr(type(model), _ENTRY)(model, *args, **kwargs)


def guard_batching(root: nn.Module) -> None:
    """Make it an error to begin continuous batching under edits that it cannot serve."""
    for model in _batching_models(root):
        vars(model)[_ENTRY] = _Guard(model)


def unguard_batching(root: nn.Module) -> None:
    """Undo `guard_batching`."""
    for model in _batching_models(root):
        vars(model).pop(_ENTRY, None)


def _batching_models(root: nn.Module) -> list[nn.Module]:
    return [part for part in root.modules() if hasattr(type(part), _ENTRY)]


def _check(model: nn.Module) -> None:
    """Refuse edits that are open here alone, and applied ones that tell tokens of a row apart."""
    dispatchers = [find_dispatcher(module, io) for module in model.modules() for io in ("input", "output")]
    mounts = [stage for d in dispatchers if d is not None for stage in d.stages if isinstance(stage, Mount)]
    if any(mount in mounts for opening in scope.openings() for mount, _ in opening.entries):
        raise Unsupported(
            "An edit or recording is open in this thread, and continuous batching runs in another. "
            "An applied edit was expected. Use edit.apply() and edit.remove(), or generate."
        )
    entries = [entry for mount in mounts if mount.standing is not None for entry in mount.standing.entries]
    if not all(_is_for_all(entry.intervention) for entry in entries):
        raise Unsupported(
            "An applied edit tells rows or positions apart, and continuous batching packs prompts into one row. "
            "Edits for all tokens were expected. Drop the selector or the values per row, or use generate."
        )


def _is_for_all(change: Intervention) -> bool:
    return change.where.selects_all and not change.has_row_values
