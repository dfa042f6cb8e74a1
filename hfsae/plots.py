"""Figures, drawn with matplotlib, in colours that colour-blind readers can tell apart."""

import re
from textwrap import shorten
from typing import TYPE_CHECKING

from hfsae.errors import InvalidValue
from hfsae.measuring.drawing import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hfsae.attaching.reading import TokenFeatures
    from hfsae.evaluate import Evaluation
    from hfsae.train import Figures


def overview(tokens: "Sequence[TokenFeatures]", evaluation: "Evaluation") -> "Figure":
    """Draw what a dictionary sees in a text beside what splicing it costs.

    Left, a row for each of the strongest features and a column for each token, the darker the stronger, in the order
    in which they peak; right, the cross-entropy in nats per token with the model clean, spliced, and mean- and
    zero-ablated at the site.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 1))
    names, grid = _strongest(tokens, rows=14)
    left.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    left.set_xticks(range(len(tokens)), [entry.token.strip() or "\u2423" for entry in tokens], rotation=90, fontsize=8)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_xticks([column - 0.5 for column in range(1, len(tokens))], minor=True)
    left.set_yticks([row - 0.5 for row in range(1, len(names))], minor=True)
    left.grid(which="minor", color="#eeeeee", linewidth=0.6)
    left.tick_params(which="both", length=0)
    left.spines[:].set_visible(False)
    left.set_title("what fires where (each feature relative to its peak here)", fontsize=10, loc="left")

    runs = ("clean", "spliced", "mean-\nablated", "zero-\nablated")
    values = (evaluation.ce_clean, evaluation.ce_spliced, evaluation.ce_mean, evaluation.ce_zero)
    bars = right.bar(runs, values, color=list(COLOURS.values()))
    right.bar_label(bars, fmt="%.2f", fontsize=9)
    right.tick_params(axis="x", labelsize=9)
    right.set_ylabel("cross-entropy, nats per token")
    right.set_title(
        f"what splicing costs: recovered {evaluation.recovered_zero:.1%}, FVU {evaluation.fvu:.3f}",
        fontsize=10,
        loc="right",
    )
    right.spines[["top", "right"]].set_visible(False)
    return figure


def training(figures: "Sequence[Figures]") -> "Figure":
    """Draw a run of training from the figures of a `hfsae.train.History`, against the tokens trained on.

    Left, each weighted loss ("fvu" is the reconstruction's); then L0 and the share of dead features; and, where the run
    was evaluated, cross-entropy clean and spliced.
    """
    from matplotlib.figure import Figure

    tokens = [entry.tokens for entry in figures]
    probed = [entry for entry in figures if "ce_spliced" in entry.extra]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    losses, sparsity, *splice = figure.subplots(1, 3 if probed else 2)
    for name in sorted({name for entry in figures for name in entry.losses}):
        losses.semilogy(tokens, [entry.losses.get(name, float("nan")) for entry in figures], label=name)
    losses.legend(frameon=False, fontsize=8)
    losses.set_title("losses", fontsize=10, loc="left")
    sparsity.plot(tokens, [entry.l0 for entry in figures], color="#0072b2")
    sparsity.set_title("features per token (L0); dotted: share dead", fontsize=10, loc="left")
    dead = sparsity.twinx()
    dead.plot(tokens, [entry.dead for entry in figures], ":", color="#d55e00")
    dead.set_ylim(bottom=0)
    for axes in splice:
        for name, colour in (("ce_clean", "#0072b2"), ("ce_spliced", "#e69f00")):
            axes.plot([e.tokens for e in probed], [e.extra[name] for e in probed], "o-", color=colour, label=name)
        axes.legend(frameon=False, fontsize=8)
        axes.set_title("cross-entropy on held-out text, nats per token", fontsize=10, loc="left")
    for axes in (losses, sparsity, *splice):
        axes.set_xlabel("tokens")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def comparison(evaluations: "Sequence[Evaluation]") -> "Figure":
    """Draw several dictionaries of one model beside each other.

    Left, the losses at each of their places, in the order of the model; right, how much error is left at how many
    features per token, with a line through those that no other beats in both (the Pareto front).

    Raises: InvalidValue: when there are fewer than two.
    """
    from matplotlib.figure import Figure

    if len(evaluations) < 2:
        raise InvalidValue(f"{len(evaluations)} evaluation cannot be compared. Give two or more.")
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_places(left, [e for e in evaluations if e.loss is not None])
    _draw_front(right, evaluations)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_places(axes: "Axes", evaluations: "Sequence[Evaluation]") -> None:
    """A line for each run of the model; their markers tell them apart without colour."""
    evaluations = sorted(evaluations, key=lambda e: _in_order(e.site))
    places = [e.site for e in evaluations]
    for (name, colour), marker in zip(COLOURS.items(), "os^v", strict=True):
        losses = [getattr(e, f"ce_{name}") for e in evaluations]
        axes.plot(range(len(places)), losses, color=colour, marker=marker, label=name)
    axes.set_xticks(range(len(places)), places, rotation=30, ha="right", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("loss, nats per prediction")
    axes.legend(frameon=False, fontsize=9)


def _draw_front(axes: "Axes", evaluations: "Sequence[Evaluation]") -> None:
    for e in evaluations:
        axes.plot(e.l0, e.fvu, "o", color=COLOURS["clean"])
        axes.annotate(f"{e.site}, {len(e.density):,}", (e.l0, e.fvu), (4, 4), textcoords="offset points", fontsize=8)
    ordered = sorted((e.l0, e.fvu) for e in evaluations)
    front = [point for i, point in enumerate(ordered) if all(fvu > point[1] for _, fvu in ordered[:i])]
    axes.plot(*zip(*front, strict=True), "--", color=COLOURS["spliced"], zorder=0, label="Pareto front")
    axes.set_xlim(0, 1.3 * ordered[-1][0] + 1)
    axes.set_xlabel("features per token (L0)")
    axes.set_ylabel("fraction of variance unexplained (FVU)")
    axes.legend(frameon=False, fontsize=9)


def _in_order(site: str) -> tuple[int, str]:
    """Sorts the places of a model by layer before anything else."""
    numbers = [int(number) for number in re.findall(r"\d+", site)]
    return (numbers[0] if numbers else -1, site)


def _strongest(tokens: "Sequence[TokenFeatures]", rows: int) -> tuple[list[str], list[list[float]]]:
    """Labelled features, then the largest sums, none that fires nearly everywhere: names, and shares of the peak."""
    values: dict[int, list[float]] = {}
    labels: dict[int, str] = {}
    for column, entry in enumerate(tokens):
        for feature, value, label in entry.features:
            values.setdefault(feature, [0.0] * len(tokens))[column] = value
            labels[feature] = label
    told = [feature for feature, row in values.items() if 2 * sum(value > 0 for value in row) <= len(tokens) + 1]
    chosen = sorted(told, key=lambda feature: (not labels[feature], -sum(values[feature])))[:rows]
    chosen.sort(key=lambda feature: (values[feature].index(max(values[feature])), feature))
    names = [f"{shorten(labels[feature], 38, placeholder='…')}  {feature}".strip() for feature in chosen]
    return names, [[value / max(values[feature]) for value in values[feature]] for feature in chosen]
