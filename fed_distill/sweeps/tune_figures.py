"""The figures of a tuning: best score by trial, importance of each search, and scores over its range.

They have the style of a study's figures; states of trials differ by shape as well as by colour.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from fed_distill.reporting import charts
from fed_distill.sweeps.dimensions import AnyDimension, Range
from fed_distill.sweeps.space import Tuning
from fed_distill.sweeps.trials import Tried

DONE, STOPPED, BEST = charts.COLORS[0], charts.NEUTRAL, charts.COLORS[1]
PER_ROW = 3
"""Number of panels per row."""


@charts.styled
def history_figure(tried: Sequence[Tried], base: float, metric: str) -> Figure:
    """Draw the score of each trial (pruned ones: the last score), the best so far as a line, and the base dashed."""
    figure, axes = charts.empty_figure(f"{metric} on the validation set")
    axes.set_xlabel("trial", color=charts.SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    labels = charts.draw_levels(axes, {"the base": base})
    _draw_trials(axes, [(float(one.number), one) for one in tried])
    complete = [(one.number, one.score) for one in tried if one.state == "complete" and one.score is not None]
    if complete:
        numbers = [number for number, _ in complete]
        best = [max(score for _, score in complete[: place + 1]) for place in range(len(complete))]
        axes.step(numbers, best, where="post", color=BEST, linewidth=1.4, zorder=2)
        labels.append((best[-1], "the best so far", BEST))
    axes.margins(0.05, 0.12)
    charts.label_right(axes, labels)
    return figure


@charts.styled
def importance_figure(shares: Mapping[str, float], metric: str) -> Figure:
    """Draw a bar for each search, the most important at the top: its share of the variance of the scores."""
    figure, axes = charts.rows_figure(1.0 + 0.36 * len(shares))
    names, values = list(shares)[::-1], list(shares.values())[::-1]
    axes.barh(names, values, height=0.62, color=DONE)
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:.0%}", (value, place), xytext=(5, 0), textcoords="offset points", va="center", color=charts.INK
        )
    axes.set_title(
        f"share of the variance of {metric} that a setting explains", loc="left", color=charts.SOFT, fontsize=10
    )
    axes.set_xlim(0.0, 1.12 * max(values))
    axes.xaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=charts.INK)
    return figure


@charts.styled
def settings_figure(tuning: Tuning, tried: Sequence[Tried], base: float, metric: str) -> Figure:
    """Draw a panel for each search: the score of each trial over its value."""
    rows, columns = math.ceil(len(tuning.search) / PER_ROW), min(PER_ROW, len(tuning.search))
    figure = charts.new_figure(0.5 + 2.4 * rows, layout="constrained")
    heading = [tuning.title] if tuning.title else []
    figure.suptitle(
        "\n".join([*heading, f"{metric} on the validation set"]), x=0.01, ha="left", color=charts.SOFT, fontsize=10
    )
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, dimension in zip(panels, tuning.search, strict=False):
        charts.clean(axes, grid="y").axhline(
            base, color=charts.NEUTRAL, linewidth=1.2, linestyle=charts.DOTTED, zorder=1
        )
        places = _scale(axes, dimension)
        _draw_trials(axes, [(places(one.parameters[dimension.name]), one) for one in tried if one.parameters])
        axes.set_xlabel(dimension.name, color=charts.INK)
    for axes in panels[len(tuning.search) :]:
        axes.set_visible(False)
    return figure


def _scale(axes: Axes, dimension: AnyDimension) -> Callable[[Any], float]:
    """Set the scale of ``axes`` for a search; return the position of a value."""
    if not isinstance(dimension, Range):
        labels = [choice.label for choice in dimension.choices]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return lambda value: float(labels.index(value))
    if dimension.log:
        axes.set_xscale("log")
        axes.set_xlim(dimension.low / 1.3, 1.3 * dimension.high)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=dimension.whole))
    return float


def _draw_trials(axes: Axes, places: Sequence[tuple[float, Tried]]) -> None:
    """Draw dots for complete trials and hollow ones for pruned trials with a score; others have no position."""
    for x, one in places:
        if one.score is not None:
            done = one.state == "complete"
            (mark,) = axes.plot(
                [x], [one.score], marker="o", markersize=6.5, zorder=3, linestyle="none",
                markerfacecolor=DONE if done else "none", markeredgecolor=charts.PAPER if done else STOPPED,
            )  # fmt: skip
            charts.tipped(mark, f"trial {one.number}: {one.score:.4f}{'' if done else ', stopped'}")
