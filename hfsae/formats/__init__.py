"""Checkpoint formats, one file each, told apart by content."""

from pathlib import Path
from types import ModuleType

from hfsae.errors import CheckpointError, InvalidValue, Unsupported, did_you_mean
from hfsae.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    native,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from hfsae.formats.checkpoint import Checkpoint
from hfsae.sae.sparse import FeatureList

FORMATS: tuple[ModuleType, ...] = (
    native,
    saelens,
    gemma_scope,
    gemma_scope_2,
    dictionary_learning,
    qwen_scope,
    sparsify,
    llama_scope,
    openai,
    circuit_tracer,
    goodfire,
)
"""Every format, each with `name`, `matches` and `read`, some with `write`; the first that matches reads."""


def named(format: str) -> ModuleType:
    """Return the format of that name.

    Raises: InvalidValue: when there is none.
    """
    known = {module.name: module for module in FORMATS}
    if format not in known:
        raise InvalidValue(f"format={format!r} is unknown.{did_you_mean(str(format), known)}")
    return known[format]


def detect(path: Path) -> ModuleType:
    """Return the format of a dictionary's folder or file, judged by its content.

    Raises: CheckpointError: when it is of none.
    """
    for module in FORMATS:
        if module.matches(path):
            return module
    known = ", ".join(module.name for module in FORMATS)
    raise CheckpointError(f"{path} is of no known format. Known: {known}. Say format= if it is one of them.")


def read_checkpoint(path: Path, format: str | None = None, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary from disk, or only those rows of it.

    Args: format: Its name in `FORMATS`; None judges by content.
    """
    module = detect(path) if format is None else named(format)
    checkpoint: Checkpoint = module.read(path, features=features)
    return checkpoint


def write_checkpoint(checkpoint: Checkpoint, folder: Path, format: str = native.name) -> Path:
    """Write a dictionary and return its own folder.

    Raises: Unsupported: when that format is only read.
    """
    module = named(format)
    if not hasattr(module, "write"):
        writable = ", ".join(m.name for m in FORMATS if hasattr(m, "write"))
        raise Unsupported(f"The format {format!r} is only read. Written are: {writable}.")
    written = module.write(checkpoint, folder)
    return written if isinstance(written, Path) else folder
