"""The arithmetic of an edit on one activation: features read, changed, and the difference written back.

    f  = the features that the plan names
    f' = each change in turn
    x' = x + scale * (f' - f) W_dec          with decode(f) in place of x inside a splice

Where nothing changes, f' - f is 0 and x' is x bit for bit. ``scale`` undoes the normalisation of the input.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hfsae.attaching.plan import Counter, Entry, Plan, Step
from hfsae.errors import Unsupported
from hfsae.interventions import Push, Record, Replace
from hfsae.sae import coding
from hfsae.sae.base import SparseCoder
from hfsae.selectors import Tokens


def edit(sae: SparseCoder, plan: Plan, y: Tensor, x: Tensor, tokens: Tokens) -> Tensor:
    """Return what takes the place of y, where the dictionary reads x; computes what the plan needs and no more."""
    before = read(sae, plan, x)
    if before.x_hat is not None:
        y = spliced(plan, y, before.x_hat, tokens)
    if plan.rows is not None:
        rows = plan.rows.to(sae.W_dec.device)
        y = y + before.scale * ((change(plan, before.f, tokens) - before.f) @ sae.W_dec[rows])
    return replaced(plan, pushed(plan, y, tokens), tokens)


class Watch(NamedTuple):
    """How features that someone looks at are computed."""

    tap: nn.Module
    """Called with all features; what it returns takes their place."""
    detach_error: bool
    """Gradients pass through the features alone, not through what the dictionary cannot express."""


def edit_densely(sae: SparseCoder, plan: Plan, y: Tensor, x: Tensor, tokens: Tokens, watch: Watch) -> Tensor:
    """Do as `edit`, with every feature passing through ``watch.tap``."""
    before = read(sae, replace(plan, rows=None, steps=()), x)
    f = sae.encode(x)
    watched = watch.tap(_all_changed(plan, f, tokens))
    if before.x_hat is not None:
        y = spliced(plan, y, before.x_hat, tokens)
    if watch.detach_error:
        y, f = y.detach(), f.detach()
    y = y + before.scale * ((watched - f) @ sae.W_dec)
    return replaced(plan, pushed(plan, y, tokens), tokens)


def _all_changed(plan: Plan, f: Tensor, tokens: Tokens) -> Tensor:
    """Return f' of all features, never f itself: what looks at it may write into it."""
    if plan.rows is None:
        return f.clone()
    rows = plan.rows.to(f.device)
    return f.index_copy(-1, rows, change(plan, f[..., rows], tokens).expand(*f.shape[:-1], len(rows)))


class Read(NamedTuple):
    """What was read of an activation."""

    f: Tensor
    """The columns the plan names; of a plan that reads nothing, zeros ``[n]``."""
    scale: Tensor | float
    """What a difference of features is multiplied by, to be one of activations."""
    x_hat: Tensor | None = None
    """The reconstruction, where it is needed."""


def read(sae: SparseCoder, plan: Plan, x: Tensor) -> Read:
    """Read of x what the plan needs, by the cheapest exact route."""
    if plan.reads_all or (plan.reads and sae.kind != "thresholded"):
        return _read_all(sae, plan, x)
    count = 0 if plan.rows is None else len(plan.rows)
    if not plan.reads:
        std = coding.token_norm(x)[1] if sae.config.normalize == "layer_norm" else None
        return Read(x.new_zeros(count), output_scale(sae, std))
    given = coding.read(sae, x)
    rows = None if plan.rows is None else plan.rows.to(x.device)
    f = coding.activate(sae, coding.product(sae, given.x, rows), rows)
    return Read(f.view(*x.shape[:-1], count), output_scale(sae, given.std))


def _read_all(sae: SparseCoder, plan: Plan, x: Tensor) -> Read:
    if torch.compiler.is_compiling():
        return _read_all_densely(sae, plan, x)
    codes = sae.encode_sparse(x)
    for entry in plan.records:
        assert isinstance(entry.intervention, Record)
        entry.intervention.keep(codes)
    f = x.new_zeros(0) if plan.features is None else codes.at(plan.features)
    x_hat = sae.decode(codes, x=x) if plan.splices else None
    return Read(f, output_scale(sae, codes.std), x_hat)


