"""Which published dictionary belongs to which model, layer and site: well-known releases, and what is shipped.

The table is data, `registry_rows.json`, one release a row. Where several fit, the first row wins: the order is the
preference, from the narrower dictionary that a site's authors recommend to the wider ones.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

SHIPPED = "hfsae/stdlib-gpt2"
"""Id of the model in this package, whose dictionaries need no network."""

# Ids that the Hub forwards, and the one it forwards to.
_FORWARDED = {"gpt2": "openai-community/gpt2", "EleutherAI/pythia-70m-deduped-v0": "EleutherAI/pythia-70m-deduped"}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where one dictionary is: on the Hub, or in this package."""

    base_model: str
    """Hub id of the model it was trained on."""
    layer: int
    """Block it reads."""
    site: str
    """Where in the block it reads."""
    repo_id: str | None = None
    """Its repository, unless it is shipped."""
    subfolder: str | None = None
    """Its folder or file in the repository."""
    path: Path | None = None
    """Its folder on disk, where it is shipped."""
    note: str = ""
    """How large it is and what kind."""

    def __str__(self) -> str:
        where = str(self.path) if self.path is not None else f"{self.repo_id}/{self.subfolder}"
        return f"{self.site} of layer {self.layer}: {where}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, kw_only=True)
class Release:
    """Dictionaries published together: one site of one model, many layers."""

    base_model: str
    """Hub id of the model they were trained on."""
    site: str
    """Where they read."""
    layers: tuple[int, ...]
    """The blocks there is one for."""
    repo_id: str | None = None
    """Their repository, unless they are shipped."""
    subfolder: str = ""
    """Pattern of their folders, with ``{layer}`` and where needed ``{variant}``."""
    variants: tuple[str, ...] = ()
    """What stands for ``{variant}`` at each layer."""
    format: str = "hfsae"
    """Name of the format they are in."""
    write_site: str | None = None
    """Where they write, being transcoders."""
    path: Path | None = None
    """Their folder on disk, where they are shipped."""
    note: str = ""
    """How large they are and what kind."""

    def at(self, layer: int) -> Reference:
        """Return where the dictionary of that layer is."""
        index = self.layers.index(layer)
        variant = self.variants[index] if self.variants else ""
        return Reference(
            base_model=self.base_model,
            layer=layer,
            site=self.site,
            repo_id=self.repo_id,
            subfolder=self.subfolder.format(layer=layer, variant=variant) if self.repo_id else None,
            path=self.path,
            note=self.note,
        )

    def __str__(self) -> str:
        where = self.repo_id or f"shipped in {self.path}"
        to = f" to {self.write_site}" if self.write_site else ""
        return f"{self.site}{to}, layers {_spans(self.layers)}: {where}" + (f" ({self.note})" if self.note else "")


def find(base_model: str | None, layer: int, site: str = "resid_post") -> Reference | None:
    """Return the dictionary registered for that model, layer and site, or None.

    Transcoders are never found this way: what they write is another site than the one asked for.

    Example:
        >>> print(find("google/gemma-2-2b", 12))
        resid_post of layer 12: google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82 (16k features, JumpReLU)
    """
    fitting = (r for r in known(base_model) if r.site == site and layer in r.layers and r.write_site is None)
    release = next(fitting, None)
    return None if release is None else release.at(layer)


def known(base_model: str | None) -> list[Release]:
    """Return every release registered for that model, in order of preference; each prints as a line."""
    if base_model is None:
        return []
    if base_model == SHIPPED:
        return shipped()
    name = _FORWARDED.get(base_model, base_model)
    return [release for release in _published() if release.base_model == name]


def models() -> list[str]:
    """Return the ids of all models for which dictionaries are registered."""
    return sorted({SHIPPED, *(release.base_model for release in _published())})


def shipped() -> list[Release]:
    """Return the dictionaries in this package."""
    root = files("hfsae") / "default" / "files"
    folders = sorted(root.iterdir()) if isinstance(root, Path) and root.is_dir() else []
    return [_shipped(folder) for folder in folders if (folder / "sae.safetensors").is_file()]


def _shipped(folder: Path) -> Release:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Release(
        base_model=SHIPPED,
        site=config["site"],
        layers=(config["layer"],),
        write_site=config.get("write_site"),
        path=folder,
        note=f"{config['d_sae']:,} features, {config['architecture']}",
    )


@cache
def _published() -> tuple[Release, ...]:
    rows = json.loads((files("hfsae") / "registry_rows.json").read_text(encoding="utf-8"))
    return tuple(_release(row) for row in rows)


def _release(row: dict[str, Any]) -> Release:
    layers = row["layers"]
    if isinstance(layers, str):
        first, last = map(int, layers.split("-"))
        layers = range(first, last + 1)
    return Release(**row | {"layers": tuple(layers), "variants": tuple(row.get("variants", ()))})


def _spans(layers: tuple[int, ...]) -> str:
    """Layers as a person lists them: ``0-11`` or ``3, 7, 11``."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))
