"""Gemma Scope 2: JumpReLU dictionaries and transcoders for Gemma 3: `config.json` and `params.safetensors`.

Where the config is missing, as in a few releases, the folder's name says the same.
Source: Google DeepMind 2025, the model cards of google/gemma-scope-2-*.
"""

import re
from pathlib import Path
from typing import Any

from hfsae.errors import HfsaeError
from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import read_json
from hfsae.formats.places import from_module, model_id, origin
from hfsae.formats.safetensors_io import read_header, read_tensors
from hfsae.sae.sparse import FeatureList

name = "gemma_scope_2"
_FILE, _CONFIG = "params.safetensors", "config.json"
_KEYS = {"W_enc": "w_enc.T", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"
# Folder, and the side of the module it is about: the folder called attn_out holds the heads before their projection.
_FOLDERS = {
    "resid_post": "output",
    "attn_out": "self_attn.o_proj.input",
    "mlp_out": "post_feedforward_layernorm.output",
    "transcoder": "pre_feedforward_layernorm.output",
}
_WRITTEN = "post_feedforward_layernorm.output"


def matches(path: Path) -> bool:
    """Tell whether a folder or file is of Gemma Scope 2."""
    file = _file(path)
    if file.name != _FILE or not file.is_file():
        return False
    try:
        return {"w_enc", "w_dec", "threshold"} <= set(read_header(file)[0])
    except HfsaeError:
        return True  # damaged, and no other format has a file of that name: reading it says what is wrong


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    file = _file(path)
    tensors = read_tensors(file)
    raw = _config(file)
    if raw.get("architecture", str) != "jump_relu":
        raise raw.error(f"architecture={raw.values['architecture']!r} is not known. It must be 'jump_relu'.")
    skip = _SKIP in tensors
    named = renamed(raw, tensors, _KEYS | ({"W_skip": f"{_SKIP}.T"} if skip else {}))
    if raw.values.get("affine_connection", skip) != skip:
        raise raw.error(f"affine_connection does not agree with the weights, in which {_SKIP!r} is {skip and 'there'}.")
    fields: dict[str, Any] = {"b_pre": "none", "architecture": "jumprelu", "skip": skip}
    reads, writes = (from_module(raw.values.get(key)) for key in ("hf_hook_point_in", "hf_hook_point_out"))
    fields |= {"site": reads.site, "layer": reads.layer, "base_model": _base_model(raw)}
    if raw.values.get("hf_hook_point_out") not in (None, raw.values.get("hf_hook_point_in")):
        d_out = named["W_dec"].shape[-1]
        fields |= {"d_out": d_out, "write_site": writes.site, "write_layer": writes.layer}
    return build(raw, file, named, features, **fields)


def _config(file: Path) -> RawConfig:
    path = file.parent / _CONFIG
    if path.exists():
        return RawConfig(path, read_json(path))
    where = origin(file)
    folder = re.search(r"/(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d{1,5})_", where)
    repository = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", where)
    if folder is None or repository is None:
        return RawConfig(file, {"architecture": "jump_relu"})
    block, side = f"model.layers.{folder.group(2)}", _FOLDERS[folder.group(1)]
    values = {
        "architecture": "jump_relu",
        "model_name": f"gemma-3-{repository.group(1)}",
        "hf_hook_point_in": f"{block}.{side}",
    }
    if folder.group(1) == "transcoder":
        values["hf_hook_point_out"] = f"{block}.{_WRITTEN}"
    return RawConfig(file, values)


def _base_model(raw: RawConfig) -> str | None:
    found = model_id(raw.values.get("model_name"))
    return "google/gemma-3-270m" if found == "google/gemma-3-270m-pt" else found


def _file(path: Path) -> Path:
    return path / _FILE if path.is_dir() else path
