"""`attach`: put a dictionary on a model.

1. Find the point (`hfsae.sites`) and the dictionary; check that they belong together. Nothing has changed so far.
2. Put it there (`hfsae.attaching.attachment`).
3. Where asked to, measure whether it fits (`hfsae.check`), and warn where it does not.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from warnings import warn

from hfsae.attaching.attachment import Attachment, attachments, detach_all, own_place, placed
from hfsae.attaching.belonging import find_dictionary
from hfsae.attaching.reading import find_tokenizer
from hfsae.check import fit_of
from hfsae.errors import HfsaeWarning, InvalidValue, did_you_mean
from hfsae.sae.base import SparseCoder
from hfsae.sites import resolve, unwrap
from hfsae.tracing import dispatch

__all__ = ["Attachment", "attach", "attachments", "detach_all"]

ERRORS = ("keep", "detach")


def attach(  # noqa: PLR0913 - where, what and how, all but the first two by keyword
    model: Any,
    layer: int | None = None,
    site: str = "resid_post",
    *,
    sae: SparseCoder | str | Path | None = None,
    module: str | None = None,
    io: str = "output",
    stack: str | None = None,
    name: str = "sae",
    error: str = "keep",
    trainable: bool = False,
    force: bool = False,
    check: object = None,
) -> Attachment:
    """Put a dictionary on a model and return what edits and reads it; idle, the model computes bit for bit what it did.

    Args:
        model: A transformers model (PEFT, quantised, compiled, nnsight-wrapped and dispatched ones too) or any module.
        layer: Block to read; negative counts from the end. Left out, with ``sae`` an `SAE`, it is the dictionary's own.
        site: Where in the block: one of `hfsae.sites.SITES`.
        sae: A dictionary, its folder or Hub id; None takes the one registered for this model, layer and site.
        module: Path of any module, in place of ``layer`` and ``site``; ``io`` says which side of it.
        stack: Which stack ``layer`` counts in, where the model has several.
        name: Attribute of the module at which the dictionary is mounted.
        error: ``"detach"`` lets gradients pass through the features alone, for attribution.
        trainable: Register the dictionary's parameters with the model, so that optimizers see them.
        force: Attach a dictionary of another site, layer or model all the same.
        check: Texts or token ids on which `hfsae.check` measures whether it fits; a warning says what is wrong.
    Raises:
        SiteNotFound, OutOfRange: when the model has no such place.
        DictionaryNotFound: when none is registered.
        Mismatch: when the dictionary does not belong there.
        InvalidValue: when the name is taken.
    """
    if error not in ERRORS:
        raise InvalidValue(f"error={error!r} is unknown.{did_you_mean(str(error), ERRORS)}")
    dispatch(model)
    root = unwrap(model)
    wanted: dict[str, Any] = {"layer": layer, "site": site, "module": module, "io": io, "stack": stack}
    if layer is None and module is None and isinstance(sae, SparseCoder) and "." not in site:
        wanted |= own_place(sae)
    read = resolve(root, **wanted)
    dictionary = find_dictionary(sae, root, read.site)
    attachment = placed(
        model, dictionary, read, name=name, detach_error=error == "detach", trainable=trainable, force=force
    )
    if check is not None:
        with ExitStack() as undoing:
            undoing.enter_context(attachment)
            _warn_of_misfit(attachment, check)
            undoing.pop_all()
    return attachment


def _warn_of_misfit(attachment: Attachment, texts: object) -> None:
    listed = [texts] if isinstance(texts, str) else texts
    in_words = isinstance(listed, Sequence) and all(isinstance(text, str) for text in listed)
    fit = fit_of(attachment, listed, tokenizer=find_tokenizer(attachment.model) if in_words else None)
    if not fit.ok:
        warn(f"{attachment.dictionary} at {attachment.site}: {' '.join(fit.problems)}", HfsaeWarning, stacklevel=3)
