"""The application: its commands, and how it ends. One line for an error, no traceback without ``--debug``."""

import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from hfsae.cli import check, convert, demo, evaluate, features, index, info, push, steer, train
from hfsae.errors import HfsaeError

app = typer.Typer(
    help="Sparse autoencoders for HuggingFace models: look at features, ablate and steer them, train and publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "info": info.info,
    "features": features.features,
    "index": index.index,
    "steer": steer.steer,
    "eval": evaluate.evaluate,
    "check": check.check,
    "train": train.train,
    "push": push.push,
    "convert": convert.convert,
    "demo": demo.demo,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hfsae {metadata.version('hfsae')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def main() -> None:
    """Run the command line: exit code 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    debug = "--debug" in sys.argv
    try:
        app(prog_name="hfsae")
    except (HfsaeError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader has left, as `head` does: nothing more to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if debug:
            raise
        typer.echo(f"hfsae: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        if debug:
            raise
        typer.echo("hfsae: interrupted", err=True)
        sys.exit(130)
