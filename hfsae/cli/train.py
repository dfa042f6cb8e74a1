"""`hfsae train`: train a dictionary on a model's activations."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hfsae.cli.options import DEFAULT_LAYER, Device, Model, Site, open_model
from hfsae.default import default_texts
from hfsae.errors import InvalidValue
from hfsae.plots import training
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.train import History, TrainConfig
from hfsae.train import train as run


def train(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files. Without them: the default model's texts.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")] = Path("runs/dictionary"),
    model: Model = None,
    layer: Annotated[int, typer.Option(help="Block, counted from 0; negative counts from the end.")] = DEFAULT_LAYER,
    site: Site = "resid_post",
    architecture: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.", show_default="topk")
    ] = None,
    features: Annotated[
        int | None, typer.Option(min=1, help="d_sae, the number of features. Default: 8 times the width.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Features that may fire per token.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Training tokens.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder to save the run in as it goes on; with what is there it goes on.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Device = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the run into this picture (png, svg or pdf).")] = None,
) -> None:
    """Train a dictionary and save it; `hfsae eval --sae OUT` then measures it.

    \b
    Examples:
      hfsae train --layer 2 text.txt
      hfsae train --layer 2 --architecture batchtopk --checkpoints runs/saved text.txt
      hfsae train --model openai-community/gpt2 --layer 8 --features 24576 -k 32 --tokens 50000000 corpus.txt
    """
    for target, option in ((out, "--out"), (plot, "--plot")):
        if target is not None and target.exists():
            raise InvalidValue(f"{str(target)!r} exists. Nothing is replaced. Name another one with {option}.")
    chosen: dict[str, Any] = {"architecture": architecture, "d_sae": features, "k": k, "tokens": tokens}
    config = TrainConfig(seed=seed, **{name: value for name, value in chosen.items() if value is not None})
    texts: list[Path] | list[str] = files if files else default_texts("train")
    loaded, tokenizer = open_model(model, device)
    history = History()
    place: dict[str, Any] = {"tokenizer": tokenizer, "layer": layer, "site": site}
    run(loaded, texts, **place, config=config, folder=checkpoints, callbacks=[history]).save_pretrained(out)
    if history.figures:
        last = history.figures[-1]
        fvu = last.extra.get("fvu_all", last.losses["fvu"])
        typer.echo(f"last batch: FVU {fvu:.3f}, L0 {last.l0:.1f}, {last.dead:.1%} of the features dead")
    typer.echo(f"written: {out}")
    if plot is not None:
        training(history.figures).savefig(plot, dpi=150)
        typer.echo(f"picture: {plot}")
