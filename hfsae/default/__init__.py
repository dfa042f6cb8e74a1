"""The language model, its texts and its dictionaries that ship with the package, so that everything runs offline.

A GPT-2 of 4 blocks and width 192 trained on Python source by `hfsae.default.make`, with a TopK dictionary after block 1
and after block 2. What it reached is in ``files/model.json`` and in its card.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hfsae.default.corpus import library_texts
from hfsae.errors import CheckpointError, InvalidValue, did_you_mean
from hfsae.features import FeatureIndex

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

FILES = Path(__file__).with_name("files")
"""Folder of the shipped model, tokenizer, texts and dictionaries."""
MODEL_NAME = "hfsae/stdlib-gpt2"
"""What the model calls itself; the shipped dictionaries are registered under it."""
SHIPPED_SPLITS = ("validation", "heldout")


def load_default(device: "torch.device | str | None" = None) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]":
    """Return the shipped language model, in fp32 and eval mode, and its tokenizer; reads no network.

    Args:
        device: Where the model goes; the CPU when left out.

    Example:
        >>> model, tokenizer = load_default()
        >>> tokenizer.decode(tokenizer("import os").input_ids)
        '<|endoftext|>import os'
    """
    model, tokenizer = load_model(FILES)
    return model.to(device or "cpu"), tokenizer


def load_model(folder: Path) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]":
    """Return a default model and its tokenizer from the folder they were made in, under the name they ship by."""
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    with _no_progress_bar():
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.name_or_path = model.config._name_or_path = MODEL_NAME
    model.loss_type = "ForCausalLM"  # what transformers 5 falls back to for GPT-2, with a warning
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without transformers' bar, which would say that 5 MB were read."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def load_index() -> FeatureIndex:
    """Return the index of what the features of the dictionary after block 2 fire on.

    Example:
        >>> load_index()[3707].promoted[0][0]
        ' ValueError'
    """
    return FeatureIndex.load(FILES / "resid_post.layer_2" / "index")


def default_texts(split: str = "validation") -> list[str]:
    """Return the documents of one split of the default model's own text: whole Python files.

    Args:
        split: ``"validation"``: files of the Python 3.11 library, never trained on, shipped with the package.
            ``"heldout"``: files of its test suite, held back and shipped likewise.
            ``"train"``: the library files trained on, read from the running Python, whose version may differ.

    Raises:
        InvalidValue: when there is no such split.
        CheckpointError: when a shipped text is not the one that was shipped.
        CheckpointNotFound: for ``"train"``, when the running Python has no sources.

    Example:
        >>> sum(len(text.encode()) for text in default_texts("validation"))
        501353
    """
    if split in SHIPPED_SPLITS:
        return list(shipped_texts()[split].values())
    if split == "train":
        return list(library_texts("train").values())
    raise InvalidValue(f"There is no split {split!r}.{did_you_mean(split, [*SHIPPED_SPLITS, 'train'])}")


@lru_cache(maxsize=1)
def shipped_texts() -> dict[str, dict[str, str]]:
    """Return the shipped texts as split, then path in the library, then text; each checked against its hash."""
    path = FILES / "texts.json.xz"
    texts: dict[str, dict[str, str]] = json.loads(lzma.decompress(path.read_bytes()))
    hashes: dict[str, dict[str, str]] = json.loads((FILES / "texts.json").read_text())["sha256"]
    for split in SHIPPED_SPLITS:
        found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts[split].items()}
        if found != hashes[split]:
            changed = sorted(name for name, _ in found.items() ^ hashes[split].items())
            raise CheckpointError(
                f"{path.name} is not the file that was shipped: {changed[0]!r} of split {split!r} differs. "
                "The texts are fixed so that figures can be compared. Install hfsae again."
            )
    return texts
