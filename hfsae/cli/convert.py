"""`hfsae convert`: rewrite a dictionary in another format."""

from pathlib import Path
from typing import Annotated

import typer

from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue


def convert(
    source: Annotated[str, typer.Argument(help="Hub id or folder, in any format that hfsae reads.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    layer: Annotated[int | None, typer.Option(help="Which dictionary, where the source holds several.")] = None,
    site: Annotated[str | None, typer.Option(help="Which site, where the source holds several.")] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder of the dictionary in the source.")] = None,
    format: Annotated[str, typer.Option(help="Format to write: hfsae or saelens.")] = "hfsae",
) -> None:
    """Convert a dictionary to this project's format or to SAELens'.

    \b
    Examples:
      hfsae convert google/gemma-scope-2b-pt-res gemma-l12 --subfolder layer_12/width_16k/average_l0_82
      hfsae convert me/gpt2-l8 for-saelens --format saelens
    """
    if target.exists():
        raise InvalidValue(f"{str(target)!r} exists. Nothing is replaced. Name a new folder.")
    SAE.from_pretrained(source, layer=layer, site=site, subfolder=subfolder).save_pretrained(target, format=format)
    typer.echo(f"written: {target}")
