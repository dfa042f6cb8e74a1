"""`hfsae eval`: what splicing a dictionary costs, and how well it reconstructs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hfsae import plots
from hfsae.cli.options import Device, Layer, Model, Sae, Site, open_attachment, read_texts
from hfsae.errors import InvalidValue
from hfsae.evaluate import evaluate as run
from hfsae.measuring.evaluation import Evaluation


def evaluate(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files. Without them: the shipped held-out texts.")
    ] = None,
    model: Model = None,
    sae: Sae = None,
    layer: Layer = None,
    site: Site = "resid_post",
    device: Device = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per batch.")] = 8,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after so many tokens.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them into this picture (png, svg or pdf).")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="The eval.json of another dictionary, for a second picture.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")] = False,
) -> None:
    """Measure a dictionary: CE clean, spliced and ablated, recovered, KL, FVU, L0, dead features.

    \b
    Examples:
      hfsae eval
      hfsae eval book.txt --model openai-community/gpt2 --sae owner/repo --layer 8 --json eval.json --plot eval.png
      hfsae eval --layer 2 --plot layers.png --beside layer-1/eval.json --beside layer-3/eval.json
    """
    others = [Evaluation.load(file) for file in beside or ()]
    if others and plot is None:
        raise InvalidValue("--beside compares dictionaries in a picture. A file for it was expected. Give --plot.")
    comparison = plot.with_stem(f"{plot.stem}-beside") if plot is not None and others else None
    for target in (json_file, plot, comparison):
        if target is not None and target.exists() and not overwrite:
            raise InvalidValue(f"{str(target)!r} exists. An output file is not replaced unasked. Give --overwrite.")
    texts = read_texts(files or [], shipped=model is None)
    attachment, tokenizer = open_attachment(model, sae, layer, site, device)
    named = ", ".join(path.name for path in files or []) or None
    result = run(attachment, texts, tokenizer=tokenizer, batch_size=batch_size, max_tokens=max_tokens, data_name=named)
    typer.echo(str(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    if plot is not None:
        result.plot().savefig(plot, dpi=150)
        typer.echo(f"picture: {plot}")
    if comparison is not None:
        plots.comparison([result, *others]).savefig(comparison, dpi=150)
        typer.echo(f"picture: {comparison}")
