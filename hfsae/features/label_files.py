"""Files of labels: JSON of our own, and the explanations that Neuronpedia exports.

Ours is a list of ``{"feature": 3012, "label": "...", "source": "..."}``. Neuronpedia's is a list (or lines) of objects
with ``index`` and ``description``, and ``explanationModelName`` or ``typeName`` for who says so.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hfsae.errors import CheckpointError, CheckpointNotFound
from hfsae.sae.statistics import Label


def save_labels(path: str | Path, labels: Mapping[int, Label]) -> None:
    """Write labels as JSON, by feature."""
    rows = [{"feature": i, "label": labels[i].text, "source": labels[i].source} for i in sorted(labels)]
    Path(path).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_labels(path: str | Path) -> dict[int, Label]:
    """Read labels: a file of `save_labels`, or explanations exported by Neuronpedia as JSON or as lines of JSON.

    Where several explain one feature, the first counts.

    Raises:
        CheckpointNotFound: when there is no such file.
        CheckpointError: when it is no list of labels; the message names the entry.
    """
    file = Path(path)
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


def _rows(file: Path) -> Iterable[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
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
