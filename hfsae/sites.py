"""Where in a model: a `Site` names a place, `resolve` finds the module there.

A site is a layer and one of eight kinds, or a module path. The layers are counted in the model's stack of blocks.
"""

import operator
import re
from dataclasses import dataclass
from typing import SupportsIndex

from torch import nn

from hfsae.errors import InvalidType, InvalidValue, OutOfRange, SiteNotFound, Unsupported, did_you_mean
from hfsae.siting.proofs import BlockProof, block_proof, prove_stack
from hfsae.siting.stacks import Stack, base_model_id, choose_stack, unwrap
from hfsae.siting.widths import declared_width, stream_width

__all__ = ["SITES", "Point", "Site", "base_model_id", "blocks", "resolve", "unwrap"]

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_z", "attn_out", "mlp_in", "mlp_act", "mlp_out")
"""The kinds of sites, in the order in which an activation passes them."""

# TransformerLens' hook_mlp_in is taken before the layer norm, so it is the residual stream and not what the MLP reads.
_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "resid_mid",
    "hook_resid_post": "resid_post",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "ln2.hook_normalized": "mlp_in",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_out": "mlp_out",
}


@dataclass(frozen=True)
class Site:
    """A place in a model, by layer and kind or by module path; not tied to any one model.

    Example:
        >>> str(Site("resid_post", layer=8)), str(Site(module="transformer.h.8.mlp", io="input"))
        ('resid_post.layer_8', 'transformer.h.8.mlp:input')

    Raises:
        SiteNotFound: when no kind of site has that name.
        InvalidValue: when both a layer and a module, or neither, are given.
        InvalidType: when the layer is no whole number.
    """

    site: str | None = "resid_post"
    """One of `SITES`; ignored (None) with ``module``."""
    layer: int | None = None
    """Index of the block; negative counts from the end."""
    module: str | None = None
    """Path of a module, in place of ``site`` and ``layer``."""
    io: str = "output"
    """With ``module``: its ``"input"`` or its ``"output"``."""
    stack: str | None = None
    """Which stack ``layer`` counts in, where the model has several; the default is the decoder."""

    def __post_init__(self) -> None:
        if self.io not in ("input", "output"):
            raise InvalidValue(f"io={self.io!r} is unknown. A site is a module's 'input' or its 'output'.")
        if (self.layer is None) == (self.module is None):
            raise InvalidValue(
                f"layer={self.layer!r} and module={self.module!r} do not name one place. Pass either layer= or module=."
            )
        if self.module is not None:
            if not isinstance(self.module, str):
                raise InvalidType(
                    f"module={self.module!r} is no string. A module path was expected, as in named_modules()."
                )
            object.__setattr__(self, "site", None)
            return
        if self.site not in SITES:
            raise SiteNotFound(f"No kind of site is called {self.site!r}.{did_you_mean(str(self.site), SITES)}")
        object.__setattr__(self, "layer", _whole_number(self.layer))

    def __str__(self) -> str:
        if self.module is not None:
            return self.module if self.io == "output" else f"{self.module}:{self.io}"
        place = f"{self.site}.layer_{self.layer}"
        return place if self.stack is None else f"{place} of {self.stack}"

    @staticmethod
    def parse(name: str) -> "Site":
        """Return the site that a TransformerLens hook name or ``str(site)`` of a layer's site means.

        Raises: SiteNotFound: when the name is none of these.
        Example:
            >>> Site.parse("blocks.8.hook_resid_pre") == Site.parse("resid_pre.layer_8") == Site("resid_pre", 8)
            True
        """
        lens = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if lens and lens[2] in _TRANSFORMER_LENS:
            return Site(_TRANSFORMER_LENS[lens[2]], int(lens[1]))
        ours = re.fullmatch(r"(\w+)\.layer_(-?\d+)(?: of (.+))?", name)
        if ours and ours[1] in SITES:
            return Site(ours[1], int(ours[2]), stack=ours[3])
        known = [f"blocks.{lens[1] if lens else 0}.{hook}" for hook in _TRANSFORMER_LENS]
        raise SiteNotFound(f"{name!r} names no site.{did_you_mean(name, known)}")


@dataclass(frozen=True)
class Point:
    """A site in one model: the module, and whether the activation is its input or its output.

    The activation is the output, or its first element where that is a tuple, list or ``ModelOutput``; as an input it
    is the first positional argument, else ``hidden_states=``, else the first tensor among the keyword arguments.
    """

    path: str
    """Module path in the unwrapped model."""
    module: nn.Module
    """The module at that path."""
    io: str
    """``"input"`` or ``"output"``."""
    site: Site
    """What was asked for, its layer counted from the front."""
    width: int | None
    """Size of the activation's last dimension; None where only a forward could tell."""
    flat: bool = False
    """Whether batch and positions are one dimension there, as in OPT's MLP: ``[batch * seq, width]``."""
    how: str = "named by its path"
    """How it was proved."""


def blocks(model: object, stack: str | None = None) -> list[tuple[str, nn.Module]]:
    """Return module path and module of each block, in the order of the layers.

    Raises: SiteNotFound: when the model has no stack of that name, or several fit; the message lists them.
    """
    return list(choose_stack(unwrap(model), stack).blocks)


