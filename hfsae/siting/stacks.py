"""Find the stack of blocks in a model: the list of layers that the residual stream runs through.

1. Look under the wrappers (nnsight, torch.compile, DDP, FSDP): `unwrap`.
2. Collect the candidates: modules of the classes that transformers records as ``hidden_states``, grouped by the list
   that holds them; where none is declared, of the classes that must not be split over devices; else every list of
   blocks of one class.
3. Keep what is in the decoder, is no vision or audio tower, is as long as the config says. One left: that is it.
   Several left: an error that lists them, never a guess.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from hfsae.errors import InvalidType, SiteNotFound

_SIDE_TOWER = re.compile(
    r"vision|visual|image|video|audio|speech|pixel|vit\b|resampler|projector|perceiver|mtp", re.IGNORECASE
)


@dataclass(frozen=True)
class Stack:
    """A list of blocks of one model, in the order of its layers."""

    path: str
    """Module path of what holds the blocks, in the unwrapped model."""
    blocks: tuple[tuple[str, nn.Module], ...]
    """Module path and module of each block."""

    def __len__(self) -> int:
        return len(self.blocks)

    def __str__(self) -> str:
        return f"{self.path or 'the model'}[{len(self)}]"


def unwrap(model: object) -> nn.Module:
    """Return the module under nnsight, ``torch.compile``, DDP and FSDP wrappers; PEFT stays, as it owns module paths.

    Raises: InvalidType: when there is no ``nn.Module`` inside.
    """
    while True:
        inner = _wrapped(model)
        if inner is None:
            break
        model = inner
    if not isinstance(model, nn.Module):
        raise InvalidType(f"model is a {type(model).__name__}. An nn.Module was expected. Pass a loaded model.")
    return model


def is_envoy(model: object) -> bool:
    """Return whether it is nnsight's view of a module."""
    return any(base.__module__.split(".")[0] == "nnsight" for base in type(model).__mro__)


def _wrapped(model: object) -> object | None:
    if is_envoy(model):
        return vars(model).get("_module")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return model.get_submodule("module")
    children: dict[str, nn.Module] = vars(model).get("_modules", {}) if isinstance(model, nn.Module) else {}
    return children.get("_orig_mod", children.get("_fsdp_wrapped_module"))


def base_model_id(model: object) -> str | None:
    """Return where the model was loaded from: a Hub id or a folder; None when it was built from a config."""
    config = getattr(unwrap(model), "config", None)
    name = getattr(config, "name_or_path", None)
    return name if isinstance(name, str) and name else None


def find_stacks(model: nn.Module) -> list[Stack]:
    """Return every list of blocks of an unwrapped model, outermost only, in the order of its modules."""
    declared = _grouped(model, _declared_classes(model))
    if declared:
        return declared
    unsplit = [stack for stack in _grouped(model, _unsplit_classes(model)) if _is_list(model.get_submodule(stack.path))]
    return unsplit or _homogeneous_lists(model)


def choose_stack(model: nn.Module, stack: str | None = None) -> Stack:
    """Return the stack that ``layer=`` counts in.

    Args:
        model: An unwrapped model.
        stack: Its path, or a part of it such as ``"encoder"``; the default is the decoder, or the only stack there is.

    Raises: SiteNotFound: when there is none, or several fit; the message lists them.
    """
    stacks = find_stacks(model)
    if not stacks:
        raise SiteNotFound(
            f"{type(model).__name__} has no list of blocks to count layers in. "
            "A transformers model with a stack of layers was expected. Name the module: module='path.to.module'."
        )
    fitting = _ranked(model, stacks) if stack is None else _named(stacks, stack)
    listed = ", ".join(map(str, stacks))
    if not fitting:
        raise SiteNotFound(
            f"{type(model).__name__} has no stack {stack!r}. Its stacks of blocks: {listed}. Pass one of these."
        )
    if len(fitting) > 1:
        raise SiteNotFound(
            f"{type(model).__name__} has several stacks of blocks: {', '.join(map(str, fitting))}. "
            "layer= counts in one. Pass stack= with the path of one, or module=."
        )
    return fitting[0]


