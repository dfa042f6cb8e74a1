"""What a repository holds and what of it is on disk, in the cache that huggingface_hub keeps.

Beside the cached files we keep the list of all files of the commit, with their sizes and hashes. So that, offline, a
missing file can be named, and a cached file that was cut or changed is noticed: huggingface_hub returns both as good.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfsae.errors import CheckpointError
from hfsae.formats.files import write_file_atomically

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

HASHED_BELOW = 2**28
"""Files above this size are hashed only when they were just downloaded: hashing 1 GiB takes about a second."""


@dataclass(frozen=True)
class FileFacts:
    """What the Hub says about a file."""

    size: int | None
    """In bytes."""
    sha256: str | None
    """Of its content, where it is stored as a large file."""
    blob: str | None
    """Its id in git, elsewhere."""


@dataclass(frozen=True)
class Listing:
    """All files of one commit."""

    commit: str
    """Its id."""
    files: Mapping[str, FileFacts]
    """By path."""


def listing_of(info: "ModelInfo") -> Listing:
    """Return what the Hub's answer about a repository says of its files."""
    facts = {}
    for sibling in info.siblings or []:
        large = sibling.lfs
        facts[sibling.rfilename] = FileFacts(sibling.size, large.sha256 if large else None, sibling.blob_id)
    return Listing(str(info.sha), facts)


def storage(repo_id: str, cache_dir: str | Path | None) -> Path:
    """Return the folder in which huggingface_hub keeps that repository."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
    return root / f"models--{repo_id.replace('/', '--')}"


def snapshot(store: Path, commit: str) -> Path:
    """Return the folder of the files of a commit."""
    return store / "snapshots" / commit


def remember(store: Path, revision: str, listing: Listing) -> None:
    """Keep the listing, and which commit the revision names, for when the Hub cannot be asked."""
    _write(_listing_file(store, listing.commit), json.dumps({n: asdict(f) for n, f in listing.files.items()}))
    if revision != listing.commit:
        _write(store / "refs" / revision, listing.commit)


def cached_listing(store: Path, revision: str) -> Listing | None:
    """Return what is known offline of the files of a revision, or None when nothing of it is cached."""
    reference = store / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not snapshot(store, commit).is_dir():
        return None
    kept = _kept_listing(_listing_file(store, commit))
    if kept is not None:
        return Listing(commit, kept)
    folder = snapshot(store, commit)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Listing(commit, {name: FileFacts(None, None, None) for name in names})


def check(path: Path, facts: FileFacts, *, fresh: bool) -> None:
    """Check that a cached file is what the Hub listed.

    Raises: CheckpointError: when its size or its hash differs.
    """
    size = path.stat().st_size
    advice = "The cached copy is damaged. Load it again with force_download=True."
    if facts.size is not None and size != facts.size:
        raise CheckpointError(f"{path.name!r} has {size} bytes. The Hub lists {facts.size}. {advice}")
    if size > HASHED_BELOW and not fresh:
        return
    found, listed = _hashes(path, size, facts)
    if listed is not None and found != listed:
        raise CheckpointError(f"{path.name!r} has the hash {found[:12]}.... The Hub lists {listed[:12]}.... {advice}")


def _kept_listing(path: Path) -> dict[str, FileFacts] | None:
    """The list that `remember` kept; None where it is not there or was damaged."""
    try:
        return {name: FileFacts(**facts) for name, facts in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _hashes(path: Path, size: int, facts: FileFacts) -> tuple[str, str | None]:
    with path.open("rb") as file:
        if facts.sha256 is not None:
            return hashlib.file_digest(file, "sha256").hexdigest(), facts.sha256
        # git's name of a blob: the hash of a header and the content
        return hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % size)).hexdigest(), facts.blob


def _listing_file(store: Path, commit: str) -> Path:
    return store / "hfsae" / f"{commit}.json"


def _write(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))
