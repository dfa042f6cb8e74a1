"""Does a dictionary fit a model, at the place it says it is for? Measured on a few texts, with what is wrong named.

1. The dictionary is spliced in at its own place and evaluated.
2. The figures are compared with those recorded beside it, or else with what any dictionary that fits reaches.
3. Where they are worse, or nothing is recorded, the same tokens are read at every other site of that width, and with
   the activations scaled, to say where, or how, it would fit better: neighbouring layers are alike, so that a
   dictionary at the wrong one is not bad enough to be noticed alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.attaching.attachment import Attachment, own_place, placed
from hfsae.data.tokens import batches
from hfsae.dictionary import SAE
from hfsae.errors import HfsaeError, InvalidValue
from hfsae.evaluate import Evaluation, evaluate
from hfsae.formats import native
from hfsae.formats.files import read_json
from hfsae.hooks import capture
from hfsae.metrics import fvu
from hfsae.sae.base import SparseCoder
from hfsae.sites import SITES, Point, base_model_id, blocks, resolve, unwrap
from hfsae.tracing import dispatch

__all__ = ["Fit", "check"]

_POOR = 0.9  # an FVU that no dictionary at its own place comes near: the mean alone reaches 1
_BETTER = 0.7  # another place or scale is named where it leaves at most this share of the error
_L0_FACTOR = 1.5


@dataclass(frozen=True)
class Fit:
    """Whether a dictionary fits, and what is wrong where it does not; prints as both."""

    evaluation: Evaluation
    """What was measured at the dictionary's own place."""
    problems: tuple[str, ...]
    """What is wrong, in words; empty where it fits."""

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        verdict = "It fits." if self.ok else "It does not fit:\n" + "\n".join(f"  - {text}" for text in self.problems)
        return f"{self.evaluation}\n{verdict}"


def check(  # noqa: PLR0913 - what, where and how strictly, all but the first three by keyword
    model: nn.Module,
    dictionary: SparseCoder | str | Path,
    texts: object,
    *,
    tokenizer: Any = None,
    recorded: Mapping[str, Any] | None = None,
    max_tokens: int = 4096,
    tolerance: float = 0.1,
) -> Fit:
    """Measure whether a dictionary fits a model at the place it says it is for, and name what is wrong.

    Args:
        dictionary: An `SAE`, its folder, or a Hub id of one dictionary.
        texts: Any data that `evaluate` reads; a few thousand tokens are enough.
        recorded: The figures to compare with; None takes the ``eval.json`` beside its files, where there is one.
        max_tokens: How many tokens to read.
        tolerance: How far FVU and CE loss recovered may be worse than recorded; other texts cost a few hundredths.

    Raises:
        InvalidValue: when the data hold nothing to measure, or the tolerance is negative.
        SiteNotFound, Mismatch: when the model has no such place, or one of another width.
    """
    sae = dictionary if isinstance(dictionary, SparseCoder) else SAE.from_pretrained(dictionary)
    dispatch(model)
    read = resolve(unwrap(model), **own_place(sae))
    with placed(model, sae, read, name="hfsae_check", force=True) as attachment:
        return fit_of(
            attachment, texts, tokenizer=tokenizer, recorded=recorded, max_tokens=max_tokens, tolerance=tolerance
        )


def fit_of(
    attachment: Attachment,
    texts: object,
    *,
    tokenizer: Any = None,
    recorded: Mapping[str, Any] | None = None,
    max_tokens: int = 4096,
    tolerance: float = 0.1,
) -> Fit:
    """Measure whether an attached dictionary fits where it is; otherwise as `check`."""
    if tolerance < 0:
        raise InvalidValue(f"tolerance={tolerance} is negative. It is how much worse than recorded is accepted.")
    sae, model = attachment.dictionary, attachment.model
    known = recorded if recorded is not None else _recorded(sae)
    found = evaluate(attachment, texts, tokenizer=tokenizer, max_tokens=max_tokens, progress=False)
    problems = [*_of_base_model(model, sae), *_against(found, known, tolerance)]
    proved = "fvu" in known and found.fvu <= _POOR and not _is_worse(found.fvu, known["fvu"], tolerance)
    if not proved and not sae.config.is_transcoder:
        problems += _where_it_fits(attachment, texts, tokenizer, max_tokens)
    return Fit(found, tuple(problems))


