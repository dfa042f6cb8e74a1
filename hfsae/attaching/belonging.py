"""Which dictionary a user means, and whether it belongs at a point of a model."""

import warnings
from pathlib import Path

from torch import nn

from hfsae import registry
from hfsae.dictionary import SAE
from hfsae.errors import DictionaryNotFound, HfsaeWarning, InvalidType, Mismatch
from hfsae.sae.base import SparseCoder
from hfsae.sites import Point, Site, base_model_id


def find_dictionary(sae: SparseCoder | str | Path | None, model: nn.Module, site: Site) -> SparseCoder:
    """Return the dictionary itself, load it, or look up the one registered for this model and site.

    Raises:
        DictionaryNotFound: when none is registered; the message lists what is.
        InvalidType: when it is none of these.
    """
    if isinstance(sae, SparseCoder):
        return sae
    if isinstance(sae, str | Path):
        return SAE.from_pretrained(sae, layer=site.layer, site=site.site if site.layer is not None else None)
    if sae is not None:
        raise InvalidType(f"sae is a {type(sae).__name__}. An SAE, a folder or a Hub id was expected.")
    name = base_model_id(model)
    found = None if site.layer is None else registry.find(name, site.layer, site.site or "resid_post")
    if found is None:
        raise DictionaryNotFound(_what_is_registered(name, site))
    if found.path is not None:
        return SAE.from_pretrained(found.path)
    return SAE.from_pretrained(str(found.repo_id), subfolder=found.subfolder)


def _what_is_registered(name: str | None, site: Site) -> str:
    known = registry.known(name)
    if known:
        listed = "; ".join(map(str, known[:12]))
        return f"No dictionary is registered for {site} of {name!r}. Known for it: {listed}. Choose one, or pass sae=."
    listed = ", ".join(registry.models())
    return (
        f"No dictionary is registered for the model {name!r}. Known models: {listed}. "
        "Pass sae= with a folder, a Hub id or an SAE."
    )


def check_belongs(sae: SparseCoder, model: nn.Module, read: Point, write: Point, *, force: bool) -> None:
    """Refuse a dictionary of another width, site or layer, and warn of one of another base model.

    Raises: Mismatch: with ``force`` only for the width, which no force can mend.
    """
    config = sae.config
    for width, needed, point in ((config.d_in, read.width, read), (config.d_write, write.width, write)):
        if needed is not None and width != needed:
            raise Mismatch(
                f"The dictionary has width {width}, {point.site} of {type(model).__name__} has {needed}. "
                "One width was expected. Choose a dictionary trained there."
            )
    if force:
        return
    asked, trained = _depth(read.site), _trained_at(sae)
    if trained is not None and asked is not None and _depth(trained) != asked:
        raise Mismatch(
            f"The dictionary was trained at {trained}, not at {read.site}. Its own place was expected. "
            "Attach it there, or pass force=True."
        )
    name = base_model_id(model)
    if config.base_model is not None and name is not None and not _same_model(config.base_model, name):
        warnings.warn(
            f"The dictionary was trained on {config.base_model!r}, this model is {name!r}. "
            "Its features may mean other things here. Pass force=True to attach without this warning.",
            HfsaeWarning,
            stacklevel=4,
        )


def _trained_at(sae: SparseCoder) -> Site | None:
    config = sae.config
    if config.module is not None:
        return Site(module=config.module, io=config.io)
    if config.site is None or config.layer is None:
        return None
    return Site(config.site, config.layer, stack=config.stack)


def _depth(site: Site) -> tuple[object, ...] | None:
    """Return what tells places apart; what leaves one block is what enters the next."""
    if site.module is not None:
        return (site.module, site.io)
    if site.site == "resid_pre" and site.layer:
        return ("resid_post", site.layer - 1)
    return (site.site, site.layer)


def _same_model(one: str, other: str) -> bool:
    return one == other or one.rpartition("/")[2].lower() == other.rpartition("/")[2].lower()
