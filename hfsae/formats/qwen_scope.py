"""Qwen Scope: top-k dictionaries for the residual stream of Qwen 3 and 3.5, one `layer{n}.sae.pt` per layer.

k and the model stand in the name of the repository alone: `Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50`.
Source: Qwen team 2026, the model cards of Qwen/SAE-Res-*.
"""

import re
from pathlib import Path

from hfsae.formats.building import RawConfig, build, renamed
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.pickles import keys_of, read_pt, tensors_of
from hfsae.formats.places import origin
from hfsae.sae.sparse import FeatureList

name = "qwen_scope"
_KEYS = {"W_enc": "W_enc", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_dec": "b_dec"}


def matches(path: Path) -> bool:
    """Tell whether a file is of Qwen Scope."""
    return keys_of(path) == set(_KEYS)


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or those rows of it.

    Raises: CheckpointError, CheckpointNotFound, OutOfRange: as `hfsae.formats.native.read`.
    """
    where = origin(path)
    raw = RawConfig(path, {"path": where})
    repository = re.search(r"SAE-Res-(.+?)-W\d+K-L0_(\d{1,6})", where)
    layer = re.fullmatch(r"layer(\d{1,5})\.sae\.pt", path.name)
    if repository is None or layer is None:
        raise raw.error(
            "k and layer cannot be known: they stand only in names, SAE-Res-<model>-W<width>K-L0_<k>/layer<n>.sae.pt. "
            "Load it from the Hub, or keep it in a folder and a file of those names."
        )
    tensors = renamed(raw, tensors_of(read_pt(path)), _KEYS)
    return build(
        raw,
        path,
        tensors,
        features,
        architecture="topk",
        k=int(repository.group(2)),
        b_pre="none",
        site="resid_post",
        layer=int(layer.group(1)),
        base_model=f"Qwen/{repository.group(1)}",
    )
