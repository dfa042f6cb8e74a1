"""What several commands share: the options that name a model and a dictionary, and opening them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfsae.attach import Attachment, attach
from hfsae.default import default_texts, load_default
from hfsae.errors import InvalidValue

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = Annotated[
    str | None, typer.Option(help="Hub id or folder of a causal model. Without it: the shipped default model.")
]
Sae = Annotated[
    str | None, typer.Option(help="Hub id or folder of a dictionary. Without it: the one registered for the model.")
]
Layer = Annotated[int | None, typer.Option(help="Block, counted from 0; negative counts from the end.")]
Site = Annotated[str, typer.Option(help="Where in the block: resid_pre, resid_mid, resid_post, attn_out, mlp_out, ...")]
Device = Annotated[
    str | None, typer.Option(help="Where to run, such as cuda or cpu. Without it: wherever the model loads.")
]

DEFAULT_LAYER = 2
"""The layer of the shipped model that commands look at when none is named."""


def open_model(model: str | None, device: str | None) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load the named causal model and its tokenizer, or the shipped default ones."""
    if model is None:
        return load_default(device=device)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    return loaded.to(device) if device else loaded, AutoTokenizer.from_pretrained(model)


def open_attachment(
    model: str | None, sae: str | None, layer: int | None, site: str, device: str | None
) -> tuple[Attachment, "PreTrainedTokenizerBase"]:
    """Load a model and attach a dictionary to it; the shipped default where neither is named."""
    if layer is None and model is None and sae is None:
        layer = DEFAULT_LAYER
    loaded, tokenizer = open_model(model, device)
    return attach(loaded, layer, site, sae=sae), tokenizer


def read_texts(files: list[Path], shipped: bool) -> list[str]:
    """Read whole text files; with none named, the shipped held-out texts where the model is the shipped one."""
    if not files and shipped:
        return default_texts("validation") + default_texts("heldout")
    if not files:
        raise InvalidValue(
            "No text to read. A model of yours needs one or more text files. Name them after the command."
        )
    for file in files:
        if not file.is_file():
            raise InvalidValue(f"{str(file)!r} is no file. Name one or more text files.")
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]
