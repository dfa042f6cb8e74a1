"""Our own format: a folder per dictionary, and an index above them.

    config.json                                  the index: what is here, with size and sha256 of each file
    resid_post.layer_8/config.json               `SAEConfig`, and the fingerprint
    resid_post.layer_8/sae.safetensors           the parameters; row i of each matrix is feature i
    resid_post.layer_8/stats.safetensors         each row's probe values, and `FeatureStatistics` where measured
    resid_post.layer_8/labels.json, eval.json    what features are called, what an evaluation gave; where there are any
    resid_post.layer_8/index/                    what its features fire on (`FeatureIndex.save`); likewise

A dictionary's folder is all that reading it takes; the index serves who lists or downloads.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from torch import Tensor

from hfsae.errors import CheckpointError, HfsaeError, InvalidValue, Mismatch, Unsupported
from hfsae.formats import fingerprint
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.files import read_json, write_file_atomically, write_folder_atomically, write_json
from hfsae.formats.safetensors_io import check_finite, read_tensors, write_tensors
from hfsae.sae.base import parameter_shapes
from hfsae.sae.config import SAEConfig
from hfsae.sae.folding import fold_scale
from hfsae.sae.sparse import FeatureList, feature_ids
from hfsae.sae.statistics import FeatureStatistics, Label

name = "hfsae"
FORMAT_VERSION = 1
"""Raised when an old reader would misread a new file."""
CONFIG, WEIGHTS, STATISTICS, LABELS, EVALUATION = (
    "config.json",
    "sae.safetensors",
    "stats.safetensors",
    "labels.json",
    "eval.json",
)
FEATURE_INDEX = "index"
"""Folder of a feature index."""
FEATURE_INDEX_FILES = tuple(f"{FEATURE_INDEX}/index.{ending}" for ending in ("json", "safetensors", "safetensors.xz"))
_OURS = ("library_name", "format_version", "fingerprint")
_INDEXED = ("base_model", "base_revision", "site", "layer", "module", "architecture", "d_in", "d_sae")
_PER_ROW = ("W_enc", "b_enc", "W_dec", "threshold")
_PER_FEATURE = (*fingerprint.PROBES, "density", "max", "mean")


def matches(path: Path) -> bool:
    """Tell whether a folder, or its weights' file, is a dictionary of ours."""
    folder = path if path.is_dir() else path.parent
    if path.name not in (WEIGHTS, CONFIG) and not path.is_dir():
        return False
    if not (folder / CONFIG).is_file():
        return False
    try:
        return read_json(folder / CONFIG).get("library_name") == name
    except HfsaeError:
        # Damaged: ours where its weights' file has our name, so that reading it says what is wrong with it.
        return (folder / STATISTICS).exists()


def read(path: Path, *, features: FeatureList | None = None) -> Checkpoint:
    """Read a dictionary, or only those rows of it, and verify its fingerprint.

    Raises:
        CheckpointNotFound: when a file is missing.
        CheckpointError: when one is damaged, or they do not belong together.
        OutOfRange: when there is no such feature.
    """
    folder = path if path.is_dir() else path.parent
    config, recorded = _read_config(folder / CONFIG)
    ids = None if features is None else feature_ids(features, config.d_sae)
    if ids is not None and len(ids.unique()) != len(ids):  # type: ignore[no-untyped-call]
        raise InvalidValue("features names a feature twice. Each row is loaded once. Name each once.")
    tensors = _rows(folder / WEIGHTS, parameter_shapes(config), _PER_ROW, ids)
    measured = _read_statistics(folder / STATISTICS, config, ids)
    probes = {key: measured.pop(key) for key in fingerprint.PROBES}
    fingerprint.verify(folder / WEIGHTS, tensors, probes, recorded)
    return Checkpoint(
        config=config,
        tensors=tensors,
        statistics=_statistics(folder / STATISTICS, measured),
        labels=_read_labels(folder / LABELS, config),
        source=str(folder),
        features=ids,
        content=str(recorded.get("content", ""))[:8] or None,
    )


def write(checkpoint: Checkpoint, root: Path) -> Path:
    """Write a dictionary into a repository's folder, beside those it holds, and return the dictionary's own folder.

    A scale is folded into the weights. A dictionary of the same place is replaced, the folder whole at every instant.

    Raises:
        Unsupported: when it is a slice.
        InvalidValue: when a weight is NaN or infinite.
        Mismatch: when the folder is of another base model.
        CheckpointError: when it cannot be written there.
    """
    checkpoint = _ready(checkpoint)
    place = checkpoint.config.place
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):

        def write_all(aside: Path) -> None:
            (aside / place).mkdir()
            _write_dictionary(checkpoint, aside / place, None)
            write_json(aside / CONFIG, _index(aside, {}))

        write_folder_atomically(root, write_all)
        return root / place
    index = _read_index(root, checkpoint.config)
    write_folder_atomically(root / place, lambda aside: _write_dictionary(checkpoint, aside, root / place))
    index.pop(place, None)
    write_file_atomically(root / CONFIG, lambda aside: write_json(aside, _index(root, index)))
    return root / place


def note_measured(folder: Path, found: Mapping[str, Any]) -> None:
    """Add to what was measured of a saved dictionary."""
    path = folder / EVALUATION
    known = read_json(path) if path.is_file() else {}
    write_file_atomically(path, lambda aside: write_json(aside, known | dict(found)))


