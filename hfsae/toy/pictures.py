"""Pictures of superposition, in colours that colour-blind readers can tell apart, labelled where things lie."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hfsae.toy.closed_form import interference, phase_boundary
from hfsae.toy.geometry import dimensionality, shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hfsae.toy.basis import Privilege
    from hfsae.toy.comparison import Interval, Standing
    from hfsae.toy.phases import Holding, PhaseGrid
    from hfsae.toy.sweep import RecoverySweep

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8c8c8c", "#222222"
"""Okabe and Ito's colours, a grey, and the colour of words."""
_SMALL, _TEXT, _TITLE = 11, 12, 13
_SHARES = {"3/4 tetrahedron": 3 / 4, "2/3 triangle": 2 / 3, "1/2 pair": 1 / 2, "2/5 pentagon": 2 / 5}
_STYLES = {"trained": BLUE, "MLP neurons": ORANGE, "neuron basis": GREY, "random directions": GREY}


def geometry(shapes: Mapping[str, Float[Tensor, "n d"]]) -> "Figure":
    """Draw the weights of trained toys as spokes, with the share of a dimension that each feature has.

    Args: shapes: Name of one of `hfsae.toy.geometry.SHAPES` to weights, in 1, 2 or 3 dimensions.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * len(shapes), 3.2), layout="constrained")
    for column, (name, W) in enumerate(shapes.items(), start=1):
        n, d = W.shape
        axes = figure.add_subplot(1, len(shapes), column, projection="3d" if d == 3 else None)
        _draw_solid(axes, W) if d == 3 else _draw_flat(axes, W)
        axes.set_axis_off()
        axes.set_title(f"{name}\n{n} features in {d}D", fontsize=_TITLE, color=INK)
        got, exact = float(dimensionality(W).mean()), float(dimensionality(shape(name)).mean())
        caption = f"share {got:.3f}\nexact {exact:.3f}"
        axes.annotate(caption, (0.5, -0.16), xycoords="axes fraction", ha="center", fontsize=_TEXT, color=INK)
    return figure


def _draw_flat(axes: "Axes", W: Tensor) -> None:
    x, y = (torch.nn.functional.pad(W, (0, 2 - W.shape[1])) / W.norm(dim=1).max()).T.tolist()
    if W.shape[1] == 1:
        axes.plot([-1.1, 1.1], [0, 0], color=GREY, linewidth=1)
    else:
        turn = torch.linspace(0, 2 * torch.pi, 100)
        axes.plot(turn.cos().tolist(), turn.sin().tolist(), color="#dddddd", linewidth=1)
    for end in zip(x, y, strict=True):
        axes.plot(*([0, value] for value in end), color=BLUE, linewidth=2.5)
    axes.scatter(x, y, s=70, color=BLUE, zorder=3)
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")


def _draw_solid(axes: Any, W: Tensor) -> None:
    unit = W / W.norm(dim=1).max()
    near = torch.cdist(unit, unit).fill_diagonal_(torch.inf)
    for i, j in ((near < 1.15 * near.amin(dim=1, keepdim=True)) & (near > 0)).nonzero().tolist():
        axes.plot(*unit[[i, j]].T.tolist(), color="#cccccc", linewidth=1)
    for end in unit.tolist():
        axes.plot(*([0, value] for value in end), color=BLUE, linewidth=2.5)
    axes.scatter(*unit.T.tolist(), s=70, color=BLUE, depthshade=False)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    axes.set_box_aspect((1, 1, 1))


def holding(result: "Holding", d: int) -> "Figure":
    """Draw how many features toys hold, and the share of a dimension of each, as inputs get sparser.

    Args: d: Dimensions of the toys.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sparsity = (1 / result.densities).tolist()
    left.plot(sparsity, result.count.tolist(), color=BLUE, marker="o", linewidth=2)
    left.axhline(d, color=GREY, linewidth=1)
    left.text(sparsity[-1], d + 0.6, f"{d} dimensions", color=GREY, fontsize=_TEXT, ha="right", va="bottom")
    n = result.dimensionality.shape[1]
    left.set_ylim(0, 1.08 * n)
    _finish(left, f"of {n} features, how many are held", "sparsity: a feature is active in one of … inputs")
    for name, share in _SHARES.items():
        right.axhline(share, color="#d0d0d0", linewidth=1)
        right.text(1.18 * sparsity[-1], share, name, color=INK, fontsize=_SMALL, va="center")
    shares = result.dimensionality
    for column, x in enumerate(sparsity):
        right.scatter([x] * n, shares[column].tolist(), s=16, color=BLUE, alpha=0.35, linewidth=0)
    right.set_ylim(0, 1.05)
    _finish(right, "share of a dimension that each feature has", "sparsity: a feature is active in one of … inputs")
    left.set_yticks(range(0, n + 1, d))
    for axes in (left, right):
        _plain_log(axes, [1.0, 3.0, 10.0, 30.0, 100.0])
    return figure


