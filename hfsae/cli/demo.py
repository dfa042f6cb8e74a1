"""`hfsae demo`: the steering demo in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from hfsae.cli.options import Device, Layer, Model, Sae, Site
from hfsae.demo.app import demo as build
from hfsae.demo.app import launch


def demo(
    model: Model = None,
    sae: Sae = None,
    layer: Layer = None,
    site: Site = "resid_post",
    device: Device = None,
    index: Annotated[
        Path | None, typer.Option(help="Folder of a feature index, for labels, contexts and search.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Without it: the first free one from 7860.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also open a public link: anyone who has it can use it.")
    ] = False,
) -> None:
    """Open the steering demo on http://127.0.0.1, with default and steered text side by side.

    Programs use its endpoints through gradio_client: generate, inspect, search, card, contrast, cost, python.

    \b
    Examples:
      hfsae demo
      hfsae demo --port 8000 --layer 1
      hfsae demo --model openai-community/gpt2 --sae owner/repo --layer 8 --index my-index
    """
    if share:
        typer.echo(
            "Warning: --share opens a public link through gradio's servers. Anyone with the link can use this model."
        )
    page = build(model, sae=sae, layer=layer, site=site, device=device, index=index)
    _, address, _ = launch(page, port=port, share=share, block=False)
    typer.echo(f"Open {address} in a browser. Press Ctrl-C to stop.")
    page.block_thread()
