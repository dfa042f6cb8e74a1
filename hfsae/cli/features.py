"""`hfsae features`: which features fire on a text, what one feature is, or which features match a word."""

from typing import Annotated

import typer

from hfsae.cli.options import Device, Layer, Model, Sae, Site, open_attachment


def features(
    text: Annotated[str, typer.Argument(help="The text to read.")],
    model: Model = None,
    sae: Sae = None,
    layer: Layer = None,
    site: Site = "resid_post",
    device: Device = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many features to show per token.")] = 4,
) -> None:
    """Show the strongest features of each token of a text.

    \b
    Examples:
      hfsae features "import os, sys"
      hfsae features "The Eiffel Tower" --model openai-community/gpt2 --sae owner/repo --layer 8
    """
    attachment, tokenizer = open_attachment(model, sae, layer, site, device)
    typer.echo(f"{attachment.dictionary.id} at {attachment.module_path}")
    typer.echo(str(attachment.top_features(tokenizer(text, return_tensors="pt"), k=k, tokenizer=tokenizer)))
