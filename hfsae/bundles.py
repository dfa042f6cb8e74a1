"""Models and results that travel: edits as JSON, a model saved with its dictionaries and edits beside it."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.attach import Attachment, attach, attachments
from hfsae.attaching.edits import Edit, Part
from hfsae.dictionary import SAE
from hfsae.errors import CheckpointError, CheckpointNotFound, Mismatch, Unsupported, did_you_mean
from hfsae.formats.files import write_file_atomically
from hfsae.interventions import Add, Clamp, Intervention, Patch, Push, Scale, Set, Splice
from hfsae.selectors import Selector
from hfsae.sites import unwrap

VERSION = 1
KINDS: dict[str, type[Intervention]] = {kind.__name__: kind for kind in (Set, Scale, Clamp, Add, Patch, Push, Splice)}
"""What can be written down; a function cannot."""
_FOLDER, _INDEX = "hfsae", "attachments.json"


def save_edits(path: str | Path, *edits: Edit) -> Path:
    """Write edits as JSON, each with the id of its dictionary and its place, and return the file.

    Raises: Unsupported: when one replaces activations by a function.
    """
    rows = [[_part(part) for part in edit.parts] for edit in edits]
    return _write(Path(path), {"version": VERSION, "edits": rows})


def load_edits(path: str | Path, model: Any, *, force: bool = False) -> list[Edit]:
    """Read edits written by `save_edits`, for the dictionaries that are attached to a model.

    Args: force: Take a dictionary with other weights at the same place.
    Raises:
        CheckpointNotFound: when there is no such file.
        CheckpointError: when it is damaged, or of a later version.
        Mismatch: when the dictionary of an edit is not attached.
    """
    content = _read(Path(path))
    attached = attachments(model)
    try:
        return [Edit([_load_part(row, attached, force=force) for row in rows]) for rows in content["edits"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, Mismatch | CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: an edit cannot be read. {type(error).__name__}: {error}. Save it anew."
        ) from error


def save_attached(model: Any, folder: str | Path) -> Path:
    """Save a model as transformers does, its dictionaries and applied edits beside it in ``hfsae/``.

    The files of the model are stock: `from_pretrained` reads them without this package.

    Raises: Unsupported: when it is no transformers model, or a dictionary cannot be saved.
    """
    root, folder = unwrap(model), Path(folder)
    save = getattr(root, "save_pretrained", None)
    if save is None or getattr(root, "peft_config", None) is not None:
        raise Unsupported(f"{type(root).__name__} does not save itself whole. A transformers model was expected.")
    attached = attachments(model)
    wrong = [att for att in attached if not isinstance(att.dictionary, SAE)]
    if wrong:
        raise Unsupported(f"The dictionary at {wrong[0].module_path} is no SAE. Only an SAE can be saved.")
    rows = [_attachment_row(att) for att in attached]
    registered = tuple(f"{att.module_path}.{att.mount.name}.".lstrip(".") for att in attached if att.mount.trainable)
    state = {name: value for name, value in root.state_dict().items() if not name.startswith(registered)}
    save(folder, **({"state_dict": state} if registered else {}))
    for index, att in enumerate(attached):
        own = att.dictionary.save_pretrained(folder / _FOLDER / str(index))  # type: ignore[operator]
        rows[index]["dictionary"] = str(own.relative_to(folder))
    _write(folder / _FOLDER / _INDEX, {"version": VERSION, "attachments": rows})
    return folder


def load_attached(folder: str | Path, **options: Any) -> Any:
    """Load a model saved by `save_attached`, its dictionaries attached and its edits applied; see `attachments`.

    Args: options: For the model's ``from_pretrained``.
    """
    import transformers

    folder = Path(folder)
    content = _read(folder / _FOLDER / _INDEX)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, **options)
    for row in content["attachments"]:
        sae = SAE.from_pretrained(_inside(folder, row["dictionary"]))
        given = {"name": row["name"], "error": row["error"], "trainable": row.get("trainable", False), **row["place"]}
        att = attach(model, sae=sae, force=True, **given)
        for saved in row["edits"]:
            Edit([Part(att.mount, _intervention(saved), saved["kind"])]).apply()
    return model


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder}: the dictionary {name!r} lies outside of the folder. Save it anew.")
    return path


def _attachment_row(att: Attachment) -> dict[str, Any]:
    site = att.site
    place = {"module": site.module, "io": site.io} if site.module else {"layer": site.layer, "site": site.site}
    standing = att.mount.standing
    return {
        "name": att.mount.name,
        "error": "detach" if att.mount.detach_error else "keep",
        "trainable": att.mount.trainable,
        "place": place | ({"stack": site.stack} if site.stack else {}),
        "edits": [_saved(entry.intervention) for entry in (standing.entries if standing is not None else ())],
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        "dictionary": getattr(part.mount.dictionary, "id", None),
        "place": str(part.mount.places[0].site),
        "name": part.mount.name,
        "text": part.text,
        **_saved(part.intervention),
    }


def _load_part(row: dict[str, Any], attached: Sequence[Attachment], *, force: bool) -> Part:
    here = [att for att in attached if (str(att.site), att.mount.name) == (row["place"], row["name"])]
    same = [att for att in here if getattr(att.dictionary, "id", None) == row["dictionary"]]
    chosen = same or (here if force else [])
    if not chosen:
        known = ", ".join(f"{getattr(att.dictionary, 'id', None)} at {att.site}" for att in attached) or "nothing"
        raise Mismatch(
            f"The edit is for {row['dictionary']} at {row['place']}, named {row['name']!r}. Attached: {known}. "
            "Attach that dictionary there, or pass force=True for another at the same place."
        )
    return Part(chosen[0].mount, _intervention(row), str(row["text"]))


def _saved(intervention: Intervention) -> dict[str, Any]:
    kind = type(intervention).__name__
    if kind not in KINDS:
        raise Unsupported(f"A {kind} edit holds a function, which JSON cannot. Save edits of features or vectors.")
    values = {f.name: getattr(intervention, f.name) for f in fields(intervention) if f.name != "where"}
    where = {f.name: getattr(intervention.where, f.name) for f in fields(Selector)}
    return {"kind": kind, "values": _plain(values), "where": _plain(where)}


def _intervention(row: dict[str, Any]) -> Intervention:
    if row["kind"] not in KINDS:
        raise CheckpointError(f"An edit of kind {row['kind']!r} is unknown.{did_you_mean(str(row['kind']), KINDS)}")
    return KINDS[row["kind"]](where=Selector(**_restored(row["where"])), **_restored(row["values"]))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON holds them; tensors and slices under a key that says so, infinities as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"tensor": plain(value.tolist()), "dtype": str(value.dtype).removeprefix("torch.")}
        if isinstance(value, slice):
            return {"slice": [value.start, value.stop]}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in values.items()}


def _restored(values: dict[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> Any:
        return [number(item) for item in value] if isinstance(value, list) else float(value)

    def restored(value: Any) -> Any:
        if isinstance(value, dict) and "slice" in value:
            return slice(*value["slice"])
        if isinstance(value, dict):
            if value["dtype"] in ("int64", "bool"):
                return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
            return torch.tensor(number(value["tensor"]), dtype=torch.float64).to(_float(value["dtype"]))
        return tuple(value) if isinstance(value, list) else value

    return {name: restored(value) for name, value in values.items()}


def _float(name: str) -> torch.dtype:
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise CheckpointError(f"An edit holds numbers of type {name!r}.{did_you_mean(name, known)}")
    return known[name]


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False)
    write_file_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))
    return path


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointNotFound(f"{path} does not exist. A file written by hfsae was expected. Check the path.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}. A file written by hfsae was expected.") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else None
        raise CheckpointError(f"{path} has version {found!r}. Version {VERSION} was expected. Update hfsae.")
    return content
