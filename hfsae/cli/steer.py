"""`hfsae steer`: a generation before and after edits."""

from typing import Annotated, Any, cast

import torch
import typer

from hfsae.attach import Attachment
from hfsae.cli.options import Device, Layer, Model, Sae, Site, open_attachment
from hfsae.errors import InvalidValue


def steer(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    feature: Annotated[
        list[str] | None, typer.Option(help="FEATURE:STRENGTH to steer; may be given several times.")
    ] = None,
    ablate: Annotated[
        list[int] | None, typer.Option(help="A feature to switch off; may be given several times.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Unit of the strengths: activation, max or norm.")] = "max",
    model: Model = None,
    sae: Sae = None,
    layer: Layer = None,
    site: Site = "resid_post",
    device: Device = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to generate.")] = 40,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling, the same for both texts.")] = 0,
) -> None:
    """Continue a prompt as the model would, and again with features steered or switched off.

    \b
    Examples:
      hfsae steer "The default value is" --feature 1204:2
      hfsae steer "import os" --ablate 311 --tokens 60
    """
    attachment, tokenizer = open_attachment(model, sae, layer, site, device)
    edit = _edit(attachment, feature or [], ablate or [], unit)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    options = {"max_new_tokens": tokens, "repetition_penalty": 1.1, **sampling}

    def continued() -> str:
        torch.manual_seed(seed)
        ids: Any = tokenizer(prompt, return_tensors="pt").to(attachment.model.device)
        written = attachment.model.generate(**ids, **options)
        return str(tokenizer.decode(written[0], skip_special_tokens=True))

    typer.echo(f"--- default\n{continued()}")
    with edit:
        typer.echo(f"--- {edit}\n{continued()}")


def _edit(attachment: Attachment, steered: list[str], ablated: list[int], unit: str) -> Any:
    """Join the edits that the options ask for, in the order steered, then ablated."""
    edits: list[Any] = []
    for item in steered:
        number, _, strength = item.partition(":")
        if not number.strip().isdigit() or not _is_number(strength):
            raise InvalidValue(f"--feature {item!r} cannot be read. Expected FEATURE:STRENGTH, such as 1204:2.5.")
        edits.append(attachment.steer(int(number), float(strength), unit=cast(Any, unit)))
    if ablated:
        edits.append(attachment.ablate(ablated))
    if not edits:
        raise InvalidValue("Nothing to change. Give --feature FEATURE:STRENGTH or --ablate FEATURE.")
    joined = edits[0]
    for edit in edits[1:]:
        joined = joined | edit
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
