"""`hfsae check`: whether a dictionary fits a model, and what is wrong where it does not."""

from pathlib import Path
from typing import Annotated

import typer

from hfsae.check import check as run
from hfsae.cli.options import Device, Model, open_model, read_texts


def check(
    dictionary: Annotated[str, typer.Argument(help="Hub id or folder of one dictionary.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files. Without them: the shipped held-out texts.")
    ] = None,
    model: Model = None,
    device: Device = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 4096,
    tolerance: Annotated[float, typer.Option(min=0.0, help="How much worse than recorded FVU may be.")] = 0.1,
) -> None:
    """Measure whether a dictionary fits a model, and say which layer, site or scale it is for where it does not.

    The exit code is 1 where it does not fit.

    \b
    Examples:
      hfsae check my-dictionary/resid_post.layer_2
      hfsae check owner/repo book.txt --model openai-community/gpt2
    """
    texts = read_texts(files or [], shipped=model is None)
    loaded, tokenizer = open_model(model, device)
    fit = run(loaded, dictionary, texts, tokenizer=tokenizer, max_tokens=max_tokens, tolerance=tolerance)
    typer.echo(str(fit))
    if not fit.ok:
        raise typer.Exit(1)
