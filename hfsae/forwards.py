"""What is known of the forward under way: which of its tokens are real, where each stands, what `generate` is doing.

A block sees activations only. The module around it (the owner: the nearest with a config) is called with the attention
mask, the position ids and the cache; `Owner` keeps them, per thread, while that module runs. `generate` is found on the
call stack: how long the prompt is and how many rows it makes of each, nothing else in a forward tells.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.hooks import watch_calls

_PACKED = ("cu_seq_lens_q", "block_table", "read_index")
_CACHES = ("past_key_values", "cache_params")
_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids", "hidden_states")
_under_way = threading.local()

Past = int | Tensor | None
"""Tokens in a cache; None where it does not say."""


@dataclass(frozen=True, eq=False)
class Forward:
    """What the owner was called with, as far as edits need it."""

    attention_mask: Tensor | None = None
    """``[batch, past + seq]``, or 4-D as a static cache prepares it; None says that every token is real."""
    position_ids: Tensor | None = None
    past: Past = 0
    """Tokens in the cache before this forward."""
    is_cached: bool = False
    """A cache was passed, as `generate` does."""
    shape: tuple[int, ...] | None = None
    """``(batch, seq)`` of the inputs."""
    packed: bool = False
    """Several prompts lie end to end in one row (continuous batching)."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What a call of ``generate`` is doing."""

    prompt: int | None = None
    """Columns of the prompt; None while the encoder reads it."""
    expand: int = 1
    """Rows that each prompt was repeated to: beams, or returned sequences."""
    attention_mask: Tensor | None = None
    """Of a decoder's tokens so far, ``[batch, past + seq]``; None says that all are real."""
    columns: int | None = None
    """Tokens so far in each row, those of this forward included; None where its decoding loop does not say."""


def forward_of(parameters: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], past: Past) -> Forward:
    """Return what a call of the owner says of its tokens."""
    given = _named(parameters, args, kwargs)
    inputs = next((given[name] for name in _INPUTS if isinstance(given.get(name), Tensor)), None)
    mask, ids = given.get("attention_mask"), given.get("position_ids")
    return Forward(
        attention_mask=mask if isinstance(mask, Tensor) else None,
        position_ids=ids if isinstance(ids, Tensor) and ids.ndim == 2 else None,
        past=past,
        is_cached=any(given.get(name) is not None for name in _CACHES),
        shape=None if inputs is None else tuple(inputs.shape[:2]),
        packed=any(given.get(name) is not None for name in _PACKED),
    )


def _named(parameters: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(parameters, args, strict=False)), **kwargs} if args else kwargs


def _cached_tokens(given: dict[str, Any]) -> Past:
    cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
    if cache is None:
        return 0
    length = getattr(cache, "get_seq_length", None)
    try:
        past = None if length is None else length()
    except ValueError:  # a cache of states alone, as state-space models have it, does not count tokens
        return None
    # A static cache counts in a tensor that it updates in place during the forward.
    return past.clone() if isinstance(past, Tensor) else past


class Owner:
    """The hook of the module around the attached ones: keeps its `Forward` while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.checks: list[Callable[[nn.Module], None]] = []
        self._parameters = tuple(inspect.signature(module.forward).parameters)
        self._handles = watch_calls(module, self)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run as a forward pre-hook."""
        if not torch.compiler.is_compiling():
            for check in self.checks:
                check(module)
        # The cache grows during the forward, so it is read now; the rest when, and if, an edit asks.
        past = _cached_tokens(kwargs if len(args) < 2 else _named(self._parameters, args, kwargs))
        _under_way_here()[id(self)] = partial(forward_of, self._parameters, args, kwargs, past)

    def after(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Run as a forward hook, also when the forward failed."""
        _under_way_here().pop(id(self), None)

    def forward(self) -> Forward | None:
        """Return what is known of the forward under way in this thread; None outside one."""
        here = _under_way_here()
        known = here.get(id(self))
        if isinstance(known, partial):
            known = here[id(self)] = known()
        return known

    @contextmanager
    def during(self, forward: Forward | None) -> Iterator[None]:
        """While open, `forward` is that one: for a recomputation after the forward itself has ended."""
        before = self.forward()
        _under_way_here()[id(self)] = forward
        try:
            yield
        finally:
            _under_way_here()[id(self)] = before

    def remove(self) -> None:
        """Unregister."""
        for handle in self._handles:
            handle.remove()


def owner_of(module: nn.Module) -> Owner:
    """Return the `Owner` hook of ``module``, made when it has none yet."""
    hooks = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    found = next((hook for hook in hooks if isinstance(hook, Owner)), None)
    return Owner(module) if found is None else found


def _under_way_here() -> "dict[int, partial[Forward] | Forward | None]":
    here: dict[int, partial[Forward] | Forward | None] | None = getattr(_under_way, "forwards", None)
    if here is None:
        here = _under_way.forwards = {}
    return here


def generation_under_way() -> Generation | None:
    """Return what the outermost ``generate`` on this thread's call stack is doing; None outside one."""
    code = _generate_code()
    frame: FrameType | None = sys._getframe() if code is not None else None
    generating: FrameType | None = None
    decoding: FrameType | None = None
    while frame is not None:
        above = frame.f_back
        if above is not None and above.f_code is code:
            generating, decoding = above, decoding or frame
        frame = above
    return None if generating is None or decoding is None else _read_generation(generating.f_locals, decoding.f_locals)


def _generate_code() -> CodeType | None:
    module = sys.modules.get("transformers.generation.utils")
    return None if module is None else inspect.unwrap(module.GenerationMixin.generate).__code__


def _read_generation(names: dict[str, Any], decoding: dict[str, Any]) -> Generation:
    """Read it off the variables of ``generate``, and of the innermost decoding loop that it called."""
    listed = names.get("input_ids_length")
    if listed is None:
        return Generation()
    prompt, is_decoder = listed, not names["self"].config.is_encoder_decoder
    if names["model_input_name"] == "inputs_embeds" and is_decoder:  # then the ids begin behind the prompt
        prompt = max(listed, names["inputs_tensor"].shape[1])
    config, ids = names["generation_config"], decoding.get("input_ids")
    columns = decoding.get("cur_len", None if ids is None else ids.shape[1])
    return Generation(
        prompt,
        max(config.num_beams or 1, config.num_return_sequences or 1),
        decoding.get("model_kwargs", {}).get("attention_mask") if is_decoder else None,
        None if columns is None else columns + prompt - listed,
    )
