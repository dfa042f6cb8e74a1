"""`hfsae info`: the sites of a model, and the dictionaries known for it."""

from typing import Annotated

import typer

from hfsae import registry
from hfsae.siting.tables import site_table


def info(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a model; only its config is read.")],
    dictionaries: Annotated[
        bool, typer.Option("--dictionaries", help="List the dictionaries known for the model.")
    ] = False,
) -> None:
    """Show where dictionaries can attach in a model.

    \b
    Examples:
      hfsae info openai-community/gpt2
      hfsae info --dictionaries google/gemma-2-2b
    """
    rows = registry.known(model) if dictionaries else site_table(model)
    for row in rows:
        typer.echo(str(row))
