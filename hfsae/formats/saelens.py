"""SAELens, 6 and before: a folder with `cfg.json` and `sae_weights.safetensors`.

Since version 6 what concerns the model lies in `metadata`; before, everything lay flat, some names were others, and a
top-k was told by its activation function alone. BatchTopK and Matryoshka are saved as `jumprelu` by SAELens itself.
Source: github.com/decoderesearch/SAELens.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.errors import did_you_mean
from hfsae.formats.building import RawConfig, build, fold_decoder_norm, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import read_json
from hfsae.formats.places import from_hook, model_id, origin
from hfsae.formats.saelens_writer import BELONGS, CONFIG, OURS, WEIGHTS, write
from hfsae.formats.safetensors_io import read_tensors
from hfsae.sae.folding import fold_gated
from hfsae.sae.sparse import FeatureList

__all__ = ["matches", "name", "read", "write"]

name = "saelens"
_PLAIN = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_THRESHOLD = {"threshold": "threshold"}
_GATED = {
    "W_enc": "W_enc.T",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
    "b_gate": "b_gate",
    "r_mag": "r_mag",
    "b_mag": "b_mag",
}
_SKIP = {"W_skip": "W_skip"}
# Their architecture: ours, and their keys by ours.
_ARCHITECTURES = {
    "standard": ("standard", _PLAIN),
    "gated": ("gated", _GATED),
    "jumprelu": ("jumprelu", _PLAIN | _THRESHOLD),
    "topk": ("topk", _PLAIN),
    "transcoder": ("standard", _PLAIN),
    "skip_transcoder": ("standard", _PLAIN | _SKIP),
    "jumprelu_transcoder": ("jumprelu", _PLAIN | _THRESHOLD),
    "jumprelu_skip_transcoder": ("jumprelu", _PLAIN | _THRESHOLD | _SKIP),
}
_BEFORE_6 = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_TOLD = ("dataset_path", "context_size", "prepend_bos", "sae_lens_version", "neuronpedia_id", "hook_name")
# Trained on TransformerLens models whose residual stream has its mean over the width removed; no file says so.
_CENTRED = (
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "tommmcgrath/gpt2-small-mlp-out-saes",
)


def matches(path: Path) -> bool:
    """Tell whether a folder, or its weights' file, is of SAELens."""
    folder = path if path.is_dir() else path.parent
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    folder = path if path.is_dir() else path.parent
    raw = _flattened(RawConfig(folder / CONFIG, read_json(folder / CONFIG)))
    kind = raw.get("architecture", str, "standard")
    if kind not in _ARCHITECTURES:
        raise raw.error(f"architecture={kind!r:.60} is not known.{did_you_mean(kind[:60], _ARCHITECTURES)}")
    architecture, keys = _ARCHITECTURES[kind]
    tensors = renamed(raw, _without_scaling(raw, read_tensors(folder / WEIGHTS)), keys)
    fields: dict[str, Any] = {
        "architecture": architecture,
        "d_in": raw.get("d_in", int),
        "d_sae": raw.get("d_sae", int),
    }
    fields |= _preparation(raw, transcoder="transcoder" in kind) | _belongs(raw)
    if "transcoder" in kind:
        fields |= {"d_out": raw.get("d_out", int, tensors["W_dec"].shape[-1]), "skip": "W_skip" in tensors}
    if architecture == "topk":
        fields["k"] = raw.get("k", int)
    if architecture == "gated":
        gated = (tensors.pop(key) for key in ("W_enc", "b_gate", "r_mag", "b_mag"))
        tensors |= fold_gated(*gated)._asdict()
    if raw.get("rescale_acts_by_decoder_norm", bool, False):
        tensors = fold_decoder_norm(tensors)
    if _is_centred(raw, origin(folder)):
        tensors = _fold_centring(tensors, tied=fields["b_pre"] == "tied")
    return build(raw, folder / WEIGHTS, tensors, features, **fields)


