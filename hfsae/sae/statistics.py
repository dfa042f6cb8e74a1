"""What was measured about the features of a dictionary, and what they are called."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hfsae.errors import InvalidValue

_PER_FEATURE = ("density", "max", "mean")


@dataclass(frozen=True)
class Label:
    """What a feature is said to stand for."""

    text: str
    """In words."""
    source: str = ""
    """Who says so: a person, a method, a site."""


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """What the features of a dictionary do over many tokens; the units of `steer` come from here.

    Raises: InvalidValue: when the vectors differ in length, or a number is negative or not finite.
    """

    density: Tensor
    """Fraction of tokens on which each feature fires, ``[d_sae]``."""
    max: Tensor
    """Largest activation of each feature, ``[d_sae]``."""
    mean: Tensor
    """Mean activation of each feature over all counted tokens, firing or not, ``[d_sae]``."""
    mean_norm: float
    """Mean norm of x at the site."""
    tokens: int
    """How many tokens were counted."""
    mean_activation: Tensor | None = None
    """Mean of x, ``[d_in]``: what mean ablation puts in its place."""

    def __post_init__(self) -> None:
        width = self.density.shape
        for name in _PER_FEATURE:
            vector = getattr(self, name)
            if vector.ndim != 1 or vector.shape != width:
                shapes = f"{name} is {list(vector.shape)}, density is {list(width)}"
                raise InvalidValue(f"The statistics differ in shape: {shapes}. Both must be [d_sae].")
            if not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
                raise InvalidValue(f"The statistics hold a {name} that is negative or not finite.")
        if not (0 <= self.mean_norm < math.inf) or self.tokens < 0:
            raise InvalidValue(f"mean_norm={self.mean_norm!r}, tokens={self.tokens!r}: both must be finite and >= 0.")
        if self.mean_activation is not None and not bool(torch.isfinite(self.mean_activation).all()):
            raise InvalidValue("The statistics hold a mean_activation that is not finite.")

    def rows(self, indices: Tensor) -> "FeatureStatistics":
        """Return the statistics of those features alone."""
        return replace(self, **{name: getattr(self, name)[indices] for name in _PER_FEATURE})

    def to_tensors(self) -> dict[str, Tensor]:
        """Return them as named tensors, for a safetensors file."""
        tensors = {name: getattr(self, name).detach().float().cpu() for name in _PER_FEATURE}
        tensors["mean_norm"] = torch.tensor([self.mean_norm], dtype=torch.float64)
        tensors["tokens"] = torch.tensor([self.tokens], dtype=torch.float64)
        if self.mean_activation is not None:
            tensors["mean_activation"] = self.mean_activation.detach().float().cpu()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FeatureStatistics":
        """Build them from their `to_tensors`.

        Raises: InvalidValue: when one is missing.
        """
        missing = [name for name in (*_PER_FEATURE, "mean_norm", "tokens") if name not in tensors]
        if missing:
            held = ", ".join(sorted(tensors)) or "nothing"
            raise InvalidValue(f"The statistics have no {missing[0]!r}. They hold {held}.")
        vectors = {name: tensors[name] for name in _PER_FEATURE}
        mean = tensors.get("mean_activation")
        numbers = {"mean_norm": float(tensors["mean_norm"].item()), "tokens": int(tensors["tokens"].item())}
        return cls(**vectors, **numbers, mean_activation=mean)  # type: ignore[arg-type]
