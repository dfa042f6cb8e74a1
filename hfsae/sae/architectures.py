"""The architectures of dictionaries, as rows of data: what each one needs and how it encodes.

At inference there are three kinds, and every architecture is one of them:

1. `thresholded`: f_i = z_i where z_i > max(threshold_i, 0), else 0. ReLU is a threshold of 0; BatchTopK and Matryoshka
   use the threshold found in training; a gated encoder folds into one threshold per feature (`hfsae.sae.folding`).
2. `topk`: the k largest z of each token, where they are above 0.
3. `sequential`: features chosen on what others left over, at most k of them, where they exceed a threshold.

A new architecture of a known kind is a new row here.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["thresholded", "topk", "sequential"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What an architecture needs and how it encodes."""

    name: str
    """The name in `SAEConfig.architecture` and on disk."""
    kind: Kind
    """How it encodes at inference."""
    has_threshold: bool = False
    """It holds a parameter `threshold [d_sae]`."""
    needs_k: bool = False
    """k is part of what it computes; elsewhere k only records how it was trained."""
    spare: int = 1
    """k, in a trained one, as a multiple of the features meant to fire: room for tokens that have more to say."""
    transcodes: bool = True
    """It may write elsewhere than it reads."""
    nested: bool = False
    """Its prefixes of features are dictionaries of their own, and `group_sizes` gives their widths."""
    source: str
    """Where it comes from."""


_ROWS = (
    Architecture(name="standard", kind="thresholded", source="Bricken et al. 2023, Towards Monosemanticity"),
    Architecture(
        name="gated", kind="thresholded", has_threshold=True, source="Rajamanoharan et al. 2024, arXiv:2404.16014"
    ),
    Architecture(name="topk", kind="topk", needs_k=True, source="Gao et al. 2024, arXiv:2406.04093"),
    Architecture(
        name="batchtopk", kind="thresholded", has_threshold=True, source="Bussmann et al. 2024, arXiv:2412.06410"
    ),
    Architecture(
        name="jumprelu", kind="thresholded", has_threshold=True, source="Rajamanoharan et al. 2024, arXiv:2407.14435"
    ),
    Architecture(
        name="matryoshka",
        kind="thresholded",
        has_threshold=True,
        nested=True,
        source="Bussmann et al. 2025, arXiv:2503.17547",
    ),
    Architecture(
        name="matching_pursuit",
        kind="sequential",
        has_threshold=True,
        needs_k=True,
        spare=4,
        transcodes=False,
        source="Costa et al. 2025, arXiv:2506.03093",
    ),
    Architecture(
        name="refined_topk",
        kind="sequential",
        has_threshold=True,
        needs_k=True,
        spare=4,
        transcodes=False,
        source="ours, by Blumensath and Davies 2009, Iterative hard thresholding for compressed sensing",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}
"""Every architecture by name."""