def _flattened(raw: RawConfig) -> RawConfig:
    """The config with what version 6 puts into `metadata` beside the rest, and with its names throughout."""
    metadata = raw.values.get("metadata")
    if isinstance(metadata, dict):
        return RawConfig(raw.path, metadata | dict(raw.values))
    values = {_BEFORE_6.get(key, key): value for key, value in raw.values.items()}
    activation = values.get("activation_fn") or "relu"
    arguments = values.get("activation_fn_kwargs") or {}
    if activation == "topk" and isinstance(arguments, dict):
        values |= {"architecture": "topk", "k": arguments.get("k")}
    elif activation != "relu":
        raise raw.error(f"activation_fn={activation!r:.60} is not known. Known: relu, topk.")
    return RawConfig(raw.path, values)


def _preparation(raw: RawConfig, *, transcoder: bool) -> dict[str, Any]:
    """What is done to the activations before the encoder."""
    subtracts = raw.get("apply_b_dec_to_input", bool, not transcoder)
    normalize = raw.values.get("normalize_activations") or "none"
    if normalize == "expected_average_only_in" or normalize is True:
        raise raw.error("the weights expect activations scaled to a mean norm, and the scale is in neither file.")
    if normalize not in ("none", "layer_norm"):
        raise raw.error(f"normalize_activations={normalize!r:.60} is not known. Known: none, layer_norm.")
    if raw.values.get("reshape_activations", "none") not in (None, "none", "hook_z"):
        raise raw.error("reshape_activations is not known. Known: none, hook_z.")
    if raw.values.get("hook_head_index") is not None:
        raise raw.error("it reads a single head, which is no site here.")
    return {"b_pre": "tied" if subtracts else "none", "normalize": normalize}


def _belongs(raw: RawConfig) -> dict[str, Any]:
    """Where it belongs: what we wrote there ourselves, else what their names say."""
    values = raw.values
    written = values.get(OURS)
    if isinstance(written, dict):
        return {field: written[field] for field in BELONGS if field in written}
    read_from, writes = from_hook(values.get("hook_name")), from_hook(values.get("hook_name_out"))
    fields: dict[str, Any] = {
        "site": read_from.site,
        "layer": read_from.layer,
        "base_model": model_id(values.get("model_name")),
        "exclude_special_tokens": bool(values.get("exclude_special_tokens", False)),
        "training": {key: values[key] for key in _TOLD if values.get(key) is not None},
    }
    return fields | ({"write_site": writes.site, "write_layer": writes.layer} if values.get("hook_name_out") else {})


def _without_scaling(raw: RawConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without a factor per feature that was written for a while, always of ones."""
    scaling = tensors.get("scaling_factor")
    if scaling is not None and not torch.equal(scaling, torch.ones_like(scaling)):
        raise raw.error("'scaling_factor' is not all ones. Dictionaries finetuned so are not supported.")
    return {key: tensor for key, tensor in tensors.items() if key != "scaling_factor"}


def _is_centred(raw: RawConfig, where: str) -> bool:
    said = raw.values.get("model_from_pretrained_kwargs")
    if isinstance(said, dict) and "center_writing_weights" in said:
        return bool(said["center_writing_weights"])
    return any(re.search(rf"(^|/){re.escape(repository)}/", where) for repository in _CENTRED)


def _fold_centring(tensors: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """The dictionary that reads raw activations and equals one that reads them with their mean over the width removed.

    ``w.(x - mean(x)) = (w - mean(w)).x``. What it writes stays centred: every reader of the residual stream of such a
    model takes the mean away itself.
    """
    mean = tensors["W_enc"].mean(dim=1, keepdim=True)
    folded = dict(tensors) | {"W_enc": tensors["W_enc"] - mean}
    if tied:  # b_dec was subtracted as it is, not centred
        folded["b_enc"] = tensors["b_enc"] - mean.squeeze(1) * tensors["b_dec"].sum()
    return folded
