"""Which dictionaries a repository or a folder holds, read off its file names alone.

Nothing is opened: a repository can hold thousands of dictionaries, and only the files of the chosen one are fetched.
What format they are in is found out later, from their content.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hfsae.errors import CheckpointNotFound, InvalidValue

# A file of weights that stands for the folder it is in.
_IN_FOLDER = re.compile(r"(sae|sae_weights|params|final)\.safetensors|params\.npz|ae\.pt")
# A file of weights that stands for itself, many to a folder.
_BY_ITSELF = re.compile(r"layer_?\d+\.(sae\.pt|safetensors)|\d+\.pt|.*SAE.*\.pth?", re.IGNORECASE)
_BESIDE = ("stats.safetensors", "sparsity.safetensors", "eval.json", "labels.json")
_ABOVE = ("config.json", "cfg.json", "hyperparams.json", "config.yaml", "wandb-config.yaml", "wanb-config.yaml")
_LAYERS = (
    r"blocks\.(\d+)\.",
    r"layers?[._]?(\d+)",
    r"(?:^|[-/])L(\d+)(?:R|M|A|TC)(?:-|$)",
    r"-l(\d+)\b",
    r"(?:^|/)(\d+)-",
)
_SITES = (
    (r"resid_pre", "resid_pre"),
    (r"resid_mid", "resid_mid"),
    (r"resid_post|/L\d+R$|-L\d+R-", "resid_post"),
    (r"attn_z|hook_z", "attn_z"),
    (r"transcoder|mlp_in|-L\d+TC-", "mlp_in"),
    (r"mlp_out|-L\d+M-", "mlp_out"),
    (r"attn_out|-L\d+A-", "attn_out"),
    (r"mlp_act", "mlp_act"),
)
_SHOWN, _MOST_FILES = 12, 200_000


@dataclass(frozen=True)
class Holding:
    """One dictionary among many."""

    at: str
    """Its folder, or its file where it is one file among others; ``"."`` is the whole."""
    weights: str
    """The file of its weights."""
    files: tuple[str, ...]
    """All files it needs, weights included."""
    layer: int | None
    """The layer its path names."""
    site: str | None
    """The site its path names."""

    def __str__(self) -> str:
        return self.at


def holdings(names: Iterable[str]) -> list[Holding]:
    """Return the dictionaries among those file names, ordered by layer and path.

    Example:
        >>> [str(h) for h in holdings(["README.md", "layer_3/width_16k/average_l0_59/params.npz"])]
        ['layer_3/width_16k/average_l0_59']
    """
    known = {name for name in names if ".." not in name.split("/") and not name.startswith("/")}
    # Where a folder holds weights twice, the later in this order are meant: safetensors.
    found = {h.at: h for h in (_holding(PurePosixPath(n), known) for n in sorted(known, key=_safety) if _is_weights(n))}
    return sorted(found.values(), key=lambda h: (-1 if h.layer is None else h.layer, h.at))


def choose(
    found: Sequence[Holding],
    *,
    where: str,
    layer: int | None = None,
    site: str | None = None,
    subfolder: str | None = None,
) -> Holding:
    """Return the one dictionary that fits the request.

    Raises:
        CheckpointNotFound: when none fits.
        InvalidValue: when several fit.
    """
    if not found:
        raise CheckpointNotFound(f"{where} holds no dictionary: no file name in it is one that a known format uses.")
    fitting = _fitting(found, layer, site, subfolder)
    if len(fitting) == 1:
        return fitting[0]
    asked = {"layer": layer, "site": site, "subfolder": subfolder}
    request = (
        ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None) or "nothing more said"
    )
    if not fitting:
        raise CheckpointNotFound(f"{where} holds no dictionary for {request}. It holds {_listed(found)}.")
    raise InvalidValue(
        f"{where} holds {len(fitting)} dictionaries that fit ({request}). Exactly one is needed. "
        f"Say layer=, site= or subfolder=, one of {_listed(fitting)}."
    )


def locate(folder: Path, *, layer: int | None = None, site: str | None = None, subfolder: str | None = None) -> Path:
    """Return where in a local folder the one dictionary that fits the request is.

    Raises:
        CheckpointNotFound: when the folder is missing or none fits.
        InvalidValue: when several fit.
    """
    if not folder.exists():
        raise CheckpointNotFound(f"{str(folder)!r} does not exist. Give a folder or file of a dictionary, or a Hub id.")
    if not folder.is_dir():
        return folder
    chosen = choose(holdings(_names(folder)), where=repr(str(folder)), layer=layer, site=site, subfolder=subfolder)
    return folder / chosen.at


def _names(folder: Path) -> list[str]:
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files]
        if len(names) > _MOST_FILES:
            raise CheckpointNotFound(
                f"{str(folder)!r} holds more than {_MOST_FILES} files. Name the dictionary's folder."
            )
    return names


def _safety(name: str) -> tuple[bool, str]:
    return name.endswith(".safetensors"), name


def _is_weights(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return bool(_IN_FOLDER.fullmatch(last) or _BY_ITSELF.fullmatch(last))


def _holding(weights: PurePosixPath, known: set[str]) -> Holding:
    folder = weights.parent.parent if weights.parent.name == "checkpoints" else weights.parent
    at = str(folder) if _IN_FOLDER.fullmatch(weights.name) else str(weights)
    beside = [str(weights.parent / name) for name in _BESIDE]
    above = [str(parent / name) for parent in weights.parents for name in _ABOVE]
    files = (str(weights), *(name for name in beside + above if name in known))
    return Holding(at=at, weights=str(weights), files=files, layer=_layer(at), site=_site(at, weights.name))


def _layer(at: str) -> int | None:
    matches = (re.search(pattern, at) for pattern in _LAYERS)
    return next((int(match.group(1)) for match in matches if match and len(match.group(1)) < 6), None)


def _site(at: str, weights: str) -> str | None:
    site = next((site for pattern, site in _SITES if re.search(pattern, at)), None)
    # Gemma Scope 2 calls the concatenated heads, input of the output projection, "attn_out".
    return "attn_z" if site == "attn_out" and weights == "params.safetensors" else site


def _fitting(found: Sequence[Holding], layer: int | None, site: str | None, subfolder: str | None) -> list[Holding]:
    """Those that fit; one whose path names no layer or site fits only where none names the right one."""
    fitting = list(found)
    if subfolder is not None:
        fitting = [h for h in fitting if f"{h.at}/".startswith(f"{subfolder.strip('/')}/")]
    if layer is not None:
        fitting = [h for h in fitting if h.layer == layer] or [h for h in fitting if h.layer is None]
    if site is not None:
        fitting = [h for h in fitting if h.site == site] or [h for h in fitting if h.site is None]
    return fitting


def _listed(found: Sequence[Holding]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(repr(str(h)) for h in found[:_SHOWN]) + more