def resolve(
    model: object,
    layer: SupportsIndex | None = None,
    site: str = "resid_post",
    *,
    module: str | None = None,
    io: str = "output",
    stack: str | None = None,
) -> Point:
    """Return the module and the side of it where a site's activation passes.

    Args:
        model: A model, wrapped or not.
        layer: Index of the block; negative counts from the end. Left out where ``module`` or ``site`` says it.
        site: One of `SITES`, or a TransformerLens name such as ``"blocks.8.hook_resid_pre"``.
        module: Path of any module, in place of a layer and a site; this is not proved, but taken as it is.
        io: With ``module``: ``"output"`` or ``"input"``.
        stack: Which stack ``layer`` counts in; the default is the decoder, or the only one.

    Raises:
        SiteNotFound: when the model has no such site or module, or what it is cannot be proved.
        OutOfRange: when the model has fewer blocks.
        InvalidType: when the layer is no whole number.
        InvalidValue: when the arguments do not name one place.
    """
    wanted = _wanted(layer, site, module=module, io=io, stack=stack)
    root = unwrap(model)
    if wanted.module is not None:
        return _named_module(root, wanted)
    chosen = choose_stack(root, wanted.stack)
    assert wanted.layer is not None
    index = _index(wanted.layer, chosen, root)
    return _proved_point(root, chosen, Site(wanted.site, index, stack=wanted.stack))


def _proved_point(root: nn.Module, stack: Stack, site: Site) -> Point:
    assert site.layer is not None
    assert site.site is not None
    path, block = stack.blocks[site.layer]
    try:
        proof = prove_stack(root, stack)
    except Unsupported as error:
        raise SiteNotFound(f"{site} cannot be proved. {error} Name the module: {_paths_below(path, block)}.") from error
    known = block_proof(proof, stack, site.layer)
    place = None if known is None else known.places.get(site.site)
    full_path = path if place is None else f"{path}.{place.path}".rstrip(".")
    if known is None or place is None or not _has_module(root, full_path):
        raise SiteNotFound(_refusal(root, site, path, block, known))
    module = root.get_submodule(full_path)
    width = stream_width(root, stack, proof) if place.of_stream else declared_width(module, place.io)
    return Point(full_path, module, place.io, site, width, place.flat, place.how)


def _has_module(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def _refusal(root: nn.Module, site: Site, path: str, block: nn.Module, known: BlockProof | None) -> str:
    places = known.places if known else {}
    reason = known.refusals.get(site.site or "") if known else None
    proved = ", ".join(name for name in SITES if name in places) or "no site"
    return (
        f"{site} is refused in {type(root).__name__}: {reason or 'the block is not as its config says'}. "
        f"Proved in this block: {proved}. Ask for one of these or name the module: {_paths_below(path, block)}."
    )


def _paths_below(path: str, block: nn.Module) -> str:
    children = [f"{path}.{name}" for name, _ in block.named_children()]
    return "module=" + " or ".join(map(repr, [path, *children]))


def _wanted(layer: object, site: str, *, module: str | None, io: str, stack: str | None) -> Site:
    if module is not None and layer is None:
        return Site(module=module, io=io)
    if not isinstance(site, str):
        raise InvalidType(f"site={site!r} is no string. One of these was expected: {', '.join(SITES)}.")
    if "." not in site:
        return Site(site, layer, module, stack=stack)  # type: ignore[arg-type]  # Site checks the layer's type
    parsed = Site.parse(site)
    if layer is not None and _whole_number(layer) != parsed.layer:
        raise InvalidValue(f"layer={layer!r} and site={site!r} name two layers. Leave out layer=.")
    return Site(parsed.site, parsed.layer, stack=stack or parsed.stack)


def _whole_number(layer: object) -> int:
    if isinstance(layer, bool) or not isinstance(layer, SupportsIndex):
        raise InvalidType(
            f"layer={layer!r} is a {type(layer).__name__}. A whole number was expected; -1 is the last layer."
        )
    return operator.index(layer)


def _index(layer: int, stack: Stack, model: nn.Module) -> int:
    count = len(stack)
    if not -count <= layer < count:
        raise OutOfRange(
            f"layer={layer} is out of range: {type(model).__name__} has {count} blocks at {stack.path}. "
            f"Pass 0 to {count - 1}, or -1 for the last."
        )
    return layer % count


def _named_module(model: nn.Module, wanted: Site) -> Point:
    path = wanted.module or ""
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        raise SiteNotFound(_no_module(path, model, list(modules)))
    return Point(path, modules[path], wanted.io, wanted, declared_width(modules[path], wanted.io))


def _no_module(path: str, model: nn.Module, paths: list[str]) -> str:
    parent = path
    while parent not in paths:
        parent = parent.rpartition(".")[0]
    children = [f"{parent}.{name}".lstrip(".") for name, _ in model.get_submodule(parent).named_children()]
    return f"{type(model).__name__} has no module {path!r}.{did_you_mean(path, children)}"
