"""What a push to the Hub would write: which files of which dictionaries, the index of the repository, and its card.

Files are named one by one, never by folder, and links are refused: nothing else that lies beside a dictionary leaves
the machine.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfsae.card import CardEntry, render
from hfsae.errors import CheckpointNotFound, InvalidValue
from hfsae.formats import native
from hfsae.formats.files import read_json
from hfsae.sae.config import SAEConfig

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

INDEX, CARD = "config.json", "README.md"
PUBLISHED = (
    native.CONFIG,
    native.WEIGHTS,
    native.STATISTICS,
    native.EVALUATION,
    native.LABELS,
    *native.FEATURE_INDEX_FILES,
)
"""The files of a dictionary that are published, the first two of them always there."""


@dataclass(frozen=True)
class Dictionary:
    """A saved dictionary, about to be published."""

    place: str
    """Its folder in the repository."""
    folder: Path
    """Where it lies here."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return read_json(self.folder / native.CONFIG)

    @cached_property
    def files(self) -> list[tuple[str, int, str]]:
        """Name, size and sha256 of its files."""
        return [_facts(self.folder, name) for name in PUBLISHED if (self.folder / name).is_file()]

    def entry(self) -> CardEntry:
        """What the card says of it."""
        beside = (self.folder / name for name in (native.EVALUATION, native.LABELS))
        measured, labels = (read_json(path) if path.is_file() else {} for path in beside)
        return CardEntry(place=self.place, config=self.config, measured=measured, labels=labels, files=self.files)


@dataclass(frozen=True)
class Present:
    """What the repository holds before the push."""

    commit: str | None = None
    """Its head."""
    index: Mapping[str, Any] = field(default_factory=dict)
    """Its root config.json."""
    card: str | None = None
    """Its README.md."""
    entries: Sequence[CardEntry] = ()
    """The dictionaries it holds."""


@dataclass(frozen=True)
class Plan:
    """What a push would write; prints as its files and its card."""

    repo_id: str
    """Where it would go."""
    dictionaries: Sequence[Dictionary]
    """What would be uploaded."""
    index: str
    """The index it would write."""
    card: str
    """The card it would write."""

    @property
    def files(self) -> dict[str, Path | bytes]:
        """What would be written, by path in the repository."""
        found: dict[str, Path | bytes] = {INDEX: self.index.encode(), CARD: self.card.encode()}
        for dictionary in self.dictionaries:
            found |= {f"{dictionary.place}/{name}": dictionary.folder / name for name, _, _ in dictionary.files}
        return found

    @property
    def size(self) -> int:
        """Bytes to upload."""
        return sum(size for dictionary in self.dictionaries for _, size, _ in dictionary.files)

    @property
    def message(self) -> str:
        """What the commit says."""
        return f"Add {', '.join(d.place for d in self.dictionaries)}"

    def operations(self) -> "list[CommitOperationAdd]":
        """The additions of the one commit."""
        from huggingface_hub import CommitOperationAdd

        return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in self.files.items()]

    def __str__(self) -> str:
        names = [f"  {name}" for name in sorted(self.files)]
        return "\n".join([f"to {self.repo_id}, {self.size:,} bytes:", *names, "", self.card])


def dictionaries_in(folders: Iterable[Path]) -> list[Dictionary]:
    """Return the dictionaries in those folders: each one saved, or a folder of saved ones.

    Raises:
        CheckpointNotFound: when a folder holds none.
        InvalidValue: when two would go to the same place, or a file is a link.
    """
    found: dict[str, Dictionary] = {}
    for folder in folders:
        for path in _saved(folder):
            dictionary = Dictionary(_place(path), path)
            _refuse_links(path)
            if dictionary.place in found:
                raise InvalidValue(
                    f"{str(path)!r} and {str(found[dictionary.place].folder)!r} are both of {dictionary.place!r}. "
                    "A repository holds one dictionary for each place. Push them to two repositories."
                )
            found[dictionary.place] = dictionary
    return list(found.values())


def plan(
    repo_id: str,
    dictionaries: Sequence[Dictionary],
    present: Present,
    *,
    license: str | None = None,
    base_licenses: Mapping[str, str] | None = None,
) -> Plan:
    """Return what to write so that the repository holds those dictionaries beside the ones it has.

    Raises: InvalidValue: when the repository's root config.json is not our index.
    """
    if present.index and not isinstance(present.index.get("dictionaries"), dict):
        raise InvalidValue(f"{repo_id!r} holds a config.json of something else. Push to a repository of its own.")
    new = {dictionary.place for dictionary in dictionaries}
    kept = [entry for entry in present.entries if entry.place not in new]
    entries = sorted([*kept, *(d.entry() for d in dictionaries)], key=lambda e: e.place)
    text = render(repo_id, entries, license=license, base_licenses=base_licenses, existing=present.card)
    return Plan(repo_id, dictionaries, json.dumps(_index(entries), indent=2) + "\n", text)


def places(index: Mapping[str, Any]) -> list[str]:
    """Return the folders that an index names, those that stay inside the repository."""
    named = index.get("dictionaries")
    found = named if isinstance(named, dict) else {}
    return [place for place in found if place and not place.startswith(("/", ".")) and ".." not in place.split("/")]


def files_in(index: Mapping[str, Any], place: str) -> list[tuple[str, int, str]]:
    """Return name, size and sha256 of the files that an index lists for a dictionary; what is malformed is left out."""
    entry = index["dictionaries"][place]
    listed = entry.get("files") if isinstance(entry, dict) else None
    facts = listed.items() if isinstance(listed, dict) else ()
    return [
        (name, known["size"], known["sha256"])
        for name, known in facts
        if isinstance(known, dict) and isinstance(known.get("size"), int) and isinstance(known.get("sha256"), str)
    ]


def _index(entries: Sequence[CardEntry]) -> dict[str, Any]:
    named = ("base_model", "base_revision", "site", "layer", "module", "architecture", "d_in", "d_sae")
    return {
        "library_name": native.name,
        "format_version": native.FORMAT_VERSION,
        "dictionaries": {
            entry.place: {name: entry.config.get(name) for name in named}
            | {"files": {name: {"size": size, "sha256": digest} for name, size, digest in entry.files}}
            for entry in entries
        },
    }


def _saved(folder: Path) -> list[Path]:
    candidates = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())] if folder.is_dir() else []
    found = [path for path in candidates if all((path / name).is_file() for name in PUBLISHED[:2])]
    if not found:
        raise CheckpointNotFound(
            f"{str(folder)!r} holds no saved dictionary. It needs {' and '.join(PUBLISHED[:2])}. Write one with "
            "save_pretrained."
        )
    return found


def _place(folder: Path) -> str:
    fields = read_json(folder / native.CONFIG)
    known = SAEConfig.__dataclass_fields__
    return SAEConfig.from_dict({name: value for name, value in fields.items() if name in known}).place


def _refuse_links(folder: Path) -> None:
    for name in (*PUBLISHED, native.FEATURE_INDEX):
        if (folder / name).is_symlink():
            raise InvalidValue(f"{str(folder / name)!r} is a link. Only files are published. Put a copy in its place.")


def _facts(folder: Path, name: str) -> tuple[str, int, str]:
    with (folder / name).open("rb") as file:
        return name, (folder / name).stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
