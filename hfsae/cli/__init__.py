"""The command line: `hfsae COMMAND --help`. Each command is a thin user of the public API, in a file of its own."""

from hfsae.cli.app import main

__all__ = ["main"]
