"""Find how a block is wired, from what each of its modules was given and gave back in one forward.

A row of `FAMILIES` fits when its modules were called and its identity holds, with x the block's input and y its output:

- rows that add:   ``y - x == factor * (attn_out + mlp_out)``; the factor is 1 except where a config scales residuals;
- rows that norm:  a module reads ``x + attn_out`` and gives ``mid``, another reads ``mid + mlp_out`` and gives ``y``.

Cross-attention's part, where there is one, is added in between.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from hfsae.siting.families import FAMILIES, Family
from hfsae.siting.probes import Call

_TOLERANCE = 1e-4  # of the largest entry; the probe computes in float32
_MLP_CLASS = re.compile(r"(MLP|Mlp|MoE|Moe|MoeBlock|FeedForward|FFN|Experts)$")


@dataclass(frozen=True)
class Wiring:
    """The modules of one block that a family's row speaks of, its identity checked; paths inside the block."""

    how: str
    """The identity and the family's name."""
    attn_out: str | None
    """Module whose output attention gives, None where the block has none."""
    mlp_out: str | None
    """Module whose output the MLP gives, None where the block has none."""
    mlp_in: str | None
    """Module whose input the MLP reads."""
    mid: Tensor | None
    """The stream between attention and MLP."""


def find_wiring(block: nn.Module, call: Call, inside: Mapping[str, Call]) -> Wiring | None:
    """Return the first row of `FAMILIES` that fits a block, None where none does.

    Args:
        block: The block.
        call: What it was given and gave back.
        inside: The same for the modules in it, by their path in the block.
    """
    x, y = call.input, call.output
    if x is None or y is None or x.shape != y.shape:
        return None
    for family in FAMILIES:
        for attn, mlp, cross in _candidates(family, block, inside, x):
            parts = [_shaped(inside[path], x) for path in (attn, cross, mlp) if path]
            how, mid = (_normed if family.norms_the_sum else _added)(x, y, parts, inside)
            if how:
                mlp_in = _first(family.mlp_in, inside) or mlp
                return Wiring(
                    f"{how} ({family.name})", attn, mlp, mlp_in if mlp else None, mid if attn and mlp else None
                )
    return None


def find_mid(mid: Tensor, inside: Mapping[str, Call]) -> tuple[str, str] | None:
    """Return path and side of the first module that was given, or gave, the stream between attention and MLP."""
    for side in ("input", "output"):
        for path, call in sorted(inside.items(), key=lambda item: item[1].order):
            tensor = call.input if side == "input" else call.output
            if call.count == 1 and tensor is not None and _is_same(tensor, mid):
                return path, side
    return None


def find_last_map(block: nn.Module, path: str, inside: Mapping[str, Call]) -> str | None:
    """Return the linear map whose output is that of the module at ``path``, or what that module normalises."""
    given = inside[path]
    for name, call in inside.items():
        weight = getattr(block.get_submodule(name), "weight", None)
        if call.count != 1 or call.output is None or not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        for tensor in (given.output, given.input):
            if tensor is None or tensor is call.input or tensor.numel() != call.output.numel():
                continue
            if _close(call.output.reshape(tensor.shape), tensor):
                return name
    return None


def _candidates(
    family: Family, block: nn.Module, inside: Mapping[str, Call], x: Tensor
) -> Iterator[tuple[str | None, str | None, str | None]]:
    none: list[str | None] = [None]
    attn = [path for path in _usable(family.attn_out, inside, x) if not _is_mlp(block, path)]
    mlp = _usable(family.mlp_out, inside, x)
    cross = _usable(family.cross_out, inside, x)
    if (attn or not family.attn_out) and (mlp or not family.mlp_out):
        yield from product(attn or none, mlp or none, cross or none)


def _usable(paths: Iterable[str], inside: Mapping[str, Call], x: Tensor) -> list[str]:
    return [
        path
        for path in paths
        if path in inside and inside[path].count == 1 and _numel(inside[path].output) == x.numel()
    ]


def _numel(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _is_mlp(block: nn.Module, path: str) -> bool:
    return bool(_MLP_CLASS.search(type(block.get_submodule(path)).__name__))


def _first(paths: Iterable[str], inside: Mapping[str, Call]) -> str | None:
    return next((path for path in paths if path in inside and inside[path].count == 1), None)


def _shaped(call: Call, like: Tensor) -> Tensor:
    assert call.output is not None
    return call.output.reshape(like.shape)


def _added(x: Tensor, y: Tensor, parts: list[Tensor], inside: Mapping[str, Call]) -> tuple[str | None, Tensor]:
    """Check ``y - x == factor * sum(parts)``; the stream before the last part is ``y - factor * parts[-1]``."""
    change, given = y - x, torch.stack(parts).sum(0)
    factor = float((change * given).sum() / given.square().sum())
    factor = 1.0 if abs(factor - 1.0) < _TOLERANCE else factor
    if any(part.abs().max() == 0 for part in parts) or not _close(change, factor * given):
        return None, x
    names = (
        "attn_out + mlp_out" if len(parts) == 2 else "attn_out + mlp_out + a third" if len(parts) == 3 else "its output"
    )
    scaled = names if factor == 1.0 else f"{factor:.4g} * ({names})"
    return f"resid_post - resid_pre = {scaled}", y - factor * parts[-1]


def _normed(x: Tensor, y: Tensor, parts: list[Tensor], inside: Mapping[str, Call]) -> tuple[str | None, Tensor]:
    """Follow the stream through the norms of the sums; the stream before the last part is what the norm before gave."""
    stream = before = x
    for part in parts:
        norm = next((call for call in inside.values() if _reads(call, stream + part)), None)
        if norm is None or norm.output is None:
            return None, x
        before, stream = stream, norm.output.reshape(x.shape)
    if not _close(stream, y):
        return None, x
    return "norm(resid_mid + mlp_out) = resid_post, resid_mid = norm(resid_pre + attn_out)", before


def _reads(call: Call, tensor: Tensor) -> bool:
    return call.input is not None and _is_same(call.input, tensor)


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    same_size = tensor.shape[-1:] == other.shape[-1:] and tensor.numel() == other.numel()
    return same_size and _close(tensor.reshape(other.shape), other)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())
