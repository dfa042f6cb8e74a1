"""Figures, drawn with matplotlib, in colours that colour-blind readers can tell apart."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from hfsae.evaluate import Evaluation
    from hfsae.reading import TopFeatures


def overview(top: "TopFeatures", evaluation: "Evaluation") -> "Figure":
    """Draw what a dictionary sees in a text beside what splicing it costs.

    Left, a row for each of the strongest features and a column for each token, the darker the stronger; right, the
    cross-entropy in nats per token with the model clean, spliced, and mean- and zero-ablated at the site.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 1))
    names, grid = _strongest(top, rows=12)
    left.imshow(grid / grid.amax(1, keepdim=True).clamp_min(1e-9), cmap="cividis_r", aspect="auto")
    left.set_xticks(range(len(top)), [entry.token for entry in top], rotation=90, fontsize=6)
    left.set_yticks(range(len(names)), names, fontsize=7)
    left.set_title("strongest features, each relative to its largest value here", fontsize=9)

    runs = ("clean", "spliced", "mean-\nablated", "zero-\nablated")
    values = (evaluation.ce_clean, evaluation.ce_spliced, evaluation.ce_mean, evaluation.ce_zero)
    bars = right.bar(runs, values, color=("#0072b2", "#e69f00", "#999999", "#555555"))
    right.bar_label(bars, fmt="%.3f", fontsize=8)
    right.set_ylabel("cross-entropy, nats per token")
    right.set_title(f"recovered {evaluation.recovered_zero:.1%} (zero), FVU {evaluation.fvu:.3f}", fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _strongest(top: "TopFeatures", rows: int) -> tuple[list[str], "Tensor"]:
    """The features with the largest sum over the tokens: their names, and their activations ``[n, tokens]``."""
    sums: dict[int, float] = {}
    labels: dict[int, str] = {}
    for entry in top:
        for feature, value, label in entry.features:
            sums[feature] = sums.get(feature, 0.0) + value
            labels[feature] = label
    chosen = sorted(sums, key=lambda feature: -sums[feature])[:rows]
    names = [f"{feature} {labels[feature]}"[:44].strip() for feature in chosen]
    return names, top.sparse.at(chosen)[0].float().T
