"""`Mount`: a dictionary as it sits on a module of a model, run by that module's hook.

It is an attribute of the module (``model.transformer.h[8].sae``) but not one of its registered children, so the model's
state dict, parameters and conversions never see it. Idle, it is passed over. With edits, it changes the activation.
Watched (by a hook on `features`, or by an nnsight trace), all its features are computed, to be read and edited.
"""

import copy
import threading

import torch
from torch import Tensor, nn

from hfsae.attaching.editing import Watch, edit, edit_densely
from hfsae.attaching.plan import NO_PLAN, Plan
from hfsae.attaching.scope import plan_for
from hfsae.forwards import Owner
from hfsae.sae.base import SparseCoder
from hfsae.selectors import Tokens
from hfsae.sites import Point

_reads = threading.local()


class FeatureTap(nn.Module):
    """The place where all features of a watched mount pass, ``[batch, seq, d_sae]``, to be read or edited."""

    def forward(self, f: Tensor) -> Tensor:
        """Return f."""
        return f


class ReadStage:
    """The reading end of a transcoder: keeps the activation, per thread, until the writing end takes it."""

    def act(self, x: Tensor) -> Tensor:
        """Keep x and let it pass."""
        _last_reads()[id(self)] = x
        return x

    def take(self) -> Tensor:
        """Return the x read last, and let go of it."""
        return _last_reads().pop(id(self))


def _last_reads() -> dict[int, Tensor]:
    here: dict[int, Tensor] | None = getattr(_reads, "last", None)
    if here is None:
        here = _reads.last = {}
    return here


class Mount(nn.Module):
    """A dictionary on a module: its input is the activation there, its output what the model goes on with."""

    dictionary: SparseCoder
    _tap: FeatureTap

    def __init__(
        self, dictionary: SparseCoder, owner: Owner, *, name: str, detach_error: bool = False, trainable: bool = False
    ) -> None:
        super().__init__()
        self.features = FeatureTap()
        vars(self)["_tap"] = self.features  # the same, without the detour that nn.Module takes to its children
        self.owner = owner
        self.name = name
        self.detach_error = detach_error
        self.reader: ReadStage | None = None
        self.standing: Plan | None = None
        self.attached = True
        self.places: tuple[Point, ...] = ()
        self._replicas: dict[torch.device, tuple[list[int], SparseCoder]] = {}
        self.trainable = trainable
        if trainable:
            self.dictionary = dictionary
        else:
            vars(self)["dictionary"] = dictionary  # past nn.Module.__setattr__, which would register it

    def act(self, y: Tensor) -> Tensor:
        """Return what takes the place of y: y itself, unless there is something to do."""
        x = y if self.reader is None else self.reader.take()
        if plan_for(self) is None and not self.is_watched() and not (self.detach_error and _needs_grad(x)):
            return y
        result: Tensor = self(y) if self.reader is None else self(y, x)
        return result

    def is_watched(self) -> bool:
        """A hook, or an nnsight trace under way, wants to see this mount or its features."""
        if self._tap._forward_hooks or self._tap._forward_pre_hooks:
            return True
        state = self.__dict__.get("__nnsight__")
        return state is not None and not torch.compiler.is_compiling() and state.active()[0] is not None

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """Return what takes the place of y, given what the dictionary reads (y itself, except in transcoders)."""
        x = y if x is None else x
        if is_abstract(y):
            self.features(x.new_empty(*x.shape[:-1], len(self.dictionary.W_enc)))
            return y.clone()
        tokens = Tokens(y.shape[:-1], y.device, self.owner.forward())
        flat = tokens.flattened_from
        with torch.autocast(y.device.type, enabled=False):
            if flat is None:
                return self._edited(y, x, tokens).to(y.dtype)
            rows = self._edited(y.view(*flat, -1), x.view(*flat, -1), tokens)
            return rows.flatten(0, 1).to(y.dtype)

    def _edited(self, y: Tensor, x: Tensor, tokens: Tokens) -> Tensor:
        sae = self.dictionary_on(x.device)
        plan = plan_for(self) or NO_PLAN
        detached = self.detach_error and _needs_grad(x)
        x = x.to(sae.W_dec.dtype)
        if detached or self.is_watched():
            return edit_densely(sae, plan, y, x, tokens, Watch(self.features, detached))
        return edit(sae, plan, y, x, tokens)

    def dictionary_on(self, device: torch.device) -> SparseCoder:
        """Return the dictionary on that device: itself, or a copy kept for that device and renewed when it changes."""
        sae = self.dictionary
        if sae.W_dec.device == device:
            return sae
        versions = [parameter._version for parameter in sae.parameters()]
        kept = self._replicas.get(device)
        if kept is None or kept[0] != versions:
            kept = self._replicas[device] = (versions, copy.deepcopy(sae).to(device))
        return kept[1]


def is_abstract(x: Tensor) -> bool:
    """A tensor with a shape and no numbers, as on the meta device; not one that `torch.export` traces with."""
    fake = isinstance(x, torch._subclasses.FakeTensor) and not torch.compiler.is_compiling()
    return x.is_meta or fake


def _needs_grad(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad
