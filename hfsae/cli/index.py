"""`hfsae index`: find what every feature of a dictionary fires on."""

from pathlib import Path
from typing import Annotated

import typer

from hfsae.cli.options import Device, Layer, Model, Sae, Site, open_attachment, read_texts
from hfsae.features import index_features


def index(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files. Without them: the shipped held-out texts.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the index; a pass that was interrupted goes on there.")] = Path(
        "runs/index"
    ),
    model: Model = None,
    sae: Sae = None,
    layer: Layer = None,
    site: Site = "resid_post",
    device: Device = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after so many tokens.")] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Strongest contexts kept of each feature.")] = 16,
    small: Annotated[bool, typer.Option("--small", help="Keep a few short contexts, compressed.")] = False,
) -> None:
    """Index what the features fire on in one pass over texts; `hfsae features --index OUT` then shows and searches it.

    \b
    Examples:
      hfsae index book.txt --layer 2
      hfsae index corpus.txt --model openai-community/gpt2 --sae my/resid_post.layer_8 --out my/resid_post.layer_8/index
    """
    texts = read_texts(files or [], shipped=model is None)
    attachment, tokenizer = open_attachment(model, sae, layer, site, device)
    found = index_features(attachment, texts, tokenizer=tokenizer, folder=out, max_tokens=max_tokens, contexts=contexts)
    if small:
        found.trimmed().save(out, packed=True)
    fire = int((found.density > 0).sum())
    typer.echo(f"written: {out}, {found.tokens:,} tokens, {fire:,} of {len(found):,} features fire")
