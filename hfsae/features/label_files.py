"""Files of labels: JSON of our own, the explanations of Neuronpedia, and those of delphi.

Ours is a list of ``{"feature": 3012, "label": "...", "source": "..."}``. Neuronpedia's is a list (or lines, which its
exports compress) of objects with ``index`` and ``description``, and ``explanationModelName`` or ``typeName`` for who
says so. Delphi's is a folder with a text in JSON for each feature, ``layers.5_latent3012.txt``.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hfsae.errors import CheckpointError, CheckpointNotFound
from hfsae.sae.statistics import Label

_GZIP = b"\x1f\x8b"
_DELPHI = re.compile(r".+_latent(\d{1,9})\.txt")


def save_labels(path: str | Path, labels: Mapping[int, Label], *, neuronpedia: tuple[str, str] | None = None) -> None:
    """Write labels as JSON, by feature.

    Args: neuronpedia: Model and source by Neuronpedia's names, such as ("gpt2-small", "8-res-jb"), to write lines of
        explanations as it exports them; without it, our own format.
    """
    ordered = sorted(labels.items())
    if neuronpedia is None:
        rows = [{"feature": i, "label": label.text, "source": label.source} for i, label in ordered]
        text = json.dumps(rows, ensure_ascii=False, indent=1)
    else:
        where = {"modelId": neuronpedia[0], "layer": neuronpedia[1]}
        told = [{"index": str(i), "description": x.text, "explanationModelName": x.source} for i, x in ordered]
        text = "\n".join(json.dumps(where | row, ensure_ascii=False) for row in told)
    Path(path).write_text(text + "\n", encoding="utf-8")


def load_labels(path: str | Path) -> dict[int, Label]:
    """Read labels: a file of `save_labels`, explanations exported by Neuronpedia, or delphi's folder of explanations.

    Where several explain one feature, the first counts.

    Raises:
        CheckpointNotFound: when there is no such file or folder, or the folder holds none.
        CheckpointError: when it is no list of labels; the message names the entry.
    """
    file = Path(path)
    if file.is_dir():
        return _of_delphi(file)
    if not file.is_file():
        raise CheckpointNotFound(f"{file} is no file. One of labels was expected. Check the path.")
    labels: dict[int, Label] = {}
    for number, row in enumerate(_rows(file)):
        feature, label = _label(row)
        if feature is None or label is None:
            raise CheckpointError(
                f"{file}: entry {number} is no label. A feature (or index) of 0 or more and a label (or description) "
                "were expected."
            )
        labels.setdefault(feature, label)
    return labels


def _of_delphi(folder: Path) -> dict[int, Label]:
    found = {file: _DELPHI.fullmatch(file.name) for file in sorted(folder.iterdir())}
    labels = {int(name[1]): Label(_explanation(file), "delphi") for file, name in found.items() if name is not None}
    if not labels:
        raise CheckpointNotFound(f"{folder} holds no explanation of delphi. Files such as layers.5_latent3.txt do.")
    return dict(sorted(labels.items()))


def _explanation(file: Path) -> str:
    try:
        text = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is no JSON: {error}. An explanation was expected.") from error
    if not isinstance(text, str):
        raise CheckpointError(f"{file} holds a {type(text).__name__}. The text of an explanation was expected.")
    return text


def _rows(file: Path) -> Iterable[Any]:
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{file} is no JSON: {error}. A list of labels was expected.") from error
    return list(rows)


def _label(row: Any) -> tuple[int | None, Label | None]:
    if not isinstance(row, dict):
        return None, None
    feature = row.get("feature", row.get("index"))
    text = row.get("label", row.get("description"))
    if isinstance(feature, str) and feature.isascii() and feature.isdecimal() and len(feature) < 12:
        feature = int(feature)  # Neuronpedia writes its indices as strings
    if isinstance(feature, bool) or not isinstance(feature, int) or feature < 0 or not isinstance(text, str):
        return None, None
    source = row.get("source") or row.get("explanationModelName") or row.get("typeName") or ""
    return feature, Label(text, str(source))
