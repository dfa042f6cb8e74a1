"""Prove on a probe where the sites of a stack of blocks are.

For each stack:
1. resid_pre and resid_post: each block is called once, in order, on ``[batch, seq, width]``, and gives the next block
   exactly what that one reads.
2. attn_out and mlp_out: the first row of `FAMILIES` whose modules exist in the block and whose identity holds there
   (`wirings`).
3. resid_mid: what enters a module inside the block and equals resid_post less mlp_out. attn_z and mlp_act: the input
   of the one linear map whose output is attn_out or mlp_out. mlp_in: the input of the module that the row names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hfsae.errors import Unsupported
from hfsae.siting.probes import Call, Probe, run_probe
from hfsae.siting.stacks import Stack, find_stacks, host, plain_class, tower
from hfsae.siting.wirings import Wiring, find_last_map, find_mid, find_wiring

INNER_SITES = ("resid_mid", "attn_z", "attn_out", "mlp_in", "mlp_act", "mlp_out")
"""The sites inside a block, which need its wiring."""
_KEPT = 128
_PROVED: dict[tuple[type, str], "dict[str, StackProof] | Unsupported"] = {}


@dataclass(frozen=True)
class Place:
    """Where a site was proved to be in one block."""

    path: str
    """Module path inside the block; empty for the block itself."""
    io: str
    """``"input"`` or ``"output"`` of that module."""
    how: str
    """What was proved."""
    of_stream: bool
    """Whether it is as wide as the residual stream."""
    flat: bool = False
    """Whether the model runs batch and positions as one dimension there: ``[batch * seq, width]``."""


@dataclass
class BlockProof:
    """What is known of one block: the places of its sites, and why the others have none."""

    class_name: str
    """Class of the block."""
    places: dict[str, Place] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StackProof:
    """What is known of a stack."""

    blocks: tuple[BlockProof, ...]
    width: int | None
    """Width of the stream in the probe."""
    config: Any
    """The probe's config, to find under which name it keeps that width."""


def prove(model_class: type[nn.Module], config: Any) -> Mapping[str, StackProof]:
    """Return what can be proved of every stack of models of that class and config, by path; kept for next time.

    Raises: Unsupported: when no probe could be built or run.
    """
    key = (model_class, _config_key(config))
    if key not in _PROVED:
        if len(_PROVED) >= _KEPT:
            _PROVED.clear()
        try:
            probe = run_probe(model_class, config)
            _PROVED[key] = {stack.path: _prove_stack(probe, stack) for stack in find_stacks(probe.model)}
        except Unsupported as error:
            _PROVED[key] = error
    known = _PROVED[key]
    if isinstance(known, Unsupported):
        raise Unsupported(str(known))
    return known


def prove_stack(model: nn.Module, stack: Stack) -> StackProof:
    """Return what can be proved of one stack of an unwrapped model, from its config alone; the model itself is not run.

    First on a probe of the whole model; a tower that this does not run, on a probe of its own, fed pixels or ids.
    Raises: Unsupported: when the model has no config or no probe could be run.
    """
    whole = host(model)
    if whole is None:
        raise Unsupported(f"{type(model).__name__} is no transformers model.")
    inner = tower(model, stack) or whole
    try:
        proof = _proof_under(whole, stack)
    except Unsupported:  # a model of two towers may need both ids and pixels
        if inner[1] is whole[1]:
            raise
        proof = None
    if inner[1] is not whole[1] and (proof is None or not any(block.places for block in proof.blocks)):
        proof = _proof_under(inner, stack) or proof
    if proof is None:
        raise Unsupported(f"The probe of {type(model).__name__} has no blocks at {stack.path}.")
    return proof


def _proof_under(part: tuple[str, nn.Module], stack: Stack) -> StackProof | None:
    path, module = part
    inside = stack.path.removeprefix(f"{path}." if path else "")
    return prove(plain_class(module), module.config).get(inside)


def block_proof(proof: StackProof, stack: Stack, index: int) -> BlockProof | None:
    """Return what is known of one block: its twin in the probe, or one of its class where the stack was cut."""
    if len(proof.blocks) == len(stack):
        return proof.blocks[index]
    name = plain_class(stack.blocks[index][1]).__name__
    return next((block for block in proof.blocks if block.class_name == name and block.places), None)


def _config_key(config: Any) -> str:
    values = config.to_dict()
    for name in (
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "id2label",
        "label2id",
    ):
        values.pop(name, None)
    return json.dumps(values, sort_keys=True, default=str)


def _prove_stack(probe: Probe, stack: Stack) -> StackProof:
    proofs = tuple(BlockProof(type(block).__name__) for _, block in stack.blocks)
    calls = [probe.calls.get(path) for path, _ in stack.blocks]
    _prove_stream(proofs, calls, probe)
    width = None
    for (path, block), proof, call in zip(stack.blocks, proofs, calls, strict=True):
        if call is None or call.output is None or not proof.places:
            continue
        width = call.output.shape[-1]
        if not {"resid_pre", "resid_post"} <= proof.places.keys():
            continue
        inside = {
            name: probe.calls[f"{path}.{name}"] for name, _ in block.named_modules() if f"{path}.{name}" in probe.calls
        }
        _prove_inside(proof, block, call, inside)
    return StackProof(proofs, width, getattr(probe.model, "config", None))