def _read_config(path: Path) -> tuple[SAEConfig, dict[str, Any]]:
    values = read_json(path)
    if "dictionaries" in values:
        raise CheckpointError(f"{path} is the index of several dictionaries. Name one: layer=, site= or subfolder=.")
    version = values.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} has format_version {version!r:.40}. It must be 1 to {FORMAT_VERSION}.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version!r:.40}; this hfsae reads up to {FORMAT_VERSION}. Upgrade."
        )
    recorded = values.get("fingerprint")
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{path} has no fingerprint to verify the weights by. Save the dictionary again.")
    try:
        return SAEConfig.from_dict({key: v for key, v in values.items() if key not in _OURS}), recorded
    except HfsaeError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _rows(
    path: Path, shapes: Mapping[str, tuple[int, ...]], per_row: tuple[str, ...], ids: Tensor | None
) -> dict[str, Tensor]:
    rows = {} if ids is None else {key: ids for key in per_row if key in shapes}
    # The fingerprint looks at every number of the weights, and finds NaN and infinity on its way.
    return read_tensors(path, shapes, rows=rows, finite=False)


def _read_statistics(path: Path, config: SAEConfig, ids: Tensor | None) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_FEATURE, (config.d_sae,))
    shapes |= {"mean_norm": (1,), "tokens": (1,), "mean_activation": (config.d_in,)}
    rows = {} if ids is None else dict.fromkeys(_PER_FEATURE, ids)
    optional = set(shapes) - set(fingerprint.PROBES)
    return read_tensors(path, shapes, optional=optional, rows=rows)


def _statistics(path: Path, measured: dict[str, Tensor]) -> FeatureStatistics | None:
    if not measured:
        return None
    try:
        return FeatureStatistics.from_tensors(measured)
    except HfsaeError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_labels(path: Path, config: SAEConfig) -> dict[int, Label]:
    if not path.exists():
        return {}
    labels = {}
    for key, value in read_json(path).items():
        text = value.get("text") if isinstance(value, dict) else None
        if not key.isdecimal() or len(key) > 12 or int(key) >= config.d_sae or not isinstance(text, str):
            raise CheckpointError(
                f"{path}: the label {key[:40]!r} is not {{feature: {{'text': ..., 'source': ...}}}} with a feature of "
                f"0 to {config.d_sae - 1}. Correct it."
            )
        labels[int(key)] = Label(text, str(value.get("source", "")))
    return labels


def _ready(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.features is not None:
        raise Unsupported("This is a slice of a dictionary. Only whole ones are saved. Load it without features=.")
    for key, tensor in checkpoint.tensors.items():
        try:
            check_finite(Path(checkpoint.config.place), key, tensor)
        except CheckpointError as error:
            raise InvalidValue(f"{error} Nothing was saved.") from error
    config, tensors = fold_scale(checkpoint.config, checkpoint.tensors)
    return replace(checkpoint, config=config, tensors=tensors)


def _write_dictionary(checkpoint: Checkpoint, folder: Path, before: Path | None) -> None:
    config, tensors = checkpoint.config, checkpoint.tensors
    probes = fingerprint.row_probes(tensors)
    recorded = fingerprint.describe(config, tensors, probes)
    header = {"library_name": name, "format_version": FORMAT_VERSION}
    write_json(folder / CONFIG, header | config.to_dict() | {"fingerprint": recorded})
    write_tensors(folder / WEIGHTS, tensors)
    measured = {} if checkpoint.statistics is None else checkpoint.statistics.to_tensors()
    write_tensors(folder / STATISTICS, probes | measured)
    if checkpoint.labels:
        labels = {
            str(i): {"text": label.text, "source": label.source} for i, label in sorted(checkpoint.labels.items())
        }
        write_json(folder / LABELS, labels)
    if before is not None and _content(before) == recorded["content"]:
        _keep_what_was_measured(before, folder)


def _keep_what_was_measured(before: Path, folder: Path) -> None:
    """Copy what was found out about the same weights; it still holds."""
    for name in (EVALUATION, *FEATURE_INDEX_FILES):
        if (before / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            copyfile(before / name, folder / name)


def _content(folder: Path) -> str | None:
    try:
        return str(read_json(folder / CONFIG)["fingerprint"]["content"])
    except (HfsaeError, KeyError, TypeError):
        return None


def _read_index(root: Path, config: SAEConfig) -> dict[str, Any]:
    if not root.is_dir():
        raise CheckpointError(f"{root} is a file. A dictionary is saved into a folder. Name one.")
    if not (root / CONFIG).exists():
        return {}
    index = read_json(root / CONFIG).get("dictionaries")
    if not isinstance(index, dict):
        raise CheckpointError(
            f"{root / CONFIG} is no index of dictionaries. A dictionary is saved into a folder of its own, "
            "or beside others. Name another folder."
        )
    for place, entry in index.items():
        base = entry.get("base_model") if isinstance(entry, dict) else None
        if base is not None and config.base_model is not None and base != config.base_model:
            raise Mismatch(
                f"{root} holds {place[:80]!r} of {base!r:.80}; this dictionary is of {config.base_model!r}. "
                "A repository is of one base model. Save it elsewhere."
            )
    return index


def _index(root: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """The index of the dictionaries in a folder; entries still known are kept, others are made."""
    entries = {}
    for folder in sorted(path.parent for path in root.glob(f"*/{WEIGHTS}")):
        if not folder.name.startswith("."):
            entries[folder.name] = known.get(folder.name) or _entry(folder)
    return {"library_name": name, "format_version": FORMAT_VERSION, "dictionaries": entries}


def _entry(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    named = (CONFIG, WEIGHTS, STATISTICS, EVALUATION, LABELS, *FEATURE_INDEX_FILES)
    files = {name: _facts(folder / name) for name in named if (folder / name).is_file()}
    return {key: config.get(key) for key in _INDEXED} | {"files": files}


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
