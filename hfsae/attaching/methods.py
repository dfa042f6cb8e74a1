"""The edits that an attachment offers; each returns an `Edit` and changes nothing yet.

Every one takes the same selectors: ``positions=`` (whole numbers, a slice, or a bool mask ``[batch, seq]``; counted
over real tokens, negative from the end of the prompt), ``rows=`` (of the batch, by prompt), ``phase=`` ("all", "prompt"
or "generated"); those that name features also ``when=`` (other features: only on tokens where one of them fires).
Values are a number, a list with one per feature, or a tensor ``[rows]`` or ``[rows, features]``.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypedDict, Unpack, runtime_checkable

import torch
from torch import Tensor

from hfsae.attaching.edits import Edit, Part
from hfsae.attaching.mount import Mount
from hfsae.errors import InvalidType, InvalidValue, Unsupported, did_you_mean
from hfsae.interventions import (
    Add,
    Clamp,
    FeatureIntervention,
    Intervention,
    Patch,
    Push,
    Replace,
    Scale,
    Set,
    Splice,
    Value,
    as_value,
)
from hfsae.sae.base import SparseCoder
from hfsae.sae.sparse import FeatureList, SparseFeatures, feature_ids
from hfsae.sae.statistics import FeatureStatistics
from hfsae.selectors import Phase, Positions, Rows, Selector

_SELECTORS = ("positions", "rows", "phase", "when")
UNITS = ("activation", "max", "norm")
_DEFAULTS = ("zero", "activation", "all")


class Where(TypedDict, total=False):
    """Which tokens an edit acts on."""

    positions: Positions
    rows: Rows
    phase: Phase


class WhereAndWhen(Where, total=False):
    """Which tokens an edit of features acts on."""

    when: FeatureList | None


@runtime_checkable
class Attached(Protocol):
    """What edits need of an attachment."""

    @property
    def mount(self) -> Mount:
        """Where the dictionary sits."""

    @property
    def dictionary(self) -> SparseCoder:
        """The dictionary."""


def ablate(
    self: Attached, features: FeatureList, to: Literal["zero", "mean"] = "zero", **where: Unpack[WhereAndWhen]
) -> Edit:
    """Return the edit that sets features to zero, or to their mean over the data they were measured on.

    Raises: InvalidValue: when the mean is asked for and the dictionary carries no statistics.
    """
    if to not in ("zero", "mean"):
        raise InvalidValue(f"to={to!r} is unknown.{did_you_mean(str(to), ('zero', 'mean'))}")
    ids = _features(self, features)
    value = torch.zeros(())
    if to == "mean":
        value = _statistics(self, "to='mean'").mean[_rows(self, ids)].detach().float().cpu()
    return _edit(
        self, Set(features=ids, value=value, **_where(self, where)), _call("ablate", _names(ids), to=to, **where)
    )


def set_(
    self: Attached,
    features: FeatureList,
    value: Value,
    only_if_active: bool = False,
    **where: Unpack[WhereAndWhen],
) -> Edit:
    """Return the edit that sets features to a value, with ``only_if_active`` where they fire."""
    ids = _features(self, features)
    values = as_value("value", value, len(ids))
    change = Set(features=ids, value=values, only_if_active=bool(only_if_active), **_where(self, where))
    text = _call("set", _names(ids), _short(value), only_if_active=only_if_active, **where)
    return _edit(self, change, text)


def scale(self: Attached, features: FeatureList, factor: Value, **where: Unpack[WhereAndWhen]) -> Edit:
    """Return the edit that multiplies features by a factor."""
    ids = _features(self, features)
    change = Scale(features=ids, factor=as_value("factor", factor, len(ids)), **_where(self, where))
    return _edit(self, change, _call("scale", _names(ids), _short(factor), **where))


def clamp(
    self: Attached,
    features: FeatureList,
    min: Value | None = None,
    max: Value | None = None,
    **where: Unpack[WhereAndWhen],
) -> Edit:
    """Return the edit that moves features into ``[min, max]``; either end may be left open.

    Raises: InvalidValue: when both ends are open, or cross.
    """
    if min is None and max is None:
        raise InvalidValue("clamp has neither min nor max. One end or both were expected. Pass min= or max=.")
    ids = _features(self, features)
    low = torch.tensor(-math.inf) if min is None else as_value("min", min, len(ids))
    high = torch.tensor(math.inf) if max is None else as_value("max", max, len(ids))
    if not (low.ndim == high.ndim == 3 and len(low) != len(high)) and bool((low > high).any()):
        raise InvalidValue(f"min={_short(min)} is above max={_short(max)}. min <= max was expected. Swap them.")
    change = Clamp(features=ids, min=low, max=high, **_where(self, where))
    return _edit(self, change, _call("clamp", _names(ids), _short(min), _short(max), **where))


def steer(
    self: Attached,
    feature: FeatureList | Tensor,
    strength: Value,
    unit: Literal["activation", "max", "norm"] = "activation",
    **where: Unpack[WhereAndWhen],
) -> Edit:
    """Return the edit that adds ``strength`` times a direction: ``W_dec[i]`` of a feature, or any vector.

    Args:
        feature: A feature, several, or a float tensor ``[width]``.
        unit: ``"activation"``: of the feature as it is; ``"max"``: multiples of its largest recorded activation;
            ``"norm"``: of the mean norm of the activations at the site, along the direction at unit length.
    Raises:
        InvalidValue: when the unit needs statistics that the dictionary does not carry.
    """
    if unit not in UNITS:
        raise InvalidValue(f"unit={unit!r} is unknown.{did_you_mean(str(unit), UNITS)}")
    if isinstance(feature, Tensor) and feature.is_floating_point():
        return _push(self, feature, strength, unit, where)
    ids = _features(self, feature)
    amount = as_value("strength", strength, len(ids))
    if unit != "activation":
        amount = amount * _size(self, ids, unit)
    text = _call("steer", _names(ids), _short(strength), unit=unit, **where)
    return _edit(self, Add(features=ids, amount=amount, **_where(self, where)), text)


def _push(self: Attached, vector: Tensor, strength: Value, unit: str, where: WhereAndWhen) -> Edit:
    width = self.dictionary.config.d_write
    if vector.shape != (width,) or not bool(vector.isfinite().all()):
        raise InvalidValue(
            f"The vector is {list(vector.shape)}, {int((~vector.isfinite()).sum())} of its numbers not finite. "
            f"A finite vector [{width}] was expected."
        )
    if unit == "max":
        raise InvalidValue("unit='max' is of a feature. A vector has none recorded. Use 'activation' or 'norm'.")
    if where.get("when") is not None:
        raise Unsupported("when= reads features, and a vector is none. Steer a feature, or drop when=.")
    amount = as_value("strength", strength, 1)
    direction = vector.detach().cpu()
    if unit == "norm":
        amount = amount * _statistics(self, "unit='norm'").mean_norm
        direction = direction / _lengths("The vector", direction)
    change = Push(vector=(amount * direction).to(torch.float32), where=_selector(where))
    return _edit(self, change, _call("steer", f"vector[{width}]", _short(strength), unit=unit, **where))


def _size(self: Attached, ids: Tensor, unit: str) -> Tensor:
    statistics = _statistics(self, f"unit={unit!r}")
    if unit == "max":
        return statistics.max[_rows(self, ids)].detach().double().cpu()
    config = self.dictionary.config
    if config.normalize == "layer_norm" and not config.is_transcoder:
        raise Unsupported(
            "unit='norm' needs one size for all tokens, and this dictionary scales each token by its own. "
            "Use unit='max', or steer along its direction as a vector."
        )
    lengths = _lengths("A feature", self.dictionary.directions(ids).detach().double().cpu())
    return lengths.reciprocal() * statistics.mean_norm * (config.scale or 1.0)


def _lengths(what: str, directions: Tensor) -> Tensor:
    lengths: Tensor = directions.norm(dim=-1)
    if bool((lengths == 0).any()):
        raise InvalidValue(f"{what} points nowhere: its length is 0. unit='norm' needs a direction. Use 'activation'.")
    return lengths


def patch(
    self: Attached, features: FeatureList, source: SparseFeatures | Tensor, **where: Unpack[WhereAndWhen]
) -> Edit:
    """Return the edit that gives features the values they had in another run, position by position.

    Args:
        source: What `Attachment.features_of` or a recording gives, or a tensor ``[rows, positions, features]``; its
            positions are those of the real tokens. One row serves every row. Tokens beyond it are left alone.
    """
    ids = _features(self, features)
    table = source.at(ids) if isinstance(source, SparseFeatures) else source
    if not isinstance(table, Tensor):
        raise InvalidType(f"source is a {type(source).__name__}. SparseFeatures or a tensor was expected.")
    table = table.detach()
    if table.ndim == 2:
        table = table[None]
    if table.ndim != 3 or table.shape[-1] != len(ids) or not table.numel():
        raise InvalidValue(f"source is {list(table.shape)}. [rows, positions, {len(ids)}] was expected.")
    if not bool(table.isfinite().all()):
        raise InvalidValue("source is not finite. Finite feature activations were expected.")
    change = Patch(features=ids, source=table, **_where(self, where))
    return _edit(self, change, _call("patch", _names(ids), "source", **where))


def splice(self: Attached, **where: Unpack[Where]) -> Edit:
    """Return the edit that puts the reconstruction in the place of the activation, other edits included."""
    if self.dictionary.features is not None:
        raise Unsupported(
            f"This slice of {len(self.dictionary.features)} features cannot reconstruct. The whole dictionary was "
            "expected. Load it without features=."
        )
    return _edit(self, Splice(where=_selector(where)), _call("splice", **where))


def replace(self: Attached, fn: Callable[[Tensor], Tensor] | Tensor, **where: Unpack[Where]) -> Edit:
    """Return the edit that puts ``fn(x)``, or a tensor that broadcasts to x, in the place of the activation x."""
    if not callable(fn) and not isinstance(fn, Tensor):
        raise InvalidType(f"replace got a {type(fn).__name__}. A function of the activation or a tensor was expected.")
    return _edit(self, Replace(fn=fn, where=_selector(where)), _call("replace", "...", **where))


def clear(self: Attached) -> None:
    """Remove every edit that was applied here with `Edit.apply`."""
    self.mount.standing = None


def _edit(self: Attached, intervention: Intervention, text: str) -> Edit:
    if not self.mount.attached:
        raise InvalidValue(
            f"{text} belongs to an attachment that was detached. It was to change a model. Attach again."
        )
    sae = self.dictionary
    reads = isinstance(intervention, FeatureIntervention) and (intervention.reads or intervention.when is not None)
    if reads and sae.features is not None and sae.kind != "thresholded":
        raise Unsupported(
            f"{text} reads features, which this slice of a {sae.kind} dictionary cannot. Only steering works on it. "
            "Load the dictionary whole, without features=."
        )
    return Edit([Part(self.mount, intervention, text)])


def _where(self: Attached, where: WhereAndWhen) -> dict[str, Any]:
    when = where.get("when")
    return {"where": _selector(where), "when": None if when is None else _features(self, when)}


def _selector(where: Where | WhereAndWhen) -> Selector:
    unknown = sorted(set(where) - {"positions", "rows", "phase", "when"})
    if unknown:
        raise InvalidType(
            f"{unknown[0]!r} is no selector.{did_you_mean(unknown[0], ('positions', 'rows', 'phase', 'when'))}"
        )
    return Selector.of(where.get("positions"), where.get("rows"), where.get("phase", "all"))


def _features(self: Attached, features: object) -> Tensor:
    ids = feature_ids(features, self.dictionary.config.d_sae)  # type: ignore[arg-type]  # it checks the type
    listed = ids.tolist()
    if len(set(listed)) < len(listed):
        twice = next(feature for feature in listed if listed.count(feature) > 1)
        raise InvalidValue(f"Feature {twice} is named twice. An edit names each feature once. Drop the second.")
    _rows(self, ids)
    return ids


def _rows(self: Attached, ids: Tensor) -> Tensor:
    return self.dictionary.rows(ids).cpu()


def _statistics(self: Attached, what: str) -> FeatureStatistics:
    found: FeatureStatistics | None = getattr(self.dictionary, "statistics", None)
    if found is None:
        raise InvalidValue(
            f"{what} needs the statistics of the dictionary, and it carries none. A dictionary saved with them was "
            "expected. Give the value in plain activations, or measure them."
        )
    return found


def _call(name: str, *args: str, **options: object) -> str:
    """Return a call as a person would write it: options at their defaults left out."""
    is_default = {o: v is None or v is False or (isinstance(v, str) and v in _DEFAULTS) for o, v in options.items()}
    told = [f"{option}={_short(value)}" for option, value in options.items() if not is_default[option]]
    return f"{name}({', '.join([*args, *told])})"


def _names(ids: Tensor) -> str:
    listed = ids.tolist()
    return (
        str(listed[0])
        if len(listed) == 1
        else f"[{', '.join(map(str, listed[:6]))}{', ...' if len(listed) > 6 else ''}]"
    )


def _short(value: object) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.40}"
