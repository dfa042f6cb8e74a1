"""Tiny models to prove things on: built from a config on the CPU, run once, every module's input and output kept.

A probe is never the user's model. It is made small first (`shrinking`), counted on the meta device before any memory is
taken, and thrown away after its one forward. Building it leaves the random state, the default device, gradients,
autocast and the logging of transformers as they were.
"""

import copy
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfsae.errors import Unsupported
from hfsae.siting.shrinking import config_parts, shrink

LARGEST_PROBE = 25_000_000
"""Most numbers a probe may hold; a model that stays larger when shrunk is not run."""
_SMALL_ENOUGH = 5_000_000
_BATCH, _TOKENS, _DECODER_TOKENS, _FIRST_ID, _IDS = 2, 12, 10, 8, 200
_LOCK = threading.RLock()


def model_failures() -> tuple[type[Exception], ...]:
    """Return what model code raises when a config does not fit it."""
    from huggingface_hub.errors import StrictDataclassError

    builtin = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError)
    return (*builtin, RuntimeError, TypeError, ValueError, StrictDataclassError)


@dataclass
class Call:
    """What one module was given and gave back in the probe's forward."""

    order: int
    """Place among all calls, counted when the module was entered."""
    count: int
    """How often the module was called."""
    input: Tensor | None
    """The hidden states of the first call, None where no tensor came in."""
    output: Tensor | None
    """The first tensor that the first call gave back."""
    repeated: bool = False
    """Whether the input came in as several arguments, as query, key and value: then changing one is not changing it."""


@dataclass(frozen=True)
class Probe:
    """A tiny model that has been run once."""

    model: nn.Module
    calls: Mapping[str, Call]
    """The first call of each module that was called, by module path."""
    lengths: tuple[int, ...]
    """Batch size and the numbers of positions it was run on."""


def run_probe(model_class: type[nn.Module], config: Any) -> Probe:
    """Build a tiny random model of that class, run it once and return it with every module's input and output.

    Raises: Unsupported: when it cannot be built small, or its forward needs more than ids or pixels.
    """
    with undisturbed():
        try:
            model = _build(model_class, config)
            calls = _record(model)
            inputs = _inputs(model)
            model(**inputs)
        except model_failures() as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            raise Unsupported(f"No tiny probe of {model_class.__name__} could be run ({reason}).") from error
    lengths = (_BATCH, *{value.shape[1] for name, value in inputs.items() if name.endswith("ids")})
    return Probe(model, calls, lengths)


def _build(model_class: type[nn.Module], config: Any) -> nn.Module:
    small = shrink(config) if _size(model_class, config) > _SMALL_ENOUGH else copy.deepcopy(config)
    for name in ("quantization_config", "_attn_implementation_internal", "_experts_implementation_internal"):
        if getattr(small, name, None) is not None:
            setattr(small, name, None)
    small._attn_implementation = "eager"
    for part in config_parts(small):
        if hasattr(part, "use_cache"):
            part.use_cache = False  # some hybrid models cannot make a cache where none of their few layers attends
    size = _size(model_class, small)
    if size > LARGEST_PROBE:
        raise MemoryError(f"{size:,} numbers are left after shrinking")
    model: nn.Module = model_class(small).float().eval()
    for parameter in model.parameters():  # fresh norms are ones and biases zero, behind which a mistake could hide
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _size(model_class: type[nn.Module], config: Any) -> int:
    with torch.device("meta"):
        empty = model_class(copy.deepcopy(config))
    return sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run third-party model code without a trace in the process: randomness, modes, warnings and logs."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with _LOCK, ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.device("cpu"))
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        torch.manual_seed(0)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _record(model: nn.Module) -> dict[str, Call]:
    """Wrap every module's forward; hooks are registered in `hooks` alone, and the probe is ours to change."""
    calls: dict[str, Call] = {}
    for path, module in model.named_modules():
        if path:
            module.__dict__["forward"] = _recorder(path, module.forward, calls)
    return calls


def _recorder(path: str, forward: Callable[..., Any], calls: dict[str, Call]) -> Callable[..., Any]:
    def recording(*args: Any, **kwargs: Any) -> Any:
        call = calls.setdefault(path, Call(len(calls), 0, _copy(_hidden_input(args, kwargs)), None))
        call.count += 1
        given = _hidden_input(args, kwargs)
        call.repeated |= given is not None and sum(value is given for value in (*args, *kwargs.values())) > 1
        output = forward(*args, **kwargs)
        if call.output is None:
            call.output = _copy(first_tensor(output))
        return output

    return recording


def _hidden_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if args:
        return first_tensor(args[0])
    hidden = kwargs.get("hidden_states")
    if isinstance(hidden, Tensor):
        return hidden
    return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def first_tensor(output: object) -> Tensor | None:
    """Return a tensor itself, or the first element of a tuple or a ``ModelOutput`` where that is a tensor."""
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()  # blocks may write into their tensors afterwards


def _inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return ids that are no special token, or pixels; for a decoder too, where there are two."""
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        vision = getattr(config, "vision_config", None) or config
        side = getattr(vision, "image_size", 32)
        height, width = (side, side) if isinstance(side, int) else side
        inputs = {main: torch.randn(_BATCH, getattr(vision, "num_channels", 3), height, width)}
    else:
        inputs = {"input_ids": _ids(config, _TOKENS)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _ids(config, _DECODER_TOKENS)
    return inputs


def _ids(config: Any, count: int) -> Tensor:
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None) or _IDS
    return torch.randint(min(_FIRST_ID, size - 1), min(size, _IDS), (_BATCH, count))
