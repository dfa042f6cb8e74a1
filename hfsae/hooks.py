"""The only code that registers hooks: read or replace the activation at a point, and undo it.

One prepended hook per module (`Dispatcher`) runs the stages mounted there, in the order in which they were added. It is
prepended so that hooks registered earlier, such as those that collect ``hidden_states``, see what it returns; it is a
plain object, so that a hooked model can be copied and pickled. `capture` reads points once and stops the forward after
the last.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hfsae.errors import InvalidValue, SiteNotFound
from hfsae.sites import Point, unwrap


@runtime_checkable
class Stage(Protocol):
    """What a `Dispatcher` runs: maps an activation to the one that takes its place."""

    def act(self, x: Tensor) -> Tensor:
        """Return what takes the place of ``x``; ``x`` itself where nothing changes."""


class Dispatcher:
    """The one hook of a module: passes the activation through its stages, in the order they were added."""

    def __init__(self, io: str) -> None:
        self.io = io
        self.stages: list[Stage] = []
        self._handle: RemovableHandle | None = None

    def register(self, module: nn.Module) -> None:
        """Become the first forward hook of ``module``, or its first pre-hook where the point is its input."""
        if self.io == "output":
            self._handle = module.register_forward_hook(self.on_output, prepend=True)
        else:
            self._handle = module.register_forward_pre_hook(self.on_input, prepend=True, with_kwargs=True)

    def remove(self) -> None:
        """Unregister; harmless when already done."""
        if self._handle is not None:
            self._handle.remove()

    def on_output(self, module: nn.Module, _args: object, output: Any) -> Any:
        """Run as a forward hook."""
        x = activation_of_output(output, module)
        y = self._through(x)
        return None if y is x else with_output(output, y)

    def on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run as a forward pre-hook."""
        key = input_key(args, kwargs, module)
        x = args[key] if isinstance(key, int) else kwargs[key]
        y = self._through(x)
        if y is x:
            return None
        return ((y, *args[1:]), kwargs) if isinstance(key, int) else (args, {**kwargs, key: y})

    def _through(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage.act(x)
        return x


def add_stage(module: nn.Module, io: str, stage: Stage) -> None:
    """Run ``stage`` at that side of ``module`` from now on, after those already there."""
    dispatcher = find_dispatcher(module, io)
    if dispatcher is None:
        dispatcher = Dispatcher(io)
        dispatcher.register(module)
    dispatcher.stages.append(stage)


def remove_stage(module: nn.Module, io: str, stage: Stage) -> None:
    """Undo `add_stage`; the hook goes with its last stage. Harmless when the stage is not there."""
    dispatcher = find_dispatcher(module, io)
    if dispatcher is None:
        return
    dispatcher.stages = [other for other in dispatcher.stages if other is not stage]
    if not dispatcher.stages:
        dispatcher.remove()


def find_dispatcher(module: nn.Module, io: str) -> Dispatcher | None:
    """Return the dispatcher at that side of ``module``, if it has one."""
    hooks = module._forward_hooks if io == "output" else module._forward_pre_hooks
    for hook in hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Dispatcher):
            return owner
    return None


def activation_of_output(output: Any, module: nn.Module) -> Tensor:
    """Return the activation in what ``module`` returned: the tensor, or the first of a tuple or ``ModelOutput``."""
    if isinstance(output, Tensor):
        return output
    first = output[0] if isinstance(output, tuple | list) or hasattr(output, "to_tuple") else None
    if isinstance(first, Tensor):
        return first
    raise InvalidValue(
        f"{type(module).__name__} returned a {type(output).__name__} that does not begin with a tensor. "
        "A site's module returns the activation, or a tuple beginning with it. Choose another module."
    )


def with_output(output: Any, x: Tensor) -> Any:
    """Return ``output`` with ``x`` in the place of its activation; ``output`` itself is left as it is."""
    if isinstance(output, Tensor):
        return x
    if isinstance(output, tuple):
        rest = output[1:]
        return type(output)(x, *rest) if hasattr(output, "_fields") else (x, *rest)
    if isinstance(output, list):
        return [x, *output[1:]]
    replaced = copy.copy(output)
    replaced[next(iter(replaced.keys()))] = x
    return replaced


def input_key(args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module) -> int | str:
    """Return where the activation is among a module's arguments: 0, or the name of a keyword."""
    if args and isinstance(args[0], Tensor):
        return 0
    names = ["hidden_states", *kwargs]
    found = next((name for name in names if isinstance(kwargs.get(name), Tensor)), None)
    if found is None:
        raise InvalidValue(
            f"{type(module).__name__} was called without a tensor. A site's input is its first argument. "
            "Use io='output'."
        )
    return found


@runtime_checkable
class CallWatcher(Protocol):
    """What `watch_calls` tells of each forward of a module."""

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the forward."""

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Called after the forward, also when it failed."""


def watch_calls(module: nn.Module, watcher: CallWatcher) -> list[RemovableHandle]:
    """Tell ``watcher`` of each forward of ``module`` until the handles are removed."""
    return [
        module.register_forward_pre_hook(watcher.before, prepend=True, with_kwargs=True),
        module.register_forward_hook(watcher.after, always_call=True),
    ]


class _StopForwardError(Exception):
    """Ends a forward once all that was asked for has been read."""


class _Reader:
    """The activations read so far, in the thread that asked for them; forwards of other threads pass untouched."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points
        self.found: dict[int, Tensor] = {}
        self._thread = threading.get_ident()

    def register(self, index: int) -> RemovableHandle:
        point = self.points[index]

        def on_output(module: nn.Module, _args: object, output: Any) -> None:
            self._keep(index, lambda: activation_of_output(output, module))

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(index, lambda: _input(args, kwargs, module))

        if point.io == "output":
            return point.module.register_forward_hook(on_output, prepend=True)
        return point.module.register_forward_pre_hook(on_input, prepend=True, with_kwargs=True)

    def _keep(self, index: int, read: Callable[[], Tensor]) -> None:
        if threading.get_ident() != self._thread or index in self.found:
            return
        self.found[index] = read().detach()
        if len(self.found) == len(self.points):
            raise _StopForwardError


def _input(args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module) -> Tensor:
    key = input_key(args, kwargs, module)
    x: Tensor = args[key] if isinstance(key, int) else kwargs[key]
    return x


def capture(model: object, points: Sequence[Point], **inputs: Any) -> list[Tensor]:
    """Return the activation at each point of one forward, which stops after the last of them.

    Attachments at the points themselves are not applied; those before them are. A module that runs several times
    gives its first call.

    Args:
        model: The model that the points were resolved in, wrapped or not.
        points: From `hfsae.sites.resolve`, in any order.
        inputs: What the model is called with: ``input_ids=``, ``attention_mask=`` and so on.

    Shape: returns: one ``[batch, seq, width]`` per point, in the model's dtype, without gradient.
    Raises: SiteNotFound: when a point's module did not run.
    """
    if not points:
        return []
    reader = _Reader(points)
    handles = [reader.register(index) for index in range(len(points))]
    try:
        with torch.no_grad():
            unwrap(model)(**inputs)
    except _StopForwardError:
        return [reader.found[index] for index in range(len(points))]
    finally:
        for handle in handles:
            handle.remove()
    missing = ", ".join(points[index].path for index in range(len(points)) if index not in reader.found)
    raise SiteNotFound(
        f"{missing} did not run in this forward. Its activation was expected. Check the inputs or the site."
    )
