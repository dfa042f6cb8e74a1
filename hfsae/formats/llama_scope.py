"""Llama Scope, three layouts of one library (OpenMOSS' Language-Model-SAEs).

1. 2024: `hyperparams.json` and `checkpoints/final.safetensors`; one threshold for all features.
2. R1-Distill: `config.json` and `sae_weights.safetensors`, a log threshold per feature.
3. Current: the same two files with the names W_E, b_E, W_D, b_D.

Weights of all three expect activations scaled to a mean norm of sqrt(d_in), unless the config says "inference".
Source: He et al. 2024, arXiv:2410.20526; github.com/OpenMOSS/Language-Model-SAEs.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.errors import HfsaeError
from hfsae.formats.building import RawConfig, build, fold_decoder_norm, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import read_json
from hfsae.formats.places import from_hook
from hfsae.formats.safetensors_io import read_header, read_tensors
from hfsae.sae.sparse import FeatureList

name = "llama_scope"
_FIRST, _FIRST_WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_LATER, _LATER_WEIGHTS = "config.json", "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm"
_LINEAR = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight.T",
    "b_dec": "decoder.bias",
}
_CURRENT = {"W_enc": "W_E.T", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
_LOG_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")


def matches(path: Path) -> bool:
    """Tell whether a folder is of Llama Scope."""
    if (path / _FIRST).is_file():
        return (path / _FIRST_WEIGHTS).is_file()
    weights = path / _LATER_WEIGHTS
    if not (path / _LATER).is_file() or not weights.is_file() or (path / "cfg.json").exists():
        return False
    try:
        return bool({"encoder.weight", "W_E"} & set(read_header(weights)[0]))
    except HfsaeError:
        return False


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    first = (path / _FIRST).is_file()
    config, weights = (path / (_FIRST if first else _LATER)), path / (_FIRST_WEIGHTS if first else _LATER_WEIGHTS)
    raw = RawConfig(config, read_json(config))
    given = read_tensors(weights, finite=False)  # a norm that was never measured is stored as whatever was in memory
    norms = _norms(raw, given)
    rest = {key: tensor for key, tensor in given.items() if not key.startswith(f"{_NORM}.")}
    tensors = _first(raw, rest, norms) if first else _later(raw, rest)
    fields: dict[str, Any] = {"b_pre": "tied" if raw.values.get("apply_decoder_bias_to_pre_encoder") else "none"}
    fields |= _activation(raw, tensors) | _place(raw) | {"d_in": raw.get("d_model", int)}
    if norms is not None:
        d_in = tensors["W_enc"].shape[1]
        fields |= {"normalize": "scale", "scale": math.sqrt(d_in) / norms[0]}
        if "write_site" in fields:  # of a transcoder we scale only what it reads
            unscale = norms[1] / math.sqrt(tensors["W_dec"].shape[1])
            tensors |= {"W_dec": tensors["W_dec"] * unscale, "b_dec": tensors["b_dec"] * unscale}
    return build(raw, weights, tensors, features, **fields)


def _norms(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[float, float] | None:
    """The mean norms of what it reads and writes; None where the weights expect raw activations."""
    kind = raw.get("norm_activation", str, "dataset-wise")
    if kind == "inference":
        return None
    if kind != "dataset-wise":
        raise raw.error(f"norm_activation={kind!r} is not known. Known: dataset-wise, inference.")
    said = raw.values.get(_NORM)
    found = []
    for side in ("in", "out"):
        hook = raw.get(f"hook_point_{side}", str)
        stored = given.get(f"{_NORM}.{hook}")
        value = said.get(side, said.get(hook)) if isinstance(said, dict) else stored
        norm = float(value) if isinstance(value, (int, float, Tensor)) else math.nan
        if not 0 < norm < math.inf:
            raise raw.error(f"the mean norm at {hook!r} is missing. The weights expect activations scaled by it.")
        found.append(norm)
    return found[0], found[1]


def _first(raw: RawConfig, given: Mapping[str, Tensor], norms: tuple[float, float] | None) -> dict[str, Tensor]:
    tensors = renamed(raw, given, _LINEAR)
    # It is in units of raw activations, the features are in those of scaled ones.
    scale = math.sqrt(raw.get("d_model", int)) / norms[0] if norms is not None else 1.0
    return tensors | {"threshold": torch.tensor(raw.get("jump_relu_threshold", float) * scale)}


def _later(raw: RawConfig, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    keys = _CURRENT if "W_E" in given else _LINEAR
    log_threshold = next((key for key in _LOG_THRESHOLDS if key in given), None)
    tensors = renamed(raw, given, keys | ({"threshold": log_threshold} if log_threshold else {}))
    if log_threshold:
        tensors["threshold"] = tensors["threshold"].float().exp()
    if raw.get("sparsity_include_decoder_norm", bool, False):
        if raw.values.get("act_fn") == "topk":
            return fold_decoder_norm(tensors)
        if log_threshold:  # z |w_dec| > threshold
            tensors["threshold"] = tensors["threshold"] / tensors["W_dec"].float().norm(dim=1)
    return tensors


def _activation(raw: RawConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = raw.get("act_fn", str, "jumprelu")
    if kind == "topk":
        return {"architecture": "topk", "k": raw.get("top_k", int)}
    if (
        kind not in ("relu", "jumprelu")
        or (kind == "jumprelu") != ("threshold" in tensors)
        or raw.values.get("use_glu_encoder")
    ):
        raise raw.error(f"act_fn={kind!r} with these weights is not known. Known: relu, topk, jumprelu.")
    return {"architecture": "standard" if kind == "relu" else "jumprelu"}


def _place(raw: RawConfig) -> dict[str, Any]:
    read_from, written = (from_hook(raw.get(f"hook_point_{side}", str)) for side in ("in", "out"))
    fields: dict[str, Any] = {"site": read_from.site, "layer": read_from.layer}
    if raw.values["hook_point_in"] != raw.values["hook_point_out"]:
        fields |= {"write_site": written.site, "write_layer": written.layer}
    return fields