def _prove_stream(proofs: tuple[BlockProof, ...], calls: list[Call | None], probe: Probe) -> None:
    for index, (proof, call) in enumerate(zip(proofs, calls, strict=True)):
        reason = _misshapen(call, probe)
        before = next((other for other in reversed(calls[:index]) if other is not None), None)
        after = next((other for other in calls[index + 1 :] if other is not None), None)
        for site, io, first, second in (("resid_pre", "input", before, call), ("resid_post", "output", call, after)):
            broken = reason or _unjoined(first, second)
            if io == "input" and call is not None and call.repeated:
                broken = "the block is given the stream as several arguments, so its input alone is not the stream"
            if broken:
                proof.refusals[site] = broken
            else:
                proof.places[site] = Place("", io, "blocks run once, in order, each reads what the last gave", True)


def _misshapen(call: Call | None, probe: Probe) -> str | None:
    """Say why a block's input or output is no residual stream, None where it is one."""
    if call is None:
        return "the block is skipped when the model runs on text or pixels alone"
    if call.count > 1:
        return f"the block is shared: one forward calls it {call.count} times, so it has no one layer"
    for side, tensor in (("input", call.input), ("output", call.output)):
        if tensor is None or not tensor.is_floating_point():
            return f"its {side} is no tensor of hidden states"
        batch, *lengths = probe.lengths
        if tensor.dim() != 3 or tensor.shape[0] != batch or (lengths and tensor.shape[1] not in lengths):
            expected = f"[{batch}, {' or '.join(map(str, lengths)) or 'seq'}, width]"
            return f"its {side} has shape {list(tensor.shape)} where {expected} was expected"
    if call.input is not None and call.output is not None and call.input.shape != call.output.shape:
        return f"it changes the stream's shape from {list(call.input.shape)} to {list(call.output.shape)}"
    return None


def _unjoined(first: Call | None, second: Call | None) -> str | None:
    """Say why the output of one block is not the input of the next, None where it is or where there is no other."""
    if first is None or second is None:
        return None
    if first.order > second.order:
        return "the blocks do not run in their order"
    if first.output is None or second.input is None or not torch.equal(first.output, second.input):
        return "the model changes the stream between this block and its neighbour"
    return None


def _prove_inside(proof: BlockProof, block: nn.Module, call: Call, inside: Mapping[str, Call]) -> None:
    wiring = find_wiring(block, call, inside)
    if wiring is None:
        proof.refusals.update(dict.fromkeys(INNER_SITES, "no known wiring holds in the block"))
        return
    outputs = (("attn_out", wiring.attn_out, "attn_z", "attention"), ("mlp_out", wiring.mlp_out, "mlp_act", "MLP"))
    for site, path, last_site, name in outputs:
        if path is None:
            proof.refusals.update(dict.fromkeys((site, last_site), f"the block has no {name} of its own"))
            continue
        _place(proof, site, (path, "output"), wiring.how, call, inside)
        last = find_last_map(block, path, inside)
        if last is None:
            proof.refusals[last_site] = f"no one linear map ends its {name}"
        else:
            _place(proof, last_site, (last, "input"), f"the linear map after it gives {site}", call, inside)
    _prove_around_mlp(proof, wiring, call, inside)


def _prove_around_mlp(proof: BlockProof, wiring: Wiring, call: Call, inside: Mapping[str, Call]) -> None:
    read = inside[wiring.mlp_in].input if wiring.mlp_in else None
    if wiring.mlp_in and read is not None and call.input is not None and read.numel() == call.input.numel():
        _place(proof, "mlp_in", (wiring.mlp_in, "input"), f"the input of {wiring.mlp_in!r}", call, inside)
    else:
        proof.refusals["mlp_in"] = "the block has no one module that its MLP starts with"
    mid = None if wiring.mid is None else find_mid(wiring.mid, inside)
    if mid is None:
        proof.refusals["resid_mid"] = "nothing in the block reads the stream between attention and MLP"
    else:
        _place(proof, "resid_mid", mid, "it equals resid_post less what the MLP added", call, inside)


def _place(
    proof: BlockProof, site: str, where: tuple[str, str], how: str, call: Call, inside: Mapping[str, Call]
) -> None:
    path, io = where
    tensor = inside[path].input if io == "input" else inside[path].output
    assert tensor is not None
    assert call.input is not None
    if tensor.dim() not in (2, 3):
        proof.refusals[site] = f"there it has shape {list(tensor.shape)}, not [batch, seq, width]"
        return
    flat = tensor.dim() == 2
    proof.places[site] = Place(path, io, how, site not in ("attn_z", "mlp_act"), flat)