def _recorded(sae: SparseCoder) -> Mapping[str, Any]:
    """The figures stored beside the files that a dictionary was loaded from."""
    folder = getattr(sae, "folder", None)
    path = None if folder is None else folder / native.EVALUATION
    return read_json(path) if path is not None and path.is_file() else {}


def _of_base_model(model: nn.Module, sae: SparseCoder) -> list[str]:
    trained_on, given = sae.config.base_model, base_model_id(model)
    if trained_on is None or given is None or trained_on == given:
        return []
    return [f"It was trained on {trained_on!r}; this model is {given!r}. A fine-tuned variant is another model."]


def _against(found: Evaluation, known: Mapping[str, Any], tolerance: float) -> list[str]:
    """What is worse than recorded or, with nothing recorded, worse than any dictionary that fits."""
    problems = []
    if _is_worse(found.fvu, known.get("fvu"), tolerance):
        problems.append(f"FVU is {found.fvu:.3f}; recorded is {known['fvu']:.3f}.")
    elif found.fvu > _POOR:
        problems.append(f"FVU is {found.fvu:.3f}: hardly better than the mean. A dictionary at its place is far below.")
    recovered = known.get("recovered_zero")
    if found.recovered_zero is not None and _is_worse(-found.recovered_zero, _negated(recovered), tolerance):
        problems.append(f"CE loss recovered is {found.recovered_zero:.3f}; recorded is {recovered:.3f}.")
    l0 = known.get("l0")
    if isinstance(l0, (int, float)) and not l0 / _L0_FACTOR <= found.l0 <= l0 * _L0_FACTOR:
        problems.append(f"L0 is {found.l0:.1f}; recorded is {l0:.1f}.")
    return problems


def _is_worse(value: float, known: object, tolerance: float) -> bool:
    return isinstance(known, (int, float)) and not value <= known + tolerance


def _negated(value: object) -> float | None:
    return -value if isinstance(value, (int, float)) else None


def _where_it_fits(attachment: Attachment, texts: object, tokenizer: Any, max_tokens: int) -> list[str]:
    """Name the scale, or the other site or layer, at which the reconstruction is far better; the best one alone."""
    model, sae, own = attachment.model, attachment.dictionary, attachment.point
    device = next(unwrap(model).parameters()).device
    data = batches(texts, tokenizer=tokenizer, batch_size=8, max_tokens=max_tokens)
    batch = next(iter(data)).to(device)
    points = [own, *(point for point in _points(model, sae) if (point.path, point.io) != (own.path, own.io))]
    kept = batch.valid & ~batch.special_mask
    activations = [x[kept] for x in capture(model, points, **batch.model_inputs())]
    here = _error(sae, activations[0], 1.0)
    found = [
        (_error(sae, x, 1.0), f"It fits at {point.site} (FVU {{:.3f}}): wrong site or layer.")
        for x, point in zip(activations[1:], points[1:], strict=True)
    ]
    found += [
        (
            _error(sae, activations[0], scale),
            f"It fits activations scaled by {scale:.4g} (FVU {{:.3f}}): wrong normalisation.",
        )
        for scale in _scales(activations[0])
    ]
    best, words = min(found, key=lambda item: item[0], default=(math.inf, ""))
    return [words.format(best)] if best < _BETTER * here else []


def _points(model: nn.Module, sae: SparseCoder) -> list[Point]:
    """Every site of the model at which the dictionary's width passes."""
    found = []
    for layer in range(len(blocks(model, sae.config.stack))):
        for site in SITES:
            try:
                point = resolve(model, layer, site, stack=sae.config.stack)
            except HfsaeError:
                continue  # this family has no such site
            if point.width == sae.config.d_in and not point.flat:
                found.append(point)
    return found


def _scales(x: Tensor) -> list[float]:
    """The factors by which libraries scale activations: to a mean norm of sqrt(d), and of 1."""
    norm = float(x.float().norm(dim=-1).mean())
    return [math.sqrt(x.shape[-1]) / norm, 1 / norm] if norm else []


def _error(sae: SparseCoder, x: Tensor, scale: float) -> float:
    with torch.no_grad():
        x_hat = sae(x.float() * scale) / scale
    error = fvu(x.float(), x_hat.float())
    return error if math.isfinite(error) else math.inf
