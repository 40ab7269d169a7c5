"""The charts of a run's report as inline SVG: comparison, learning curves, merchants and traffic.

Imports are slow: import this module where a report is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fed_distill.evaluation.statistics import interval
from fed_distill.reporting import charts
from fed_distill.reporting.answers import bytes_of_a_merchant
from fed_distill.reporting.wording import ROW_NAMES

Record = Mapping[str, Any]
ROW = 0.32
"""Height of a row in inches."""
BINS, ROW_WIDTH, TALLEST = 84, 7.6, 8
"""Number of bins for stacked dots in a row of so many inches, and maximum height of a stack."""
DOT, APART = 0.068, 6
"""Diameter of a dot in inches, and distance of two rows of stacks in dots."""
RIGHT = 0.98
"""Right end of the rows of stacked dots, relative to the figure."""


@dataclass(frozen=True)
class Value:
    """A named value. half: half-width of its interval. series: its number; None for a neutral colour."""

    name: str
    value: float
    half: float | None = None
    series: int | None = None


@dataclass(frozen=True)
class LearningCurve:
    """Means over the seeds by round, each with the half-width of its interval, if any."""

    name: str
    points: Sequence[tuple[float, float, float | None]]
    series: int = 0


@dataclass(frozen=True)
class Spread:
    """One value per merchant."""

    name: str
    values: Mapping[str, float]
    series: int | None = None


def overview(scores: Sequence[tuple[str, float, float | None, int | None]], metric: str) -> Markup:
    """Draw the score of each model (fields of ``Value``); empty without scores."""
    if not scores:
        return Markup("")
    draw = partial(values_figure, [Value(*one) for one in scores], f"{metric} on the test set")
    return charts.responsive(draw, "overview", f"{metric} of the teacher and of every student")


def learning(summary: Record, records: Sequence[Record], metric: str, series: Mapping[str, int]) -> Markup:
    """Draw the headline metric on validation data by round, with intervals over the seeds, and the controls as levels.

    :param series: numbers of the run's federations; controls have the next number
    :returns: empty without rounds
    """
    name = summary["headline"]
    values: dict[str, dict[int, list[float]]] = {}
    seeds: dict[str, set[int]] = {}
    for record in records:
        value = record.get("valid", {}).get(name)
        if value is not None:
            values.setdefault(record["federation"], {}).setdefault(record["round"], []).append(value)
            seeds.setdefault(record["federation"], set()).add(record["seed"])
    levels = {
        ROW_NAMES.get(control, control): row["validation"][name]
        for control, row in summary["controls"].items()
        if control != "fedavg" and row["validation"] is not None and row["validation"][name] is not None
    }
    curves = [
        LearningCurve(
            federation if federation in series else ROW_NAMES.get(federation, federation),
            [
                (float(number), *interval(found))
                for number, found in sorted(by_round.items())
                if len(found) == len(seeds[federation])  # a mean over fewer would jump
            ],
            series.get(federation, len(series)),
        )
        for federation, by_round in values.items()
    ]
    if not curves:
        return Markup("")
    draw = partial(learning_figure, curves, levels, f"{metric} on validation")
    return charts.responsive(draw, "learning", f"{metric} on validation by round")


def merchants(summary: Record, series: Mapping[str, int]) -> Markup:
    """Draw accuracy by merchant for each student; empty if no accuracy is known."""
    stored = summary["by_merchant"]
    spreads = [Spread(ROW_NAMES.get(name, name), values) for name, values in stored["controls"].items() if values]
    spreads += [Spread(title, values, series[title]) for title, values in stored["federations"].items() if values]
    if not spreads:
        return Markup("")
    draw = partial(spread_figure, spreads, "accuracy on the merchant's own test set")
    return charts.responsive(draw, "merchants", "Accuracy by merchant under each student")


def traffic(summary: Record, rows: Sequence[tuple[str, str, Record]], metric: str, series: Mapping[str, int]) -> Markup:
    """Draw the headline metric against one merchant's total traffic. rows: displayed name, arm and values of each
    federated row."""
    name = summary["headline"]
    points = {
        title: (sum(bytes_of_a_merchant(summary, arm, row).values()) / 1e6, row[name], series.get(title, len(series)))
        for title, arm, row in rows
        if row[name] is not None
    }
    levels = {
        ROW_NAMES[control]: summary["controls"][control][name]
        for control in ("server", "pooled")
        if control in summary["controls"] and summary["controls"][control][name] is not None
    }
    if not points:
        return Markup("")
    draw = partial(traffic_figure, points, levels, f"{metric} on the test set")
    return charts.responsive(draw, "traffic", f"Bytes against {metric}")


@charts.styled
def values_figure(values: Sequence[Value], axis: str) -> Figure:
    """Draw a row for each value in descending order: a dot, an interval and the number."""
    ordered = sorted(values, key=lambda one: one.value)
    figure, axes = charts.rows_figure(0.75 + ROW * len(ordered))
    charts.clean(axes, grid="x")
    axes.set_yticks(range(len(ordered)), [charts.shortened(one.name) for one in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(axis, color=charts.SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    for place, (one, tick) in enumerate(zip(ordered, axes.get_yticklabels(), strict=True)):
        color, weight = _color(one.series), "bold" if one.series == 0 else "normal"
        tick.set(color=charts.INK, fontweight=weight)
        tip = f"{one.name}: {one.value:.4f}" + ("" if one.half is None else f" ± {one.half:.4f}")
        if one.half is not None:
            ends = [one.value - one.half, one.value + one.half]
            axes.plot(ends, [place, place], color=color, linewidth=1.6, solid_capstyle="round")
        (dot,) = axes.plot(
            [one.value], [place], marker="o", markersize=8, color=color, markeredgecolor=charts.PAPER, zorder=3
        )
        charts.tipped(dot, tip)
        axes.annotate(
            f"{one.value:.4f}", (1.0, place), xycoords=("axes fraction", "data"), xytext=(10, 0), va="center",
            textcoords="offset points", color=charts.INK, fontweight=weight, annotation_clip=False,
        )  # fmt: skip
    return figure


@charts.styled
def learning_figure(curves: Sequence[LearningCurve], levels: Mapping[str, float], y_axis: str) -> Figure:
    """Draw a line with a band for each curve, and levels as dashed lines."""
    figure, axes = charts.empty_figure(y_axis)
    axes.set_xlabel("round", color=charts.SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    labels = charts.draw_levels(axes, levels)
    for curve in curves:
        rounds, values, halves = zip(*curve.points, strict=True)
        look = charts.Look(curve.series)
        ends = [(value - (half or 0.0), value + (half or 0.0)) for value, half in zip(values, halves, strict=True)]
        charts.draw_line(axes, rounds, values, ends, look)
        for number, value in zip(rounds, values, strict=True):
            charts.draw_mark(
                axes, number, value, charts.MARK / 2, look, tip=f"{curve.name}, round {number:g}: {value:.4f}"
            )
        labels.append((values[-1], curve.name, look.color))
    axes.margins(0.02, 0.06)
    charts.label_right(axes, labels)
    return figure


@charts.styled
def traffic_figure(points: Mapping[str, tuple[float, float, int]], levels: Mapping[str, float], y_axis: str) -> Figure:
    """Draw a marker for each point (MB, value, number of the series), and levels as dashed lines."""
    figure, axes = charts.empty_figure(
        y_axis, legend={number: charts.shortened(name) for name, (_, _, number) in points.items()}
    )
    axes.set_xlabel("MB that a merchant sends and receives in the run", color=charts.SOFT)
    labels = charts.draw_levels(axes, levels)
    for name, (megabytes, value, number) in points.items():
        charts.draw_mark(
            axes, megabytes, value, 2 * charts.MARK, charts.Look(number), tip=f"{name}: {megabytes:.3g} MB, {value:.4f}"
        )
    axes.margins(0.06, 0.12)
    axes.set_xlim(left=0.0)
    charts.label_right(axes, labels)
    return figure


@charts.styled
def spread_figure(spreads: Sequence[Spread], axis: str) -> Figure:
    """Draw a row for each spread: a stacked dot per merchant, the mean as a bar, and the name of the lowest.

    With many merchants a dot represents several; the axis label gives their number.
    """
    left = charts.room([spread.name for spread in spreads])
    bins = round(BINS * charts.width() * (RIGHT - left) / ROW_WIDTH)
    edges = _edges([value for spread in spreads for value in spread.values.values()], bins)
    counts = [np.histogram(list(spread.values.values()), edges)[0] for spread in spreads]
    most = max(int(count.max()) for count in counts)
    each = -(-most // TALLEST)
    row = max(3, -(-most // each)) + APART
    inches = DOT * row * len(spreads)
    figure = charts.new_figure(inches + 0.6)
    axes = charts.clean(figure.add_axes((left, 0.5 / (inches + 0.6), RIGHT - left, inches / (inches + 0.6))), grid="x")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, row * len(spreads))
    axes.set_yticks([])
    axes.set_xlabel(axis if each == 1 else f"{axis} (a dot is {each} merchants)", color=charts.SOFT)
    for place, (spread, count) in enumerate(zip(spreads, counts, strict=True)):
        base, color = row * (len(spreads) - 1 - place) + 2.0, _color(spread.series)
        values = spread.values
        mean, lowest = sum(values.values()) / len(values), min(values, key=lambda name: (values[name], name))
        axes.plot([edges[0], edges[-1]], [base - 0.8] * 2, color=charts.LINE, linewidth=0.9)
        middles = (edges[:-1] + edges[1:]) / 2
        dots = [(x, base + level) for x, many in zip(middles, count, strict=True) for level in range(-(-many // each))]
        (drawn,) = axes.plot(
            *zip(*dots, strict=True), marker="o", linestyle="none", markersize=4.6, color=color,
            markeredgecolor=charts.PAPER, markeredgewidth=0.5,
        )  # fmt: skip
        charts.tipped(drawn, f"{spread.name}: {len(values):,} merchants, {lowest} has the lowest, {values[lowest]:.4f}")
        (bar,) = axes.plot([mean, mean], [base - 0.8, base + row - APART + 0.8], color=color, linewidth=1.6)
        charts.tipped(bar, f"{spread.name}: mean {mean:.4f}")
        height = base + 0.6 + -(-int(count[np.digitize(values[lowest], edges) - 1]) // each)
        axes.text(values[lowest], height, f" {charts.shortened(lowest)}", color=charts.SOFT, fontsize=8.5, va="center")
        for text, up, ink, size, weight in (
            (charts.shortened(spread.name), 2.6, charts.INK, 9.5, "bold" if spread.series == 0 else "normal"),
            (f"mean {mean:.3f}", 0.2, charts.SOFT, 8.5, "normal"),
        ):
            axes.annotate(
                text, (0.0, base + up), xycoords=("axes fraction", "data"), xytext=(-10, 0), ha="right", va="center",
                textcoords="offset points", color=ink, fontsize=size, fontweight=weight, annotation_clip=False,
            )  # fmt: skip
    return figure


def _edges(values: Sequence[float], bins: int) -> Any:
    """Return the edges of equal bins around the values, with a margin."""
    low, high = min(values), max(values)
    margin = 0.02 * (high - low) or 0.05 * abs(high) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1)


def _color(series: int | None) -> str:
    return charts.NEUTRAL if series is None else charts.Look(series).color
