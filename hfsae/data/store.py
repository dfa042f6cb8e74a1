"""Activations on disk: checksummed safetensors shards and an index, to train on many times after one model pass.

A shard is written aside and renamed; the index is written last, so a folder with an index is whole.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.data.limits import reading_of
from hfsae.data.rows import ModelRows
from hfsae.data.sources import open_source, shuffled
from hfsae.errors import CheckpointError, InvalidValue
from hfsae.formats.files import read_json, write_file_atomically, write_json
from hfsae.formats.safetensors_io import read_tensors, write_tensors
from hfsae.sae.config import SAEConfig
from hfsae.sites import Point, base_model_id, resolve

_INDEX, _VERSION = "index.json", 1


class ActivationStore:
    """Activations in a folder that `cache_activations` wrote; pass it to `hfsae.train` as ``activations=``.

    Args:
        folder: Where they are.
        seed: Of the order of the shards and of the rows in each.
    Raises: CheckpointError, CheckpointNotFound: when the folder holds none, or an index that is not understood.
    """

    repeatable = True

    def __init__(self, folder: Path | str, seed: int = 0) -> None:
        self.folder, self._seed = Path(folder), seed
        index = read_json(self.folder / _INDEX)
        if index.get("version") != _VERSION:
            raise CheckpointError(
                f"{self.folder / _INDEX} has version {index.get('version')!r}. This hfsae reads {_VERSION}. Update it."
            )
        self.place = SAEConfig.from_dict(index["place"])
        """Where the activations come from and which tokens were left out, as the config of a dictionary there."""
        self.width, self.tokens = self.place.d_in, int(index["tokens"])
        self._shards: list[dict[str, Any]] = index["shards"]
        self._source: dict[str, Any] = index["source"]

    def __len__(self) -> int:
        return self.tokens

    def chunks(self, epoch: int, skip: int) -> Iterator[Tensor]:
        """Yield the shards of an epoch, shuffled, each checked against its sha256; those skipped are not read."""
        generator = torch.Generator()
        for number in shuffled(len(self._shards), self._seed, epoch)[skip:]:
            shard = self._shards[number]
            path = self.folder / str(shard["file"])
            if _sha256(path) != shard["sha256"]:
                raise CheckpointError(
                    f"{path} is not what was written: its sha256 differs. Cache the activations anew."
                )
            x = read_tensors(path)["x"]
            generator.manual_seed(self._seed * 1_000_003 + epoch * 10_007 + number)
            yield x[torch.randperm(len(x), generator=generator)].float()

    def describe(self) -> dict[str, Any]:
        """Return where the text came from."""
        return self._source


def cache_activations(  # noqa: PLR0913 - as hfsae.train, plus the folder
    model: Any,
    data: Any,
    folder: Path | str,
    *,
    tokens: int,
    tokenizer: Any = None,
    layer: int | None = None,
    site: str = "resid_post",
    module: str | None = None,
    io: str = "output",
    stack: str | None = None,
    context: int | None = None,
    batch_size: int | None = None,
    assistant_only: bool = False,
    exclude_special_tokens: bool = True,
    exclude_first_position: bool = True,
    norm_outlier: float | None = 10.0,
    shard_tokens: int = 65_536,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ActivationStore:
    """Run a model once and keep its activations at a site.

    Args:
        model: Any HuggingFace model; its forward stops at the site.
        data: As for `hfsae.train`.
        folder: Must be empty or not there.
        tokens: Activations to keep; fewer where the data hold fewer.
        shard_tokens: Activations in a file.
        dtype: What they are kept in; half the disk with bfloat16, at 3 digits.
        seed: Of the order of the documents.

    The other arguments are those of `hfsae.train` and `hfsae.train.DataConfig`.

    Raises: InvalidValue: when the folder holds something, or the site's width is not known.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InvalidValue(
            f"{str(folder)!r} is not empty. Activations are kept in a folder of their own. Name a new one."
        )
    point = resolve(model, layer, site, module=module, io=io, stack=stack)
    place = _place_of(model, point, exclude_special_tokens, exclude_first_position, norm_outlier)
    options = {"tokenizer": tokenizer, "assistant_only": assistant_only, **reading_of(model, context, batch_size)}
    rows = ModelRows(model, [point], open_source(data, seed), place, options)
    folder.mkdir(parents=True, exist_ok=True)
    chunks = _shards_of(rows, tokens, shard_tokens)
    shards = [_write_shard(folder, number, x.to(dtype)) for number, x in enumerate(chunks)]
    kept = sum(shard["tokens"] for shard in shards)
    index = {
        "version": _VERSION,
        "tokens": kept,
        "place": place.to_dict(),
        "source": rows.describe(),
        "shards": shards,
    }
    write_file_atomically(folder / _INDEX, lambda path: write_json(path, index))
    return ActivationStore(folder, seed)


def _place_of(model: Any, point: Point, special: bool, first: bool, norm_outlier: float | None) -> SAEConfig:
    """Return the config of a dictionary of one feature there: it holds the place and the policy, and is never built."""
    if point.width is None:
        raise InvalidValue(f"The width at {point.path!r} is not known before a forward. Name a site of a block.")
    return SAEConfig(
        architecture="standard",
        d_in=point.width,
        d_sae=1,
        site=point.site.site,
        layer=point.site.layer,
        module=point.site.module,
        io="input" if point.site.io == "input" else "output",
        stack=point.site.stack,
        base_model=base_model_id(model),
        exclude_special_tokens=special,
        exclude_first_position=first,
        norm_outlier=norm_outlier,
    )


def _shards_of(rows: ModelRows, tokens: int, size: int) -> Iterator[Tensor]:
    held: list[Tensor] = []
    for chunk in rows.chunks(0, 0):
        held.append(chunk[:tokens])
        tokens -= len(held[-1])
        if tokens <= 0 or sum(map(len, held)) >= size:
            yield torch.cat(held)
            held = []
        if tokens <= 0:
            return
    if held:
        yield torch.cat(held)


def _write_shard(folder: Path, number: int, x: Tensor) -> dict[str, Any]:
    path = folder / f"shard-{number:05d}.safetensors"
    write_file_atomically(path, lambda aside: write_tensors(aside, {"x": x}))
    return {"file": path.name, "tokens": len(x), "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