def _read_all_densely(sae: SparseCoder, plan: Plan, x: Tensor) -> Read:
    # The size of a sparse code depends on the data, which no graph can hold.
    if plan.records:
        raise Unsupported("A compiled forward cannot be recorded. Record the model itself, not its compiled form.")
    f = sae.encode(x)
    std = coding.token_norm(x)[1] if sae.config.normalize == "layer_norm" else None
    columns = x.new_zeros(0) if plan.rows is None else f[..., plan.rows.to(f.device)]
    return Read(columns, output_scale(sae, std), sae.decode(f, x=x) if plan.splices else None)


def output_scale(sae: SparseCoder, std: Tensor | None) -> Tensor | float:
    """Return what a difference of features is multiplied by, to be one of activations."""
    if sae.config.is_transcoder:
        return 1.0
    if sae.config.normalize == "scale":
        return 1.0 / (sae.config.scale or 1.0)
    return 1.0 if std is None else std


def change(plan: Plan, f: Tensor, tokens: Tokens) -> Tensor:
    """Return f' of the columns the plan names."""
    changed = f
    for step in plan.steps:
        changed = _take(step, f, changed, tokens)
    return changed


def _take(step: Step, original: Tensor, f: Tensor, tokens: Tokens) -> Tensor:
    old = f if step.slots is None else f[..., step.slots]
    new = step.change(old, tokens)
    mask = step.change.mask(tokens)
    if step.when is not None:
        fires = (original[..., step.when] != 0).any(-1)
        mask = fires if mask is None else mask & fires
    if mask is not None:
        new = torch.where(mask[..., None], new, old)
    count(step.counter, tokens, mask, (new != old).any(-1))
    return new if step.slots is None else _put(f, step.slots, new)


def _put(f: Tensor, slots: Tensor, new: Tensor) -> Tensor:
    leading = (f[..., :1] + new[..., :1]).shape[:-1]
    new = new.expand(*leading, new.shape[-1])
    return f.expand(*leading, f.shape[-1]).index_copy(-1, slots.to(f.device), new)


def spliced(plan: Plan, x: Tensor, x_hat: Tensor, tokens: Tokens) -> Tensor:
    """Return the reconstruction where the plan splices, x elsewhere."""
    y = x
    for entry in plan.splices:
        y = _where(entry, y, x_hat, tokens)
    return y


def pushed(plan: Plan, x: Tensor, tokens: Tokens) -> Tensor:
    """Return x with the vectors of the plan added."""
    for entry in plan.pushes:
        assert isinstance(entry.intervention, Push)
        x = _where(entry, x, entry.intervention(x, tokens), tokens)
    return x


def replaced(plan: Plan, x: Tensor, tokens: Tokens) -> Tensor:
    """Return what the plan puts in the place of x."""
    for entry in plan.replacements:
        assert isinstance(entry.intervention, Replace)
        x = _where(entry, x, entry.intervention(x, tokens), tokens)
    return x


def _where(entry: Entry, old: Tensor, new: Tensor, tokens: Tokens) -> Tensor:
    mask = entry.intervention.mask(tokens)
    if mask is not None:
        new = torch.where(mask[..., None], new, old)
    count(entry.counter, tokens, mask, (new != old).any(-1))
    return new


def count(counter: Counter, tokens: Tokens, mask: Tensor | None, changed: Tensor) -> None:
    """Count the real tokens that an edit met, and those that it changed."""
    if torch.compiler.is_compiling():
        counter.compiled = True
        return
    met = torch.ones((), dtype=torch.bool, device=tokens.device) if mask is None else mask
    met = met.expand(tokens.shape)
    if tokens.real is not None:
        met = met & tokens.real
    counter.add(met.sum(), (changed & met).sum())
