"""Gradient checkpointing: a forward that backward recomputes is edited as it was, whatever is open by then.

transformers gives each layer a function that runs it and reruns it in backward. It is wrapped, so that the rerun sees
the edits, the mask and the positions of the first run. The rerun counts no tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hfsae.attaching import scope
from hfsae.attaching.scope import Editable
from hfsae.forwards import Owner

_FUNCTION = "_gradient_checkpointing_func"


class Replay:
    """A checkpointing function whose reruns see what the first run saw."""

    def __init__(self, checkpoint: Callable[..., Any], owner: Owner, mounts: Sequence[Editable]) -> None:
        self.checkpoint = checkpoint
        self.owner = owner
        self.mounts = mounts

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``function`` under the checkpointing function."""
        seen, forward = scope.pinned(self.mounts), self.owner.forward()
        runs = 0

        def replayed(*inputs: Any, **named: Any) -> Any:
            nonlocal runs
            runs += 1
            if runs == 1:
                return function(*inputs, **named)
            with scope.using(seen), self.owner.during(forward):
                return function(*inputs, **named)

        return self.checkpoint(replayed, *args, **kwargs)


def replay(module: nn.Module, owner: Owner, mounts: Sequence[Editable]) -> None:
    """Wrap the checkpointing functions below ``module``; those that are wrapped already stay as they are."""
    for part in module.modules():
        function = vars(part).get(_FUNCTION)
        if function is not None and not isinstance(function, Replay):
            setattr(part, _FUNCTION, Replay(function, owner, mounts))


def stop_replaying(module: nn.Module) -> None:
    """Undo `replay`."""
    for part in module.modules():
        function = vars(part).get(_FUNCTION)
        if isinstance(function, Replay):
            setattr(part, _FUNCTION, function.checkpoint)
