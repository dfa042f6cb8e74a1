"""`train`: from a model and text, or from activations, to a dictionary in one call."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.data.limits import reading_of
from hfsae.data.ring import Rows, ShuffleRing
from hfsae.data.rows import IterableRows, ModelRows, TensorRows
from hfsae.data.sources import open_source
from hfsae.data.store import ActivationStore
from hfsae.dictionary import SAE
from hfsae.errors import InvalidType, InvalidValue, Mismatch
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.config import SAEConfig
from hfsae.sites import Point, base_model_id, resolve
from hfsae.train.callbacks import Callback, ProgressBar
from hfsae.train.checkpoints import Checkpoints
from hfsae.train.config import TrainConfig, check_count
from hfsae.train.recipes import default_groups
from hfsae.train.splicing import SpliceProbe
from hfsae.train.trainer import Trainer, kept_back

_CHECKPOINTS = 20
_PLACE = (
    *("site", "layer", "module", "io", "stack", "base_model"),
    *("exclude_special_tokens", "exclude_first_position", "norm_outlier"),
)
"""What a store knows of a dictionary's place."""


def train(  # noqa: PLR0913
    model: Any = None,
    data: Any = None,
    *,
    activations: Tensor | ActivationStore | Iterable[Any] | None = None,
    tokenizer: Any = None,
    layer: int | None = None,
    site: str = "resid_post",
    module: str | None = None,
    io: str = "output",
    stack: str | None = None,
    config: TrainConfig | None = None,
    write_layer: int | None = None,
    write_site: str | None = None,
    write_module: str | None = None,
    skip: bool = False,
    init_from: SAE | None = None,
    folder: Path | str | None = None,
    checkpoint_every: int | None = None,
    eval_every: int | None = None,
    eval_data: Any = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    device: torch.device | str | None = None,
) -> SAE:
    """Train a dictionary on a model's activations, or on given ones.

    Args:
        model: Any HuggingFace model. It is only read; its forward stops at the site.
        data: Text, texts, token ids, conversations, rows with a "text", an "input_ids" or a "messages" column, a
            dataset, `Path` objects of text, jsonl or parquet files, or a `Mixture` of these by weight.
        activations: In place of a model and data: a tensor ``[..., d_in]``, an iterable of such, or what
            `cache_activations` returns; for a transcoder a pair ``(x, y)``, or an iterable of pairs.
        tokenizer: The model's own; needed for text and conversations.
        layer: Block, counted from 0; negative counts from the end.
        site: Where in the block.
        module: Path of any module, in place of a layer and a site; with ``io``, its output or its input.
        io: See ``module``.
        stack: Which stack ``layer`` counts in.
        config: How to train; the defaults are meant to be left alone.
        write_layer: For a transcoder: the block whose activations are to be reconstructed.
        write_site: For a transcoder: where in that block.
        write_module: For a transcoder: a module's path, in place of those two.
        skip: For a transcoder: with a linear path around the features.
        init_from: A dictionary to begin from, of the same widths.
        folder: Where checkpoints go; a run that was stopped goes on from there, bit for bit, when called again. SIGINT
            and SIGTERM then save before the process exits.
        checkpoint_every: Steps between two; None: about twenty in the run.
        eval_every: Steps between two evaluations of the dictionary spliced into the model; their figures, with those of
            the end, reach the callbacks (held_out_fvu, ce_clean, ce_spliced, recovered).
        eval_data: Held-out text for these, of any kind that ``data`` may be; up to 8,192 tokens are read.
        callbacks: Told of the run as it goes on.
        progress: Show a bar where there is a terminal.
        device: Where to train; None: where the activations are.

    Returns: The dictionary, with statistics of its features, in eval mode.
    Raises:
        InvalidValue: when there is nothing to train on, or activations that are not finite.
        InvalidType: when the arguments do not say what to train on.
        TrainingError: when the run had to stop.
    Example:
        >>> x = torch.randn(4096, 8) ** 3
        >>> sae = train(activations=x, config=TrainConfig(d_sae=16, k=2, tokens=8192), progress=False)
        >>> sae.config.architecture, tuple(sae.W_dec.shape)
        ('topk', (16, 8))
    """
    config = _checked(config)
    read = {"layer": layer, "site": site, "module": module, "io": io, "stack": stack}
    write = {"layer": write_layer, "site": write_site or "resid_post", "module": write_module}
    if activations is not None:
        _check_alone(model, data)
        rows, place = _given(activations, config, skip)
    else:
        points = _points(model, data, read, None if (write_layer, write_module) == (None, None) else write)
        rows, place = _captured(model, data, points, tokenizer, config, skip)
    _check_start(init_from, place)
    probe = _probe(model, tokenizer, eval_every, eval_data)
    every = max(config.steps // _CHECKPOINTS, 1) if checkpoint_every is None else checkpoint_every
    return Trainer(
        _ring(rows, config),
        config,
        place,
        callbacks=[*([ProgressBar()] if progress else []), *callbacks],
        checkpoints=None if folder is None else Checkpoints(Path(folder), every),
        init_from=init_from,
        device=device,
        probe=probe,
    ).run()


def _checked(config: TrainConfig | None) -> TrainConfig:
    if config is not None and not isinstance(config, TrainConfig):
        raise InvalidType(f"config is of type {type(config).__name__}. Expected a TrainConfig.")
    return config or TrainConfig()


def _check_alone(model: Any, data: Any) -> None:
    if model is not None or data is not None:
        raise InvalidType("Both activations and a model with data were given. Expected one of them. Drop the other.")


def _probe(model: Any, tokenizer: Any, every: int | None, data: Any) -> SpliceProbe | None:
    if (every is None) != (data is None) or (every is not None and model is None):
        raise InvalidType(
            f"eval_every={every} and eval_data of type {type(data).__name__} do not go together. An evaluation needs "
            "both, and a model. Give them, or neither."
        )
    if every is None:
        return None
    check_count("eval_every", every)
    return SpliceProbe(model, data, tokenizer, every)


def _ring(rows: Rows, config: TrainConfig) -> ShuffleRing:
    """Return the ring in which the rows are shuffled; never smaller than two batches."""
    capacity = max(config.data.buffer_bytes // (4 * rows.width), 2 * config.batch)
    return ShuffleRing(rows, capacity=capacity, limit=config.tokens + kept_back(config), seed=config.seed)


def _given(activations: Any, config: TrainConfig, skip: bool) -> tuple[Rows, SAEConfig]:
    """Return given activations, and the config of a dictionary of them."""
    pair = isinstance(activations, tuple) and len(activations) == 2 and all(isinstance(t, Tensor) for t in activations)
    if isinstance(activations, ActivationStore):
        own = {name: value for name, value in activations.place.to_dict().items() if name in _PLACE}
        return activations, _place(config, activations.width, **own)
    if isinstance(activations, Tensor):
        return (rows := TensorRows(activations, seed=config.seed)), _place(config, rows.width)
    if pair:
        rows = TensorRows(*activations, seed=config.seed)
        return rows, _place(config, activations[0].shape[-1], d_out=activations[1].shape[-1], skip=skip, b_pre="own")
    stream = IterableRows(activations)
    if stream.d_in == stream.width:
        return stream, _place(config, stream.width)
    return stream, _place(config, stream.d_in, d_out=stream.width - stream.d_in, skip=skip, b_pre="own")


def _points(model: Any, data: Any, read: dict[str, Any], write: dict[str, Any] | None) -> list[Point]:
    """Return where x is read and, for a transcoder, where y is."""
    if model is None or data is None:
        raise InvalidType(
            "There is nothing to train on. Expected a model and data, or activations. "
            "Pass train(model, texts, layer=...) or train(activations=x)."
        )
    if read["layer"] is None and read["module"] is None:
        raise InvalidType("No layer was named. Expected layer=, or module= with a path. Add one.")
    return [resolve(model, **where) for where in (read, write) if where is not None]


def _captured(
    model: Any, data: Any, points: list[Point], tokenizer: Any, config: TrainConfig, skip: bool
) -> tuple[ModelRows, SAEConfig]:
    """Return a model's activations, and the config of a dictionary there."""
    for point in points:
        if point.width is None:
            raise InvalidValue(
                f"The width of the activations at {point.path!r} is not known before a forward. "
                "A dictionary needs it. Name a site of a block, or a module with a known width."
            )
    settings, read = config.data, points[0]
    assert read.width is not None
    place = _place(
        config,
        read.width,
        site=read.site.site,
        layer=read.site.layer,
        module=read.site.module,
        io=read.site.io,
        stack=read.site.stack,
        base_model=base_model_id(model),
        base_revision=getattr(getattr(model, "config", None), "_commit_hash", None),
        exclude_special_tokens=settings.exclude_special_tokens,
        exclude_first_position=settings.exclude_first_position,
        norm_outlier=settings.norm_outlier,
        **_written(points[1:], skip),
    )
    reading = reading_of(model, settings.context, settings.model_batch_size)
    reading |= {"tokenizer": tokenizer, "assistant_only": settings.assistant_only}
    return ModelRows(model, points, open_source(data, config.seed), place, reading), place


def _written(points: list[Point], skip: bool) -> dict[str, Any]:
    if not points:
        return {}
    site = points[0].site
    place = {"write_site": site.site, "write_layer": site.layer, "write_module": site.module}
    return {**place, "d_out": points[0].width, "skip": skip, "b_pre": "own"}


def _place(config: TrainConfig, d_in: int, **fields: Any) -> SAEConfig:
    d_sae = config.features(d_in)
    if config.architecture == "matryoshka":
        fields["group_sizes"] = tuple(config.recipe.get("group_sizes") or default_groups(d_sae))
    k = min(config.whole_k * ARCHITECTURES[config.architecture].spare, d_sae)
    return SAEConfig(architecture=config.architecture, d_in=d_in, d_sae=d_sae, k=k, **fields)


def _check_start(init_from: SAE | None, place: SAEConfig) -> None:
    if init_from is None:
        return
    have, want = ([c.d_in, c.d_sae, c.d_write] for c in (init_from.config, place))
    if have != want:
        raise Mismatch(
            f"init_from has [d_in, d_sae, d_out] {have}. This run trains {want}. Set d_sae, or begin from another one."
        )
