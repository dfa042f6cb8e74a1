"""Putting a mount on its modules and taking it off: attribute, hooks and checks; finding what a model carries."""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from hfsae.attaching.checkpointing import replay, stop_replaying
from hfsae.attaching.mount import Mount, ReadStage
from hfsae.errors import HfsaeWarning, InvalidType, InvalidValue
from hfsae.forwards import Owner
from hfsae.hooks import add_stage, find_dispatcher, remove_stage
from hfsae.sites import Point
from hfsae.tracing import forget_envoys

# What nnsight serves on every module.
_RESERVED = ("input", "inputs", "output", "source", "skip", "trace", "generate", "iter", "all")


class Liveness:
    """Watches, at each forward of the owner, that a mount's module is still in the model."""

    def __init__(self, path: str, mount: Mount) -> None:
        self.path = path
        self.names = path.split(".") if path else []
        self.mount = mount
        self.warned = False

    def holds(self, owner: nn.Module) -> bool:
        """Return whether the mount still sits at its path below ``owner``."""
        module: nn.Module | None = owner
        for name in self.names:
            module = None if module is None else module._modules.get(name)
        return module is not None and _mounted(module, self.mount.name) is self.mount

    def __call__(self, owner: nn.Module) -> None:
        """Run before each forward: warn, once; have backward replay edits where it recomputes."""
        if not self.warned and not self.holds(owner):
            self.warned = True
            warnings.warn(
                f"The module {self.path!r} that a dictionary is attached to was replaced, so its edits may not act. "
                "The module that was attached to was expected. Detach, and attach again.",
                HfsaeWarning,
                stacklevel=2,
            )
        if owner.training:
            replay(owner, self.mount.owner, mounts_of(self.mount.owner))


def mounts_of(owner: Owner) -> list[Mount]:
    """Return the mounts below an owner."""
    return [check.mount for check in owner.checks if isinstance(check, Liveness)]


def liveness_of(mount: Mount) -> Liveness | None:
    """Return what watches a mount; None once it is off."""
    checks = [check for check in mount.owner.checks if isinstance(check, Liveness)]
    return next((check for check in checks if check.mount is mount), None)


def check_name(module: nn.Module, name: str) -> None:
    """Refuse a name that the module, or nnsight, already uses.

    Raises:
        InvalidType: when it is no string.
        InvalidValue: when it is no attribute name or taken.
    """
    if not isinstance(name, str):
        raise InvalidType(f"name={name!r} is no string. The name of an attribute was expected.")
    if not name.isidentifier() or name in _RESERVED:
        raise InvalidValue(f"name={name!r} cannot be used. A free attribute name was expected, such as 'sae'.")
    if hasattr(module, name):
        raise InvalidValue(
            f"{type(module).__name__} already has an attribute {name!r}. A free name was expected. "
            "Pass name=, or detach what is there."
        )


def put(mount: Mount, read: Point, write: Point, path: str) -> None:
    """Mount at ``write`` (a transcoder also reads at ``read``); ``path`` is that of the module, below the owner."""
    if (read.module, read.io) != (write.module, write.io):
        mount.reader = ReadStage()
        add_stage(read.module, read.io, mount.reader)
    if mount.trainable:
        write.module.add_module(mount.name, mount)
    else:
        vars(write.module)[mount.name] = mount
    mount.places = (replace(read, module=_NOWHERE), replace(write, module=_NOWHERE))
    add_stage(write.module, write.io, mount)
    mount.owner.checks.append(Liveness(path, mount))
    _forget_graphs()


def take_off(mount: Mount, read: Point, write: Point, owner: nn.Module) -> None:
    """Undo `put`."""
    mount.attached = False
    mount.standing = None
    if mount.reader is not None:
        remove_stage(read.module, read.io, mount.reader)
    remove_stage(write.module, write.io, mount)
    forget_envoys(write.module, mount.name)
    if _mounted(write.module, mount.name) is mount:
        vars(write.module).pop(mount.name, None)
        write.module._modules.pop(mount.name, None)
    mount.owner.checks[:] = [check for check in mount.owner.checks if check is not liveness_of(mount)]
    if not mount.owner.checks:
        mount.owner.remove()
        stop_replaying(owner)
    _forget_graphs()


def found_in(model: nn.Module) -> Iterator[tuple[Mount, Point, Point, nn.Module]]:
    """Yield each mount of an unwrapped model (or a copy of one), where it reads and writes, and its owner."""
    ends: dict[int, tuple[str, nn.Module]] = {}
    mounts: list[Mount] = []
    owners: dict[int, nn.Module] = {}
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            owners[id(getattr(hook, "__self__", None))] = module
        for io in ("input", "output"):
            dispatcher = find_dispatcher(module, io)
            for stage in () if dispatcher is None else dispatcher.stages:
                ends[id(stage)] = (path, module)
                mounts += [stage] if isinstance(stage, Mount) else []
    for mount in mounts:
        read, write = mount.places
        stages = (mount if mount.reader is None else mount.reader, mount)
        (read_path, read_module), (path, module) = (ends[id(stage)] for stage in stages)
        read, write = replace(read, path=read_path, module=read_module), replace(write, path=path, module=module)
        yield mount, read, write, owners[id(mount.owner)]


def owner_path(model: nn.Module, path: str) -> str:
    """Return the path of the innermost transformers model around a module; of the model itself when there is none."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        above = ".".join(parts[:end])
        if any(base.__name__ == "PreTrainedModel" for base in type(model.get_submodule(above)).__mro__):
            return above
    return ""


def _mounted(module: nn.Module, name: str) -> object:
    return vars(module).get(name, module._modules.get(name))


def _forget_graphs() -> None:
    # A compiled graph is not guarded by hooks: it would go on as if nothing had been attached or detached.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


_NOWHERE = nn.Module()
