"""The table of a model's sites, from its config alone: what `hfsae info` prints."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfsae.errors import HubError, InvalidType, SiteNotFound, Unsupported
from hfsae.sites import SITES, resolve, unwrap
from hfsae.siting.probes import model_failures, undisturbed
from hfsae.siting.stacks import Stack, choose_stack


@dataclass(frozen=True)
class SiteRow:
    """One kind of site on the layers that share a module path, or the layers where it is refused."""

    site: str
    """One of `SITES`."""
    layers: tuple[int, ...]
    """The layers the row speaks of."""
    path: str | None
    """Module path with ``{layer}`` in place of the layer's index; None where the site is refused."""
    io: str
    """Whether the activation is the module's ``"input"`` or ``"output"``."""
    width: int | None
    """Size of the activation's last dimension."""
    how: str
    """How it was proved, or why it is refused."""

    def __str__(self) -> str:
        where = "refused" if self.path is None else f"{self.path}:{self.io}"
        width = "" if self.width is None else str(self.width)
        return f"{self.site:<11}{_ranges(self.layers):<11} {where:<55} {width:<6} {self.how}"


def site_table(model: Any, stack: str | None = None) -> list[SiteRow]:
    """Return the sites of a model: where each is, how wide, how it was proved; nothing is downloaded but the config.

    Args:
        model: A model, a transformers config, a local folder or a Hub id. From a config it is built on the meta device.
        stack: Which stack of blocks; the default is the decoder, or the only one.

    Raises:
        SiteNotFound: when the model has no stack of that name, or several fit.
        InvalidType: when it is none of these.
        HubError: when the config could not be read.
        Unsupported: when no model can be built from the config.
    """
    root = unwrap(model) if isinstance(model, nn.Module) else _empty_model(_config(model))
    chosen = choose_stack(root, stack)
    rows: list[SiteRow] = []
    for site in SITES:
        groups: dict[tuple[str | None, str, int | None, str], list[int]] = {}
        for layer in range(len(chosen)):
            groups.setdefault(_cell(root, chosen, site, layer), []).append(layer)
        rows += [
            SiteRow(site, tuple(layers), path, io, width, how) for (path, io, width, how), layers in groups.items()
        ]
    return rows


def _cell(root: nn.Module, stack: Stack, site: str, layer: int) -> tuple[str | None, str, int | None, str]:
    try:
        point = resolve(root, layer, site, stack=stack.path)
    except SiteNotFound as error:
        reason = str(error).partition(": ")[2].partition(". ")[0] if " is refused in " in str(error) else str(error)
        return None, "", None, reason
    block = stack.blocks[layer][0]
    pattern = point.path.replace(block, f"{block.rpartition('.')[0]}.{{layer}}", 1)
    return pattern, point.io, point.width, point.how


def _ranges(layers: Sequence[int]) -> str:
    """Write ``0,1,2,5`` as ``0-2,5``, and a list of many parts as its count."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(parts) if len(parts) <= 2 else f"{len(layers)} layers"


def _config(model: object) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(model, PretrainedConfig):
        return model
    if not isinstance(model, str | os.PathLike):
        raise InvalidType(f"model is a {type(model).__name__}. A model, a config, a folder or a Hub id was expected.")
    try:
        return AutoConfig.from_pretrained(os.fspath(model))
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise HubError(f"The config of {model!r} could not be read: {first} Pass a folder with config.json.") from error


def _empty_model(config: Any) -> nn.Module:
    """Return the model of a config without weights, on the meta device."""
    model_class = _model_class(config)
    try:
        with undisturbed(), torch.device("meta"):
            model: nn.Module = model_class(copy.deepcopy(config))
    except model_failures() as error:
        raise Unsupported(f"{model_class.__name__} could not be built from its config: {error}") from error
    return model


def _model_class(config: Any) -> type[nn.Module]:
    import transformers

    named = getattr(transformers, (config.architectures or [""])[0], None)
    if isinstance(named, type) and issubclass(named, nn.Module):
        return named
    autos = (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModel)
    for auto in autos:
        if type(config) in auto._model_mapping:
            found = auto._model_mapping[type(config)]
            chosen: type[nn.Module] = found[0] if isinstance(found, tuple) else found
            return chosen
    raise Unsupported(f"transformers has no model for {type(config).__name__}. Pass the model itself.")
