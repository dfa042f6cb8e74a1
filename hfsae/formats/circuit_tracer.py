"""Transcoders for circuit-tracer: `layer_<i>.safetensors` beside one `config.yaml` for all layers.

Source: github.com/safety-research/circuit-tracer.
"""

import re
from pathlib import Path
from typing import Any

from hfsae.errors import HfsaeError
from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import open_regular
from hfsae.formats.places import from_hook, model_id
from hfsae.formats.safetensors_io import read_header, read_tensors
from hfsae.sae.sparse import FeatureList

name = "circuit_tracer"
_KEYS = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_THRESHOLD = "activation_function.threshold"
_LARGEST = 2**20


def matches(path: Path) -> bool:
    """Tell whether a file is such a transcoder."""
    if not re.fullmatch(r"layer_\d{1,5}\.safetensors", path.name) or not path.is_file():
        return False
    try:
        return set(_KEYS.values()) <= set(read_header(path)[0])
    except HfsaeError:
        return True  # damaged, and no other format names its files so: reading it says what is wrong


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a transcoder, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    raw = _config(path.parent / "config.yaml")
    given = read_tensors(path)
    skips, jumps = "W_skip" in given, _THRESHOLD in given
    keys = _KEYS | ({"W_skip": "W_skip"} if skips else {}) | ({"threshold": _THRESHOLD} if jumps else {})
    tensors = renamed(raw, given, keys)
    layer = re.sub(r"\D", "", path.name)
    read_from, written = (
        from_hook(f"blocks.{layer}.{raw.get(f'feature_{side}_hook', str)}") for side in ("input", "output")
    )
    fields: dict[str, Any] = {
        "architecture": "jumprelu" if jumps else "standard",
        "b_pre": "none",
        "d_out": tensors["W_dec"].shape[-1],
        "skip": skips,
        "site": read_from.site,
        "layer": read_from.layer,
        "write_site": written.site,
        "write_layer": written.layer,
        "base_model": model_id(raw.values.get("model_name")),
        "training": {"reads": raw.values["feature_input_hook"], "writes": raw.values["feature_output_hook"]},
    }
    return build(raw, path, tensors, features, **fields)


def _config(path: Path) -> RawConfig:
    import yaml

    with open_regular(path) as file:
        text = file.read(_LARGEST)
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RawConfig(path).error("it is no valid YAML. It may be cut off. Fetch it again.") from error
    if not isinstance(values, dict):
        raise RawConfig(path).error(f"it holds a {type(values).__name__}. It must hold settings by name.")
    # Settings are plain values; what is nested could, by YAML's references, be endless when it is shown.
    return RawConfig(path, {str(key): value for key, value in values.items() if isinstance(value, (str, int, float))})
