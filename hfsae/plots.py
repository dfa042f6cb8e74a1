"""Figures, drawn with matplotlib, in colours that colour-blind readers can tell apart."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hfsae.attach import TopFeatures
    from hfsae.evaluate import Evaluation


def overview(top: "TopFeatures", evaluation: "Evaluation") -> "Figure":
    """Draw what a dictionary sees in a text beside what splicing it costs.

    Left, a row for each of the strongest features and a column for each token, the darker the stronger; right, the
    cross-entropy in nats per token with the model clean, spliced, and mean- and zero-ablated at the site.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 1))
    features, grid = top.grid(rows=12)
    left.imshow(grid / grid.amax(1, keepdim=True).clamp_min(1e-9), cmap="cividis_r", aspect="auto")
    left.set_xticks(range(len(top.tokens)), [repr(token)[1:-1] for token in top.tokens], rotation=90, fontsize=6)
    left.set_yticks(range(len(features)), [top.describe(feature) for feature in features], fontsize=7)
    left.set_title("strongest features, each relative to its largest value here", fontsize=9)

    names = ("clean", "spliced", "mean-\nablated", "zero-\nablated")
    values = (evaluation.ce_clean, evaluation.ce_spliced, evaluation.ce_mean, evaluation.ce_zero)
    bars = right.bar(names, values, color=("#0072b2", "#e69f00", "#999999", "#555555"))
    right.bar_label(bars, fmt="%.3f", fontsize=8)
    right.set_ylabel("cross-entropy, nats per token")
    right.set_title(f"recovered {evaluation.recovered_zero:.1%} (zero), FVU {evaluation.fvu:.3f}", fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    return figure