def host(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return path and module of the outermost transformers model inside; PEFT, for one, stands around it."""
    from transformers import PreTrainedModel

    return next(((path, part) for path, part in model.named_modules() if isinstance(part, PreTrainedModel)), None)


def tower(model: nn.Module, stack: Stack) -> tuple[str, nn.Module] | None:
    """Return path and module of the innermost transformers model around a stack, such as a vision tower."""
    from transformers import PreTrainedModel

    around = (
        (path, part) for path, part in model.named_modules() if f"{stack.path}.".startswith(f"{path}." if path else "")
    )
    return next(((path, part) for path, part in reversed(list(around)) if isinstance(part, PreTrainedModel)), None)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that defined a module: FSDP2 puts a subclass of its own in its place."""
    bases = type(module).__mro__
    return next(base for base in bases if not any(part.__name__ == "FSDPModule" for part in base.__mro__))


def owner(model: nn.Module, path: str) -> tuple[str, object | None]:
    """Return path and config of the nearest module around ``path`` that has a config."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        config = getattr(model.get_submodule(".".join(parts[:end])), "config", None)
        if config is not None:
            return ".".join(parts[:end]), config
    return "", getattr(model, "config", None)


def _declared_classes(model: nn.Module) -> tuple[tuple[type, ...], tuple[str, ...]]:
    """Classes, and names of classes, whose output transformers records as a hidden state."""
    classes: set[type] = set()
    names: set[str] = set()
    for part in {type(module): module for module in model.modules()}:
        declared = getattr(part, "_can_record_outputs", None)
        entries = declared.get("hidden_states") if isinstance(declared, dict) else None
        for entry in entries if isinstance(entries, list | tuple) else [entries]:
            target = getattr(entry, "target_class", entry)
            if isinstance(target, type):
                classes.add(target)
            name = entry if isinstance(entry, str) else getattr(entry, "class_name", None)
            if isinstance(name, str):
                names.add(name)
    return tuple(classes), tuple(names)


def _unsplit_classes(model: nn.Module) -> tuple[tuple[type, ...], tuple[str, ...]]:
    names: set[str] = set()
    for part in {type(module) for module in model.modules()}:
        names.update(getattr(part, "_no_split_modules", None) or ())
    return (), tuple(names)


def _grouped(model: nn.Module, wanted: tuple[tuple[type, ...], tuple[str, ...]]) -> list[Stack]:
    """Group the modules of the wanted classes by what holds them; blocks inside blocks are left out."""
    classes, names = wanted
    groups: dict[str, tuple[tuple[str, nn.Module], ...]] = {}
    for path, module in model.named_modules():
        parent = path.rpartition(".")[0]
        inside_block = any(path.startswith(f"{block}.") for blocks in groups.values() for block, _ in blocks)
        if not path or parent in groups or inside_block:
            continue
        if isinstance(module, classes) or any(base.__name__ in names for base in type(module).__mro__):
            groups[parent] = _siblings(model, parent, path)
    return [Stack(path, blocks) for path, blocks in groups.items()]


def _siblings(model: nn.Module, parent: str, path: str) -> tuple[tuple[str, nn.Module], ...]:
    """Return a block and, where a list holds it, all in that list: hybrid models list blocks of several classes."""
    holder = model.get_submodule(parent)
    if not _is_list(holder):
        return ((path, model.get_submodule(path)),)
    return tuple((f"{parent}.{name}".lstrip("."), block) for name, block in holder.named_children())


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _homogeneous_lists(model: nn.Module) -> list[Stack]:
    stacks: list[Stack] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer.path}.") for outer in stacks):
            continue
        if _is_list(module) and _is_stack(list(module.children())):
            stacks.append(Stack(path, tuple((f"{path}.{name}", block) for name, block in module.named_children())))
    return stacks


def _is_stack(blocks: list[nn.Module]) -> bool:
    composite = all(len(list(block.children())) > 1 for block in blocks)
    return len(blocks) > 1 and composite and len({type(block) for block in blocks}) == 1


def _ranked(model: nn.Module, stacks: list[Stack]) -> list[Stack]:
    """Narrow the candidates by each rule in turn; a rule that none of them meets is passed over."""
    decoder = _decoder_path(model)
    rules: tuple[Callable[[Stack], bool], ...] = (
        lambda stack: decoder == "" or f"{stack.path}.".startswith(f"{decoder}."),
        lambda stack: not _SIDE_TOWER.search(stack.path),
        lambda stack: len(stack) == getattr(owner(model, stack.path)[1], "num_hidden_layers", None),
    )
    for rule in rules:
        stacks = [stack for stack in stacks if rule(stack)] or stacks
    return stacks


def _decoder_path(model: nn.Module) -> str:
    find: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    decoder = None if find is None else find()
    return next((path for path, module in model.named_modules() if module is decoder), "")


def _named(stacks: Iterable[Stack], name: str) -> list[Stack]:
    """Return the stacks of that name: the whole path, else the path that has it among its parts soonest."""
    exact = [stack for stack in stacks if stack.path == name]
    if exact:
        return exact
    places = {stack: place for stack in stacks if (place := _place_in(stack.path, name)) is not None}
    return [stack for stack, place in places.items() if place == min(places.values())]


def _place_in(path: str, name: str) -> int | None:
    parts, wanted = path.split("."), name.split(".")
    return next((start for start in range(len(parts)) if parts[start : start + len(wanted)] == wanted), None)
