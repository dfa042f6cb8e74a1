"""`hfsae push`: publish a folder of dictionaries."""

from pathlib import Path
from typing import Annotated

import typer

from hfsae import hub


def push(
    folder: Annotated[Path, typer.Argument(help="Folder that `save_pretrained` or `hfsae train` wrote.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created when it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repo as private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card and the files, and send nothing.")] = False,
) -> None:
    """Publish dictionaries to the Hub in one commit, with a card made from their measured numbers.

    \b
    Examples:
      hfsae push runs/gpt2-l8 me/gpt2-l8 --dry-run
      hfsae push runs/gpt2-l8 me/gpt2-l8 --private
    """
    typer.echo(hub.push(folder, repo_id, private=private, revision=revision, create_pr=create_pr, dry_run=dry_run))
