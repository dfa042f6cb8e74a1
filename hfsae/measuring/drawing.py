"""The panels of an evaluation's picture, in colours that colour-blind readers can tell apart (Okabe and Ito 2008)."""

from typing import TYPE_CHECKING

from hfsae.metrics import BINS_PER_OCTAVE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from hfsae.measuring.evaluation import Evaluation

COLOURS = {"clean": "#0072b2", "spliced": "#e69f00", "mean": "#999999", "zero": "#555555"}
"""The colour of each run of the model."""


def draw_evaluation(figure: "FigureBase", evaluation: "Evaluation") -> None:
    """Draw losses where there are any, densities, and L0 and FVU by token, into a figure or a part of one."""
    panels = list(figure.subplots(*((1, 3) if evaluation.loss is None else (2, 2))).flat)
    *losses, density, l0, fvu = panels
    for axes in losses:
        _draw_losses(axes, evaluation)
    _draw_density(density, evaluation)
    _draw_l0(l0, evaluation)
    _draw_fvu(fvu, evaluation)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


def _draw_losses(axes: "Axes", evaluation: "Evaluation") -> None:
    values = [getattr(evaluation, f"ce_{name}") for name in COLOURS]
    bars = axes.bar(list(COLOURS), values, color=list(COLOURS.values()))
    axes.bar_label(bars, fmt="%.3f", fontsize=8)
    axes.set_ylabel("nats per prediction" if evaluation.loss == "cross-entropy" else "loss")
    recovered = (evaluation.recovered_zero, evaluation.recovered_mean)
    zero, mean = ("undefined" if value is None else f"{value:.4f}" for value in recovered)
    axes.set_title(f"loss recovered {zero} (zero), {mean} (mean)", fontsize=10)


def _draw_density(axes: "Axes", evaluation: "Evaluation") -> None:
    alive = evaluation.density[evaluation.density > 0].log10().tolist()
    axes.hist(alive, bins=40, color=COLOURS["clean"])
    axes.set_xlabel("log10 of the fraction of tokens a feature fires on")
    axes.set_ylabel("features")
    axes.set_title(f"{evaluation.dead_fraction:.1%} of {len(evaluation.density):,} features never fire", fontsize=10)


def _draw_l0(axes: "Axes", evaluation: "Evaluation") -> None:
    numbers = evaluation.l0_histogram.nonzero()[:, 0].tolist()
    axes.bar(numbers, evaluation.l0_histogram[numbers].tolist(), width=1.0, color=COLOURS["spliced"])
    axes.set_xlim(-0.5, 1.3 * len(evaluation.l0_histogram) + 1)
    axes.set_xlabel("features that fire on a token")
    axes.set_ylabel("tokens")
    axes.set_title(f"L0 {evaluation.l0:.1f}", fontsize=10)


def _draw_fvu(axes: "Axes", evaluation: "Evaluation") -> None:
    first, bins = evaluation.fvu_histogram_from or 1.0, range(len(evaluation.fvu_histogram))
    edges = [first * 2 ** (i / BINS_PER_OCTAVE) for i in bins]
    widths = [edge * (2 ** (1 / BINS_PER_OCTAVE) - 1) for edge in edges]
    axes.bar(edges, evaluation.fvu_histogram.tolist(), widths, align="edge", color=COLOURS["spliced"])
    axes.set_xscale("log")
    axes.set_xlabel("error of a token, as a share of the mean variance")
    axes.set_ylabel("tokens")
    axes.set_title(f"FVU {evaluation.fvu:.3f}", fontsize=10)
