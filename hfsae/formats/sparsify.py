"""sparsify (EleutherAI): a folder per hookpoint with `cfg.json` and `sae.safetensors`, top-k with or without a skip.

A hookpoint is a module's path below the base model, so `layers.10` is the output of block 10. The model's name stands
in the config one folder up.
Source: github.com/EleutherAI/sparsify.
"""

from pathlib import Path
from typing import Any

from hfsae.errors import HfsaeError
from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import read_json
from hfsae.formats.places import from_module, model_id
from hfsae.formats.safetensors_io import read_tensors
from hfsae.sae.sparse import FeatureList

name = "sparsify"
_FILE, _CONFIG = "sae.safetensors", "cfg.json"
_KEYS = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}


def matches(path: Path) -> bool:
    """Tell whether a folder, or its weights' file, is of sparsify."""
    folder = path if path.is_dir() else path.parent
    return (folder / _CONFIG).is_file() and (folder / _FILE).is_file()


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    folder = path if path.is_dir() else path.parent
    raw = RawConfig(folder / _CONFIG, read_json(folder / _CONFIG))
    activation, transcodes, skip = (
        raw.get("activation", str, "topk"),
        raw.get("transcode", bool, False),
        raw.get("skip_connection", bool, False),
    )
    if activation != "topk" or raw.get("signed", bool, False):
        raise raw.error(
            f"activation={activation!r} with signed={raw.values.get('signed')!r} is not known. Only topk is."
        )
    tensors = renamed(raw, read_tensors(folder / _FILE), _KEYS | ({"W_skip": "W_skip"} if skip else {}))
    fields: dict[str, Any] = {
        "architecture": "topk",
        "k": raw.get("k", int),
        "d_in": raw.get("d_in", int),
        "d_sae": raw.get("num_latents", int, 0) or raw.get("d_in", int) * raw.get("expansion_factor", int),
        "skip": skip,
    }
    run = _run(folder.parent)
    block = from_module(f"{folder.name}.output")
    fields |= {"site": block.site, "layer": block.layer, "base_model": model_id(run.get("model"))}
    fields["training"] = {key: run[key] for key in ("model", "dataset", "ctx_len") if key in run} | {
        "hookpoint": folder.name
    }
    if transcodes:
        read_from = from_module(f"{folder.name}.input")
        fields |= {"b_pre": "none", "d_out": tensors["W_dec"].shape[-1]}
        fields |= {"site": read_from.site, "layer": read_from.layer}
        fields |= {"write_site": block.site, "write_layer": block.layer}
    return build(raw, folder / _FILE, tensors, features, **fields)


def _run(folder: Path) -> dict[str, Any]:
    """The config of the run, if it is there; a damaged one tells nothing, and nothing in it changes the numbers."""
    try:
        return read_json(folder / "config.json")
    except HfsaeError:
        return {}
