"""Run a model again from the middle: modules that already ran give back what they returned.

Forwards are exchanged on the module objects for as long as a context is open; hooks still run, on what is given back,
so an edit at a replayed module acts as it always does. Nothing else may run the model meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    """One forward of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    """What it returned, before hooks."""


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Call]]:
    """While open, keep the last forward of each of these modules in the mapping that is given."""
    calls: dict[nn.Module, Call] = {}

    def recording(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            calls[module] = Call(args, kwargs, forward(*args, **kwargs))
            return calls[module].output

        return run

    with _exchanged({module: recording(module) for module in modules}):
        yield calls


@contextmanager
def replayed(outputs: Mapping[nn.Module, Any]) -> Iterator[None]:
    """While open, each of these modules returns its given output instead of running."""

    def giving(output: Any) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: output

    with _exchanged({module: giving(output) for module, output in outputs.items()}):
        yield


@contextmanager
def _exchanged(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    # Some libraries set `forward` on the object already (accelerate does): that one is put back, not deleted.
    before: dict[nn.Module, Any] = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own
