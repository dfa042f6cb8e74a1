"""`train`: from a model and text, or from activations, to a dictionary in one call."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hfsae.data.ring import Rows, ShuffleRing
from hfsae.data.rows import IterableRows, ModelRows, TensorRows
from hfsae.data.sources import open_source
from hfsae.dictionary import SAE
from hfsae.errors import InvalidType, InvalidValue
from hfsae.sae.config import SAEConfig
from hfsae.sites import Point, base_model_id, resolve
from hfsae.train.callbacks import Callback, ProgressBar
from hfsae.train.config import TrainConfig
from hfsae.train.trainer import Trainer, kept_back


def train(  # noqa: PLR0913
    model: Any = None,
    data: Any = None,
    *,
    activations: Tensor | Iterable[Tensor] | None = None,
    tokenizer: Any = None,
    layer: int | None = None,
    site: str = "resid_post",
    module: str | None = None,
    io: str = "output",
    stack: str | None = None,
    config: TrainConfig | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    device: torch.device | str | None = None,
) -> SAE:
    """Train a dictionary on a model's activations, or on given ones.

    Args:
        model: Any HuggingFace model. It is only read; its forward stops at the site.
        data: Text, texts, token ids, rows with a "text" or an "input_ids" column, a dataset.
        activations: In place of a model and data: a tensor ``[..., d_in]``, or an iterable of such.
        tokenizer: The model's own; needed for text.
        layer: Block, counted from 0; negative counts from the end.
        site: Where in the block.
        module: Path of any module, in place of a layer and a site; with ``io``, its output or its input.
        io: See ``module``.
        stack: Which stack ``layer`` counts in.
        config: How to train; the defaults are meant to be left alone.
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
    config = TrainConfig() if config is None else config
    if not isinstance(config, TrainConfig):
        raise InvalidType(f"config is of type {type(config).__name__}. Expected a TrainConfig.")
    if activations is not None:
        if model is not None or data is not None:
            raise InvalidType(
                "Both activations and a model with data were given. Expected one of them. Drop the other."
            )
        rows = _given_rows(activations, config)
        place = _place(config, rows.width)
    else:
        point = _point(model, data, layer=layer, site=site, module=module, io=io, stack=stack)
        rows, place = _model_rows(model, data, point, tokenizer, config)
    ring = ShuffleRing(
        rows,
        capacity=max(config.data.buffer_bytes // (4 * rows.width), 2 * config.batch),
        limit=config.tokens + kept_back(config),
        seed=config.seed,
    )
    bar: list[Callback] = [ProgressBar()] if progress else []
    return Trainer(ring, config, place, callbacks=[*bar, *callbacks], device=device).run()


def _given_rows(activations: Tensor | Iterable[Tensor], config: TrainConfig) -> Rows:
    if isinstance(activations, Tensor):
        return TensorRows(activations, seed=config.seed)
    return IterableRows(activations)


def _point(model: Any, data: Any, **where: Any) -> Point:
    if model is None or data is None:
        raise InvalidType(
            "There is nothing to train on. Expected a model and data, or activations. Pass train(model, texts, layer=...) "
            "or train(activations=x)."
        )
    if where["layer"] is None and where["module"] is None:
        raise InvalidType("No layer was named. Expected layer=, or module= with a path. Add one.")
    return resolve(model, where["layer"], where["site"], module=where["module"], io=where["io"], stack=where["stack"])


def _place(config: TrainConfig, d_in: int, **fields: Any) -> SAEConfig:
    return SAEConfig(
        architecture=config.architecture,
        d_in=d_in,
        d_sae=config.features(d_in),
        k=max(round(config.l0), 1),
        **fields,
    )


def _model_rows(
    model: Any, data: Any, point: Point, tokenizer: Any, config: TrainConfig
) -> tuple[ModelRows, SAEConfig]:
    """Return the model's activations at a point, and the config of a dictionary there."""
    if point.width is None:
        raise InvalidValue(
            f"The width of the activations at {point.path!r} is not known before a forward. "
            "Name a site of a block, or a module with a known width."
        )
    settings = config.data
    place = _place(
        config,
        point.width,
        site=point.site.site,
        layer=point.site.layer,
        module=point.site.module,
        io=point.site.io,
        stack=point.site.stack,
        base_model=base_model_id(model),
        base_revision=getattr(getattr(model, "config", None), "_commit_hash", None),
        exclude_special_tokens=settings.exclude_special_tokens,
        exclude_first_position=settings.exclude_first_position,
        norm_outlier=settings.norm_outlier,
    )
    options = {"tokenizer": tokenizer, "batch_size": settings.model_batch_size, "context": settings.context}
    source = open_source(data, config.seed)
    return ModelRows(model, [point], source, place, options), place
