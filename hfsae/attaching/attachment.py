"""A dictionary on a model: the `Attachment`, and how it is put there.

The dictionary is mounted at the module, as an attribute, and joins the module's one hook; the module around is hooked
too, for masks and positions. Edits make plans (edits.py, plan.py); the hook runs them (mount.py, editing.py). Detaching
undoes it all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfsae.attaching import methods
from hfsae.attaching.batching import guard_batching, unguard_batching
from hfsae.attaching.belonging import check_belongs
from hfsae.attaching.mount import Mount
from hfsae.attaching.mounting import check_name, found_in, liveness_of, owner_path, put, take_off
from hfsae.attaching.reading import (
    Recording,
    TopFeatures,
    as_inputs,
    find_tokenizer,
    pad,
    token_names,
    top_features,
    without,
)
from hfsae.errors import InvalidValue
from hfsae.forwards import owner_of
from hfsae.hooks import capture
from hfsae.sae.base import SparseCoder
from hfsae.sae.sparse import SparseFeatures
from hfsae.sites import Point, Site, resolve, unwrap
from hfsae.tracing import guard_remote


@dataclass(frozen=True, eq=False)
class Attachment:
    """A dictionary on a model: what edits it, reads it and takes it off again. Made by `attach`."""

    model: Any
    """The model as it was given."""
    mount: Mount
    """Where the dictionary sits: ``model.transformer.h[8].sae``."""
    point: Point
    """What the dictionary reads."""
    write_point: Point
    """What it writes over; the same, except in transcoders."""
    owner: nn.Module
    """The module around that knows masks and positions."""

    @property
    def dictionary(self) -> SparseCoder:
        """The dictionary itself."""
        return self.mount.dictionary

    @property
    def site(self) -> Site:
        """Where it reads."""
        return self.point.site

    @property
    def module_path(self) -> str:
        """Path of the module it sits on."""
        return self.write_point.path

    @property
    def live(self) -> bool:
        """False once detached, or once the module was replaced by another."""
        watch = liveness_of(self.mount)
        return watch is not None and watch.holds(self.owner)

    ablate = methods.ablate
    set = methods.set_
    scale = methods.scale
    clamp = methods.clamp
    steer = methods.steer
    patch = methods.patch
    splice = methods.splice
    replace = methods.replace
    clear = methods.clear

    def record(self) -> Recording:
        """Return a context manager that keeps the features of every token that passes, in any forward or generate."""
        return Recording(self.mount)

    def top_features(self, inputs: Any, k: int = 8, *, tokenizer: Any = None) -> TopFeatures:
        """Return the ``k`` strongest features of each token; the forward stops at the site.

        Args: inputs: What a tokenizer returns, token ids, or text (with ``tokenizer``, or the model's own).
        """
        if isinstance(inputs, str):
            inputs = (tokenizer or find_tokenizer(self.model))(inputs)
        tensors = as_inputs(inputs, unwrap(self.model))
        codes = self._encode(tensors)
        return top_features(self.dictionary, codes, tensors, token_names(inputs, tensors), k)

    def features_of(self, texts: str | Sequence[str], *, tokenizer: Any = None) -> SparseFeatures:
        """Return the features of texts, ``[texts, tokens, d_sae]``; behind the end of a short one none fires."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed:
            raise InvalidValue("texts is empty. One text or more was expected.")
        tokens = [(tokenizer or find_tokenizer(self.model))(text)["input_ids"] for text in listed]
        tensors = as_inputs(pad(tokens), unwrap(self.model))
        return without(self._encode(tensors), tensors["attention_mask"] == 0)

    def _encode(self, inputs: dict[str, Any]) -> SparseFeatures:
        (x,) = capture(self.model, [self.point], **inputs)
        with torch.no_grad():
            return self.mount.dictionary_on(x.device).encode_sparse(x)

    def detach(self) -> None:
        """Take the dictionary off: no attribute, hook or class stays behind. Harmless when already done."""
        if self.mount.attached:
            take_off(self.mount, self.point, self.write_point, self.owner)
            if not attachments(self.model):
                unguard_batching(unwrap(self.model))

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "" if self.live else ", no longer live"
        return f"Attachment({self.mount.name!r} at {self.module_path}: {self.dictionary}{state})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attachment) and other.mount is self.mount

    def __hash__(self) -> int:
        return hash(self.mount)


def placed(  # noqa: PLR0913 - as `hfsae.attach`, once the point and the dictionary are found
    model: Any,
    dictionary: SparseCoder,
    read: Point,
    *,
    name: str = "sae",
    detach_error: bool = False,
    trainable: bool = False,
    force: bool = False,
) -> Attachment:
    """Put a dictionary at a point of a model.

    Raises:
        Mismatch: when the dictionary does not belong there.
        InvalidValue: when the name is taken.
    """
    root = unwrap(model)
    write = _write_point(root, dictionary, read)
    check_belongs(dictionary, root, read, write, force=force)
    check_name(write.module, name)
    path = owner_path(root, write.path)
    owner = root.get_submodule(path)
    mount = Mount(dictionary, owner_of(owner), name=name, detach_error=detach_error, trainable=trainable)
    put(mount, read, write, write.path[len(path) :].lstrip("."))
    guard_remote()
    guard_batching(root)
    return Attachment(model, mount, read, write, owner)


def attachments(model: Any) -> list[Attachment]:
    """Return what is attached to a model, in the order of its modules."""
    return [Attachment(model, mount, read, write, owner) for mount, read, write, owner in found_in(unwrap(model))]


def detach_all(model: Any) -> None:
    """Take every dictionary off a model."""
    for attachment in attachments(model):
        attachment.detach()


def own_place(sae: SparseCoder, read: bool = True) -> dict[str, Any]:
    """Return where a dictionary says that it reads, or writes, as arguments of `resolve`."""
    config = sae.config
    if read:
        found = {"module": config.module, "io": config.io, "layer": config.layer, "site": config.site}
    else:
        found = {"module": config.write_module, "layer": config.write_layer, "site": config.write_site}
    kept = {name: value for name, value in found.items() if value is not None}
    return {"module": kept["module"], "io": kept.get("io", "output")} if "module" in kept else kept


def _write_point(root: nn.Module, sae: SparseCoder, read: Point) -> Point:
    """Return where the dictionary writes: where it reads, unless it is a transcoder."""
    if not sae.config.is_transcoder:
        return read
    place = own_place(sae, read=False)
    if "module" in place:
        return resolve(root, module=place["module"])
    layer = place.get("layer", read.site.layer)
    if layer is None:
        raise InvalidValue(
            "The transcoder does not say where it writes. A write_module, or a layer to count from, was expected. "
            "Set it in its config, or attach it by layer=."
        )
    return resolve(root, layer, place.get("site", "mlp_out"), stack=read.site.stack)
