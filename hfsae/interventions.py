"""What an edit does to feature activations: one frozen dataclass each, from f to f'.

`Set`, `Scale`, `Clamp`, `Add` and `Patch` change named features; they get and return only the columns of those. `Push`,
`Replace` and `Splice` act on the activation itself. Numbers are tensors, so that a compiled graph serves any value of
them: a scalar ``[]``, one per feature ``[n]``, or one per row ``[rows, 1, 1]`` or ``[rows, 1, n]``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hfsae.errors import InvalidType, InvalidValue
from hfsae.sae.sparse import SparseFeatures
from hfsae.selectors import Selector, Tokens

Value = float | list[float] | Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """One change, and where it applies."""

    where: Selector = field(default_factory=Selector)
    """Which tokens it acts on."""

    @property
    def has_row_values(self) -> bool:
        """It holds a value for each row of the batch."""
        return any(isinstance(v, Tensor) and v.ndim == 3 and len(v) > 1 for v in vars(self).values())

    def mask(self, tokens: Tokens) -> Tensor | None:
        """Return which tokens it acts on; None for all."""
        return self.where.mask(tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureIntervention(Intervention):
    """A change of named features: called with their activations ``[..., n]``, it returns what takes their place."""

    reads: ClassVar[bool] = True
    """It needs to know the activations; one that does not may be called with zeros."""

    features: Tensor
    """Ids ``[n]``, int64, on the CPU."""
    when: Tensor | None = None
    """Ids of other features: it acts on tokens where any of them fires."""

    def __call__(self, f: Tensor, tokens: Tokens) -> Tensor:
        """Return f' of the named features."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class Set(FeatureIntervention):
    """f' = value: ablation, when that is zero or the feature's mean."""

    value: Tensor
    only_if_active: bool = False
    """Leave a feature alone where it does not fire."""

    def __call__(self, f: Tensor, tokens: Tokens) -> Tensor:
        value = fit(self.value, f, tokens).expand_as(f)
        return torch.where(f != 0, value, f) if self.only_if_active else value


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(FeatureIntervention):
    """f' = factor * f."""

    factor: Tensor

    def __call__(self, f: Tensor, tokens: Tokens) -> Tensor:
        return f * fit(self.factor, f, tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class Clamp(FeatureIntervention):
    """f' = f, moved into [min, max]."""

    min: Tensor
    max: Tensor

    def __call__(self, f: Tensor, tokens: Tokens) -> Tensor:
        return torch.minimum(torch.maximum(f, fit(self.min, f, tokens)), fit(self.max, f, tokens))


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(FeatureIntervention):
    """f' = f + amount: steering along features."""

    reads: ClassVar[bool] = False
    amount: Tensor

    def __call__(self, f: Tensor, tokens: Tokens) -> Tensor:
        return f + fit(self.amount, f, tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch(FeatureIntervention):
    """f' = what the features were in another run, at the same position; tokens beyond that run are left alone."""

    source: Tensor
    """``[rows, positions, n]``; one row serves all."""

    def __call__(self, f: Tensor, tokens: Tokens) -> Tensor:
        source = fit(self.source, f, tokens)
        known = source.shape[1]
        positions = tokens.positions.clamp(0, known - 1).expand(f.shape[0], -1)
        return source.expand(f.shape[0], -1, -1).gather(1, positions[..., None].expand(-1, -1, f.shape[-1]))

    def mask(self, tokens: Tokens) -> Tensor | None:
        """Return which tokens it acts on: those whose position the other run has."""
        chosen = super().mask(tokens)
        known = (tokens.positions < self.source.shape[1]) & (tokens.positions >= 0)
        return known if chosen is None else chosen & known


@dataclass(frozen=True, kw_only=True, eq=False)
class Push(Intervention):
    """x' = x + vector: steering along any direction."""

    vector: Tensor
    """``[width]``, or one per row ``[rows, 1, width]``."""

    def __call__(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return x'."""
        return x + fit(self.vector, x, tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class Replace(Intervention):
    """x' = fn(x), whatever that is; applied after all else."""

    fn: Callable[[Tensor], Tensor] | Tensor
    """A function of the activation, or a tensor that takes its place."""

    def __call__(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return x'."""
        y = self.fn.to(x) if isinstance(self.fn, Tensor) else self.fn(x)
        if not isinstance(y, Tensor):
            raise InvalidType(f"The replacement returned a {type(y).__name__}. A tensor like x was expected.")
        if y.shape != x.shape and not isinstance(self.fn, Tensor):
            raise InvalidValue(f"The replacement returned {list(y.shape)}. The model needs {list(x.shape)}.")
        return y.to(x).expand_as(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Splice(Intervention):
    """x' = decode(f'): the reconstruction takes the place of x, and its error is gone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record(Intervention):
    """Changes nothing; hands each forward's features to ``keep``."""

    keep: Callable[[SparseFeatures], None]


def fit(value: Tensor, f: Tensor, tokens: Tokens) -> Tensor:
    """Return ``value`` on f's device and in its dtype, its rows as the batch has them."""
    value = value.to(f.device, f.dtype)
    return tokens.per_row(value) if value.ndim == 3 and len(value) > 1 else value


def as_value(name: str, given: object, count: int) -> Tensor:
    """Check a caller's number or numbers for ``count`` features and return them in a shape that broadcasts.

    A number is for all; a list has one per feature; a tensor ``[rows]`` or ``[rows, features]`` one per row.

    Raises:
        InvalidType: when they are no numbers.
        InvalidValue: when one is NaN or infinite, or there are too many or too few.
    """
    value = _as_tensor(name, given)
    if not bool(value.float().isfinite().all()):
        raise InvalidValue(f"{name}={given!r:.60} is not finite as a float32. Finite numbers were expected.")
    if value.ndim == 0:
        return value
    if not isinstance(given, Tensor):
        if value.ndim != 1 or len(value) != count:
            raise InvalidValue(
                f"{name} has {len(value)} values for {count} features. A list has one per feature. "
                "Pass a tensor [rows] for one per row."
            )
        return value
    if value.ndim == 1 and len(value):
        return value[:, None, None]
    if value.ndim == 2 and value.shape[0] and value.shape[1] == count:
        return value[:, None, :]
    raise InvalidValue(
        f"{name} is a tensor {list(value.shape)}. [rows] or [rows, {count}] was expected for {count} features."
    )


def _as_tensor(name: str, given: object) -> Tensor:
    if isinstance(given, Tensor):
        value = given.detach()
    elif isinstance(given, bool) or not isinstance(given, int | float | list | tuple):
        raise InvalidType(f"{name}={given!r:.60} is a {type(given).__name__}. A number, list or tensor was expected.")
    else:
        try:
            value = torch.tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InvalidType(f"{name}={given!r:.60} holds what is no number. {error}.") from error
    if value.dtype == torch.bool or value.dtype.is_complex:
        raise InvalidType(f"{name} is a tensor of {value.dtype}. Real numbers were expected.")
    return value.float() if value.dtype != torch.float64 else value
