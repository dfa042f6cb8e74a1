"""OpenAI's dictionaries for GPT-2 small, ReLU or top-k, one `.pt` state dict each.

Location and layer stand in the path alone: `gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt`.
Source: Gao et al. 2024, arXiv:2406.04093; github.com/openai/sparse_autoencoder.
"""

import re
from pathlib import Path
from typing import Any

from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.pickles import keys_of, read_pt, tensors_of
from hfsae.formats.places import origin
from hfsae.sae.sparse import FeatureList

name = "openai"
_KEYS = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight.T", "b_dec": "pre_bias"}
_COUNTERS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_SITES = {
    "resid_post_mlp": "resid_post",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "mlp_post_act": "mlp_act",
}


def matches(path: Path) -> bool:
    """Tell whether a file is one of OpenAI's."""
    return {"encoder.weight", "latent_bias", "pre_bias"} <= keys_of(path)


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    content = read_pt(path)
    said = {key: content.get(key) for key in ("activation", "activation_state_dict")}
    raw = RawConfig(path, {key: value for key, value in said.items() if value is not None})
    tensors = renamed(raw, tensors_of(content), _KEYS, ignored=_COUNTERS)
    return build(raw, path, tensors, features, **_activation(raw), **_place(origin(path)))


def _activation(raw: RawConfig) -> dict[str, Any]:
    activation = raw.get("activation", str, "ReLU")
    if activation == "ReLU":
        return {"architecture": "standard"}
    if activation != "TopK":
        raise raw.error(f"activation={activation!r} is not known. Known: ReLU, TopK.")
    state = raw.inside("activation_state_dict")
    if state.get("postact_fn", str, "ReLU") != "ReLU":
        raise raw.error(f"postact_fn={state.values['postact_fn']!r} is not known. It must be ReLU.")
    # Their top-k dictionaries all read layer-normed activations; the file does not say so.
    return {"architecture": "topk", "k": state.get("k", int), "normalize": "layer_norm"}


def _place(where: str) -> dict[str, Any]:
    found = re.search(r"/(" + "|".join(_SITES) + r")(?:_v\d\w*)?/autoencoders/(\d{1,5})\.pt$", where)
    fields: dict[str, Any] = {}
    if found is not None:
        fields = {"site": _SITES[found.group(1)], "layer": int(found.group(2))}
    if "gpt2-small" in where:
        fields["base_model"] = "openai-community/gpt2"
    return fields
