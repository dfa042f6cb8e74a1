"""Fetching dictionaries from the Hub and publishing them there.

`fetch` lists a repository, chooses one dictionary in it by layer, site or subfolder, downloads the files of that one
and checks them against the Hub's hashes. `push` writes one or many dictionaries, an index and a card in one commit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from hfsae.card import CardEntry
from hfsae.errors import CheckpointNotFound, HfsaeError, HfsaeWarning, InvalidValue
from hfsae.formats import native
from hfsae.formats.files import parse_json_object
from hfsae.formats.holdings import Holding, choose, holdings
from hfsae.hub import cache, publishing
from hfsae.hub.cache import Listing
from hfsae.hub.calls import Target, Unreachable, api, reading, writing

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, ModelInfo


def fetch(  # noqa: PLR0913 - the arguments of transformers' from_pretrained
    repo_id: str,
    *,
    layer: int | None = None,
    site: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    beside: Sequence[str] = (),
) -> Path:
    """Return where, on this machine, the one dictionary that fits the request is; what is missing is downloaded.

    Only its own files are fetched, never the whole repository. Where the Hub cannot be reached, a complete copy in the
    cache serves, with a warning.

    Args:
        layer: Block the dictionary is for, where the repository holds several.
        site: Site it is for, likewise.
        subfolder: Its folder or file, likewise.
        revision: Branch, tag or commit; None is main.
        token: Credentials for private repositories; None uses those of `hf auth login`.
        cache_dir: Where to keep files; None is huggingface_hub's cache.
        local_files_only: Ask nothing of the network.
        force_download: Download again what is cached.
        beside: Names of further files in its folder, fetched where it has them.

    Returns: A folder, or a file for formats of one file per dictionary.

    Raises:
        CheckpointNotFound: when the repository, revision or dictionary does not exist, or is not wholly cached offline.
        InvalidValue: when several dictionaries fit, or the repository id cannot be one.
        CheckpointError: when a file differs from what the Hub lists.
        HubError: when the Hub refuses or cannot be reached.
    """
    target = _target(repo_id, revision, token)
    store = cache.storage(repo_id, cache_dir)
    wanted = _Wanted(layer, site, subfolder, tuple(beside))
    if local_files_only:
        return _from_cache(store, target, wanted)
    try:
        info = reading(lambda: _info(target), target)
    except Unreachable as error:
        if cache.cached_listing(store, target.revision or "main") is None:
            raise
        warn(f"{error} The copy in the cache is used.", HfsaeWarning, stacklevel=2)
        return _from_cache(store, target, wanted)
    listing = cache.listing_of(info)
    chosen = wanted.among(listing, target)
    cache.remember(store, target.revision or "main", listing)
    for name in chosen.files:
        _download(name, listing, target, store, force=force_download)
    return cache.snapshot(store, listing.commit) / chosen.at


def push(  # noqa: PLR0913 - the arguments of transformers' push_to_hub
    folders: str | Path | Sequence[str | Path],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
) -> "CommitInfo | publishing.Plan":
    """Publish saved dictionaries, an index and a card in one commit; the repository is complete or unchanged.

    Dictionaries already in the repository stay, those of the same place are replaced, and the card is made anew from
    all of them. Text that people wrote in the card stays.

    Args:
        folders: What `save_pretrained` wrote: a folder of one dictionary, or of several in folders of their own.
        repo_id: ``owner/name``; created when it does not exist.
        private: Create it as private; None leaves that to the Hub's default.
        revision: Branch to commit to, created when it does not exist.
        create_pr: Open a pull request instead.
        license: Licence of the dictionaries, as the Hub abbreviates it; None keeps what the card says.
        dry_run: Send nothing and return the plan.

    Returns: What huggingface_hub says of the commit, or with `dry_run` the `Plan`.

    Raises:
        InvalidValue: when a folder cannot be published.
        HubError: when the Hub refuses, cannot be reached, or the repository changed meanwhile.
    """
    paths = [folders] if isinstance(folders, (str, Path)) else list(folders)
    dictionaries = publishing.dictionaries_in([Path(path) for path in paths])
    target = _target(repo_id, revision, token)
    client = api(token)
    if not dry_run:
        writing(lambda: client.create_repo(repo_id, private=private, exist_ok=True), target)
        if revision is not None and not create_pr:
            writing(lambda: client.create_branch(repo_id, branch=revision, exist_ok=True), target)
    present = _present(target, dry_run=dry_run)
    licenses = _base_licenses(dictionaries, token)
    plan = publishing.plan(repo_id, dictionaries, present, license=license, base_licenses=licenses)
    if dry_run:
        return plan
    message = commit_message or plan.message
    parent = None if create_pr else present.commit
    return writing(
        lambda: client.create_commit(
            repo_id,
            plan.operations(),
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        ),
        target,
        size=plan.size,
    )


@dataclass(frozen=True)
class _Wanted:
    """Which dictionary of a repository is asked for."""

    layer: int | None
    site: str | None
    subfolder: str | None
    beside: tuple[str, ...]

    def among(self, listing: Listing, target: Target) -> Holding:
        found = holdings(listing.files)
        chosen = choose(found, where=str(target), layer=self.layer, site=self.site, subfolder=self.subfolder)
        named = (name if chosen.at == "." else f"{chosen.at}/{name}" for name in self.beside)
        return replace(chosen, files=(*chosen.files, *(name for name in named if name in listing.files)))


def _target(repo_id: str, revision: str | None, token: str | None) -> Target:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidValue(f"{repo_id!r} cannot be a repository id. It reads 'owner/name'. Check it.") from error
    if revision is not None and (not revision or ".." in revision.split("/") or revision.startswith("/")):
        raise InvalidValue(f"{revision!r} cannot be a revision. Name a branch, tag or commit.")
    return Target(repo_id, revision, token)


def _info(target: Target) -> "ModelInfo":
    return api(target.token).model_info(target.repo_id, revision=target.revision, files_metadata=True, timeout=20)


def _from_cache(store: Path, target: Target, wanted: _Wanted) -> Path:
    listing = cache.cached_listing(store, target.revision or "main")
    if listing is None:
        raise CheckpointNotFound(f"Nothing of {target} is in the cache {str(store.parent)!r}. Load it once online.")
    chosen = wanted.among(listing, target)
    folder = cache.snapshot(store, listing.commit)
    missing = [name for name in chosen.files if not (folder / name).is_file()]
    if missing:
        raise CheckpointNotFound(
            f"The cache holds {target} in part: {', '.join(map(repr, missing))} of {str(chosen)!r} is missing. "
            "Load it once online."
        )
    for name in chosen.files:
        cache.check(folder / name, listing.files[name], fresh=False)
    return folder / chosen.at


def _download(name: str, listing: Listing, target: Target, store: Path, *, force: bool) -> None:
    path = cache.snapshot(store, listing.commit) / name
    fresh = force or not path.is_file()
    facts = listing.files[name]
    if fresh:
        client = api(target.token)
        reading(
            lambda: client.hf_hub_download(
                target.repo_id, name, revision=listing.commit, cache_dir=store.parent, force_download=force
            ),
            target,
            size=facts.size or 0,
        )
    cache.check(path, facts, fresh=fresh)


def _present(target: Target, *, dry_run: bool) -> publishing.Present:
    """What the repository holds now; for a dry run, nothing where it does not exist or cannot be asked."""
    try:
        listing = cache.listing_of(reading(lambda: _info(target), target))
    except (CheckpointNotFound, Unreachable):
        if not dry_run:
            raise
        return publishing.Present()

    def content(name: str) -> bytes | None:
        return _small_file(name, listing.commit, target) if name in listing.files else None

    index = parse_json_object(content(publishing.INDEX) or b"{}", publishing.INDEX)
    entries = [_entry(place, index, content) for place in publishing.places(index)]
    card = content(publishing.CARD)
    return publishing.Present(listing.commit, index, None if card is None else card.decode(), entries)


def _entry(place: str, index: Mapping[str, Any], content: Callable[[str], bytes | None]) -> CardEntry:
    names = [f"{place}/{name}" for name in (native.CONFIG, native.EVALUATION, native.LABELS)]
    config, measured, labels = (parse_json_object(content(name) or b"{}", name) for name in names)
    files = publishing.files_in(index, place)
    return CardEntry(place=place, config=config, measured=measured, labels=labels, files=files)


def _base_licenses(dictionaries: Sequence[publishing.Dictionary], token: str | None) -> dict[str, str]:
    """The licences of the base models, where the Hub knows them."""
    found = {}
    for base in {d.config.get("base_model") for d in dictionaries} - {None}:
        target = Target(str(base), None, token)
        try:
            data = reading(lambda target=target: _info(target), target).card_data  # type: ignore[misc]
        except HfsaeError:
            continue  # a local or private base model: the card then names no licence for it
        if data is not None and isinstance(data.get("license"), str):
            found[str(base)] = str(data.get("license"))
    return found


def _small_file(name: str, commit: str, target: Target) -> bytes:
    client = api(target.token)
    path = reading(lambda: client.hf_hub_download(target.repo_id, name, revision=commit), target)
    return Path(path).read_bytes()