def phases(grid: "PhaseGrid") -> "Figure":
    """Draw where trained toys hold a second feature in one dimension, beside the closed form."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for held, colour, marker in ((True, BLUE, "o"), (False, ORANGE, "s")):
        row, column = (grid.trained == held).nonzero(as_tuple=True)
        axes.scatter(grid.densities[column], grid.importances[row], s=70, color=colour, marker=marker, linewidth=0)
    importance = torch.linspace(0.02, 1.05, 100)
    boundary = [phase_boundary(float(i)) for i in importance]
    axes.plot(boundary, importance.tolist(), color=INK, linewidth=2.5)
    _plain_log(axes, [0.03, 0.1, 0.3, 1.0])
    low, high = float(grid.densities.min()), float(grid.densities.max())
    axes.set(xlim=(0.85 * low, 1.2 * high), ylim=(0, 1.3))
    axes.text(low, 1.12, "both, back to back", color=BLUE, fontsize=_TITLE, weight="bold")
    axes.text(high, 1.12, "first feature only", color="#a06c00", fontsize=_TITLE, weight="bold", ha="right")
    axes.text(boundary[-1] * 0.97, 1.2, "4I / (2 + 5I)", color=INK, fontsize=_TEXT, ha="center")
    _finish(axes, "two features, one dimension: marks trained, line exact for b = 0", "density of inputs")
    axes.set_ylabel("importance I of the second feature", fontsize=_TEXT)
    return figure


def crosstalk(both: Mapping[str, Sequence[float]], measured: Mapping[int, Sequence[tuple[int, float]]]) -> "Figure":
    """Draw what features do to each other when they are active together.

    Args:
        both: Name of an input of the antipodal pair to its reconstruction, two numbers each.
        measured: d to pairs of how many features are active and the standard deviation of what they add to a reading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for column, (name, values) in enumerate(both.items()):
        for feature, (value, colour) in enumerate(zip(values, (BLUE, ORANGE), strict=True)):
            place = column + 0.34 * (feature - 0.5)
            left.bar(place, value, width=0.3, color=colour)
            left.text(place, value + 0.02, f"{value:.0f}", ha="center", fontsize=_TEXT, color=INK)
        left.text(column, -0.09, name, ha="center", va="top", fontsize=_TEXT, color=INK)
    left.set(ylim=(0, 1.2), xticks=[], yticks=[])
    _finish(left, "antipodal pair: what comes back", "")
    left.spines["left"].set_visible(False)
    for (d, points), colour in zip(measured.items(), (BLUE, GREEN, RED), strict=False):
        active = [k for k, _ in points]
        right.plot(active, [interference(d, k) for k in active], color=colour, linewidth=2)
        right.scatter(active, [spread for _, spread in points], s=45, color=colour)
        right.text(active[-1] * 1.03, points[-1][1], f"d = {d}", color=colour, fontsize=_TEXT, va="center")
    _finish(right, "random features: lines √(k / d), dots measured", "k features active together")
    right.set_ylabel("standard deviation of a reading", fontsize=_TEXT)
    right.set_xticks(active)
    right.set_ylim(bottom=0)
    return figure


