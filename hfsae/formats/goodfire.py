"""Goodfire's ReLU dictionaries for the residual stream of Llama 3, one `.pt` file each.

Model and layer stand in the file's name alone: `Llama-3.1-8B-Instruct-SAE-l19.pth`.
Source: Goodfire 2025, the model cards of Goodfire/Llama-3.*-SAE-*.
"""

import re
from pathlib import Path
from typing import Any

from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.pickles import keys_of, read_pt, tensors_of
from hfsae.sae.sparse import FeatureList

name = "goodfire"
_KEYS = {
    "W_enc": "encoder_linear.weight",
    "b_enc": "encoder_linear.bias",
    "W_dec": "decoder_linear.weight.T",
    "b_dec": "decoder_linear.bias",
}


def matches(path: Path) -> bool:
    """Tell whether a file is one of Goodfire's."""
    return keys_of(path) == {theirs.removesuffix(".T") for theirs in _KEYS.values()}


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    raw = RawConfig(path, {"name": path.name})
    tensors = renamed(raw, tensors_of(read_pt(path)), _KEYS)
    named = re.fullmatch(r"(Llama-[\w.-]+)-SAE-l(\d{1,5})\.pth?", path.name)
    place: dict[str, Any] = {}
    if named is not None:
        place = {"base_model": f"meta-llama/{named.group(1)}", "site": "resid_post", "layer": int(named.group(2))}
    return build(raw, path, tensors, features, architecture="standard", b_pre="none", **place)
