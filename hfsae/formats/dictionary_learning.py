"""dictionary_learning: a folder `trainer_<i>` with `config.json` and `ae.pt`, one class of dictionary each.

The class stands in the config. Matrices of `nn.Linear` are stored output first, those of bare parameters input first:
which is which follows from their keys.
Source: github.com/saprmarks/dictionary_learning.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from warnings import warn

from torch import Tensor

from hfsae.errors import HfsaeWarning, did_you_mean
from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import read_json
from hfsae.formats.pickles import read_pt, tensors_of
from hfsae.formats.places import model_id, origin
from hfsae.sae.folding import fold_gated
from hfsae.sae.sparse import FeatureList

name = "dictionary_learning"
_FILE, _CONFIG = "ae.pt", "config.json"
_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight.T"}
_BARE = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SITES = {
    "resid_post": "resid_post",
    "resid_pre": "resid_pre",
    "mlp_out": "mlp_out",
    "attn_out": "attn_out",
    "attention_out": "attn_out",
}


def matches(path: Path) -> bool:
    """Tell whether a folder, or its `ae.pt`, is of dictionary_learning."""
    return _file(path).name == _FILE and _file(path).is_file()


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    A file that an interrupted run left behind holds weights for activations divided by a norm; they are rescaled as the
    end of the run would have done.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    file = _file(path)
    raw = RawConfig(file.parent / _CONFIG, read_json(file.parent / _CONFIG))
    trainer = raw.inside("trainer")
    kind = trainer.get("dict_class", str)
    if kind not in _CLASSES:
        raise trainer.error(f"dict_class={kind!r} is not known.{did_you_mean(kind, _CLASSES)}")
    content = read_pt(file)
    norm = 1.0
    if isinstance(content.get("ae"), dict):
        norm, content = (
            RawConfig(file, {"norm_factor": content.get("norm_factor")}).get("norm_factor", float),
            content["ae"],
        )
    fields, tensors = _CLASSES[kind](trainer, tensors_of(content))
    scaled = {key: t * norm if key.startswith("b_") or key == "threshold" else t for key, t in tensors.items()}
    return build(raw, file, scaled, features, **fields, **_belongs(trainer, origin(file)))


Fields = dict[str, Any]
Tensors = dict[str, Tensor]


def _auto_encoder(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[Fields, Tensors]:
    tensors = renamed(raw, given, _LINEAR | {"b_enc": "encoder.bias", "b_dec": "bias"})
    return {"architecture": "standard"}, tensors


def _auto_encoder_new(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[Fields, Tensors]:
    tensors = renamed(raw, given, _LINEAR | {"b_enc": "encoder.bias", "b_dec": "decoder.bias"})
    return {"architecture": "standard", "b_pre": "none"}, tensors


def _gated(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[Fields, Tensors]:
    keys = {"b_dec": "decoder_bias", "r_mag": "r_mag", "b_gate": "gate_bias", "b_mag": "mag_bias"}
    found = renamed(raw, given, _LINEAR | keys)
    folded = fold_gated(found["W_enc"], found["b_gate"], found["r_mag"], found["b_mag"])
    tensors = {"W_dec": found["W_dec"], "b_dec": found["b_dec"], **folded._asdict()}
    return {"architecture": "gated"}, tensors


def _jumprelu(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[Fields, Tensors]:
    return {"architecture": "jumprelu", "b_pre": "none"}, renamed(raw, given, _BARE)


def _top_k(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[Fields, Tensors]:
    keys = _LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec", "k": "k"}
    tensors = renamed(raw, given, keys, ignored=("threshold",))  # it serves an option of theirs that is off by default
    return {"architecture": "topk", "k": _k(raw, tensors.pop("k"))}, tensors


def _batch_top_k(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[Fields, Tensors]:
    keys = _LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec", "k": "k", "threshold": "threshold"}
    tensors = renamed(raw, given, keys)
    fields = {"architecture": "batchtopk", "k": _k(raw, tensors.pop("k"))}
    return fields, tensors | {"threshold": _learned(raw, tensors["threshold"])}


def _matryoshka(raw: RawConfig, given: Mapping[str, Tensor]) -> tuple[Fields, Tensors]:
    tensors = renamed(raw, given, _BARE | {"k": "k", "group_sizes": "group_sizes"})
    groups = tensors.pop("group_sizes")
    if groups.ndim != 1 or groups.is_floating_point():
        raise raw.error(f"group_sizes is {groups.dtype} {list(groups.shape)}. It must be a vector of integers.")
    fields = {"architecture": "matryoshka", "k": _k(raw, tensors.pop("k")), "group_sizes": tuple(groups.tolist())}
    return fields, tensors | {"threshold": _learned(raw, tensors["threshold"])}


_CLASSES: dict[str, Callable[[RawConfig, Mapping[str, Tensor]], tuple[Fields, Tensors]]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}


def _k(raw: RawConfig, k: Tensor) -> int:
    if k.numel() != 1 or k.is_floating_point():
        raise raw.error(f"k is {k.dtype} {list(k.shape)}. It must be one integer.")
    return int(k.item())


def _learned(raw: RawConfig, threshold: Tensor) -> Tensor:
    """The threshold found in training; -1 stands for none yet, and then every positive feature fires."""
    if threshold.ndim == 0 and float(threshold) < 0:
        warn(
            f"{raw.path}: training ended before a threshold was set. Far more than k features will fire.",
            HfsaeWarning,
            stacklevel=2,
        )
    return threshold.clamp(min=0)


def _belongs(trainer: RawConfig, where: str) -> Fields:
    values = trainer.values
    named = f"{values.get('submodule_name') or ''} {where}"
    site = re.search(r"(" + "|".join(_SITES) + r")_layer_\d{1,5}", named)
    told = ("lm_name", "lr", "steps", "seed", "submodule_name")
    return {
        "site": _SITES[site.group(1)] if site else None,
        "layer": values.get("layer"),
        "base_model": model_id(values.get("lm_name")),
        "d_in": values.get("activation_dim"),
        "d_sae": values.get("dict_size"),
        "training": {key: values[key] for key in told if key in values},
    }


def _file(path: Path) -> Path:
    return path / _FILE if path.is_dir() else path