def recovery(sweep: "RecoverySweep") -> "Figure":
    """Draw what training recovers as more features are active, for each coherence, beside the worst-case bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = ((sweep.rec90, "true directions found, share"), (sweep.f1, "firing matched to the truth, F1"))
    for axes, (scores, title) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.axvspan(0.8, float(sweep.bound.max()), color="#eeeeee", linewidth=0)
        axes.text(0.83, 1.04, "theory is sure", fontsize=_SMALL, color=INK)
        for row, (coherence, colour) in enumerate(zip(sweep.coherences, (BLUE, GREEN, RED), strict=False)):
            axes.plot(sweep.l0s, scores[row].tolist(), color=colour, marker="o", linewidth=2.5)
            place = (0.99, 0.9 - 0.08 * row)
            axes.text(
                *place,
                f"coherence {coherence:g}",
                transform=axes.transAxes,
                color=colour,
                fontsize=_TITLE,
                weight="bold",
                ha="right",
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sweep.l0s, [f"{l0:g}" for l0 in sweep.l0s])
        axes.set(xlim=(0.8, sweep.l0s[-1] * 1.15), ylim=(0, 1.12))
        _finish(axes, title, "features active in a sample, mean")
    return figure


def meanings(standings: Sequence["Standing"], title: str = "") -> "Figure":
    """Draw how well single elements of each dictionary stand for one thing, with 95 % intervals over seeds.

    Args: title: What the elements are scored on.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.62 * len(standings) + 1.7), layout="constrained")
    order = sorted(standings, key=lambda standing: standing.purity.mean)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_intervals(left, order, [standing.purity for standing in order])
    _draw_intervals(right, order, [standing.f1 for standing in order])
    left.set_yticks(range(len(order)), [f"{s.name}\n{s.live:,.0f} live" for s in order], fontsize=_TEXT)
    _finish(left, "purity of the strongest firings", "share that carry the label picked on other text")
    _finish(right, "F1 of firing against a token mask", "mask picked on other text")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.suptitle(title, fontsize=_TITLE, color=INK)
    return figure


def _draw_intervals(axes: "Axes", standings: Sequence["Standing"], values: Sequence["Interval"]) -> None:
    for place, (standing, value) in enumerate(zip(standings, values, strict=True)):
        colour = next((colour for name, colour in _STYLES.items() if standing.name.startswith(name)), INK)
        axes.errorbar(
            value.mean, place, xerr=value.half_width, color=colour, marker="o", markersize=9, capsize=4, linewidth=2
        )
        axes.text(value.mean, place + 0.2, f"{value.mean:.3f}", ha="center", fontsize=_TEXT, color=INK)
    axes.set(xlim=(0, 1.25 * max(value.mean + value.half_width for value in values)), ylim=(-0.5, len(values) - 0.3))


def privileges(rows: Sequence["Privilege"]) -> "Figure":
    """Draw the mean kurtosis of the coordinates at some sites beside that of coordinates turned at random."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        axes.plot([row.turned, row.own], [place, place], color="#cccccc", linewidth=2, zorder=1)
        axes.scatter(row.turned, place, s=90, color=ORANGE, marker="s")
        axes.scatter(row.own, place, s=70, color=BLUE)
        axes.text(
            max(row.own, row.turned) * 1.08, place, f"{row.own:.2f} / {row.turned:.2f}", fontsize=_TEXT, va="center"
        )
    axes.axvline(3, color=GREY, linewidth=1, zorder=0)
    axes.text(3, len(rows) - 0.4, "Gaussian", fontsize=_SMALL, color=GREY, ha="center", va="bottom")
    last = rows[-1]
    axes.text(last.own, 0.25, "own axes", fontsize=_TEXT, color=BLUE, ha="center", weight="bold")
    axes.text(last.turned, 0.25, "turned at random", fontsize=_TEXT, color="#a06c00", ha="center", weight="bold")
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize=_TEXT)
    _plain_log(axes, [1.0, 3.0, 10.0, 30.0, 100.0])
    axes.set(xlim=(1, 3 * max(row.own for row in rows)), ylim=(-0.6, len(rows)))
    _finish(axes, "", "mean kurtosis of the coordinates")
    return figure


def _plain_log(axes: "Axes", ticks: Sequence[float]) -> None:
    """Make x logarithmic, with ticks written as they are said."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _finish(axes: "Axes", title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=_TITLE, color=INK, loc="left", pad=10)
    axes.set_xlabel(x_label, fontsize=_TEXT)
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
