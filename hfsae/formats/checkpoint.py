"""`Checkpoint`: a dictionary as it comes from disk, in our layout and units, whatever the format was."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from hfsae.sae.config import SAEConfig
from hfsae.sae.sparse import FeatureList
from hfsae.sae.statistics import FeatureStatistics, Label


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that makes a dictionary, as plain tensors."""

    config: SAEConfig
    """What it is."""
    tensors: dict[str, Tensor]
    """Its parameters by name: W_enc, b_enc, W_dec, b_dec, and b_pre, threshold, W_skip where it has them."""
    statistics: FeatureStatistics | None = None
    """What was measured about its features."""
    labels: Mapping[int, Label] = field(default_factory=dict)
    """What its features are called."""
    source: str = ""
    """Where it came from, for messages."""
    features: Tensor | None = None
    """Ids of the rows it holds, when only some were read."""
    content: str | None = None
    """Eight hex digits that stand for its weights; None when they were not recorded."""


@runtime_checkable
class Format(Protocol):
    """What a module of `hfsae.formats` offers."""

    name: str
    """The name that `format=` takes."""

    def matches(self, path: Path) -> bool:
        """Tell, by content and cheaply, whether a folder or file is of this format."""

    def read(self, path: Path, *, features: FeatureList | None = None) -> Checkpoint:
        """Read a dictionary, or those rows of it."""
