"""Gemma Scope 1: JumpReLU dictionaries for Gemma 2, as `params.npz` with no config.

What it is for stands in the names of the repository and of the folder alone:
`google/gemma-scope-9b-pt-att/layer_20/width_16k/average_l0_91`. Not trained on the beginning-of-sequence token.
Source: Lieberum et al. 2024, arXiv:2408.05147.
"""

import re
from pathlib import Path
from typing import Any

from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.npz import names_in, read_npz
from hfsae.formats.places import origin
from hfsae.sae.sparse import FeatureList

name = "gemma_scope"
_FILE = "params.npz"
_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
# "att" is the concatenated heads, input of the output projection; "mlp" comes after the norm that follows the MLP.
_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}


def matches(path: Path) -> bool:
    """Tell whether a folder or file is of Gemma Scope 1."""
    return {key.lower() for key in names_in(_file(path))} == {key.lower() for key in _KEYS}


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    file = _file(path)
    arrays = read_npz(file)
    raw = RawConfig(file, {"path": origin(file)})
    lower = {key.lower(): tensor for key, tensor in arrays.items()}  # their case varies from release to release
    tensors = renamed(
        raw,
        lower,
        {"W_enc": "w_enc.T", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"},
    )
    return build(raw, file, tensors, features, architecture="jumprelu", b_pre="none", **_belongs(origin(file)))


def _belongs(where: str) -> dict[str, Any]:
    """The fields of the config that the path tells."""
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", where)
    layer = re.search(r"/layer_(\d{1,5})/", where)
    if repository is None:
        return {}
    size, variant, kind = repository.groups()
    fields: dict[str, Any] = {"base_model": f"google/gemma-2-{size}" + ("-it" if variant == "it" else "")}
    if "/embedding/" in where:
        return fields | {"module": "model.embed_tokens"}
    place = {"layer": int(layer.group(1))} if layer else {}
    if kind == "transcoders":
        # They read the norm before the MLP without its gain, which no module of HuggingFace's Gemma returns.
        reads = {"training": {"reads": f"the norm before the MLP of layer {place.get('layer')}, before its gain"}}
        return fields | reads | {"write_site": "mlp_out", "write_layer": place.get("layer")}
    return fields | place | {"site": _SITES[kind]}


def _file(path: Path) -> Path:
    return path / _FILE if path.is_dir() else path
