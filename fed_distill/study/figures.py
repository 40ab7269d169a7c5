"""The figures of a study with matplotlib: each as SVG and PNG files, and as SVG that follows the report's theme.

Series differ by colour and by marker and carry their names, so that no figure needs its colours to be told apart; more
series than there are markers have numbers.
The axis of ε is logarithmic; what has no privacy stands beyond its right end, at ∞.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fed_distill.results.files import write_atomic
from fed_distill.study.curves import Curve, Level, Offer, Reading

COLORS = ("#1f5fbf", "#b8520a", "#0c7866", "#9c2f78", "#6d6200", "#5b45ad")
"""Of the series, as in the light theme of the report, whose CSS variables ``--c0`` to ``--c5`` they become."""
INK, SOFT, LINE, NEUTRAL, PAPER = "#1d2127", "#5b636e", "#e4e1db", "#747d89", "#ffffff"
THEME = {
    **{color: f"var(--c{number})" for number, color in enumerate(COLORS)},
    INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", NEUTRAL: "var(--neutral)", PAPER: "var(--card)",
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
WIDTH, HEIGHT, DPI = 9.6, 4.6, 160
LEGEND_COLUMNS, LEGEND_LINE = 3, 0.21
NUMBERED = 150
"""Area of a mark at least that has a number in it."""
LABEL_GAP = 0.058
"""Least distance of two labels at the right edge, in heights of the axes."""
FAR = 1.0
"""Values are cut off that lie more than so many times as far below the lowest level as the best one lies above it."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Budget:
    """The horizontal place of each ε: its binary logarithm, and a place beyond the right end for no privacy."""

    lowest: float
    highest: float
    endless: bool

    @classmethod
    def of(cls, epsilons: Sequence[float]) -> "Budget":
        """For these ε, of which at least one is finite."""
        finite = [math.log2(epsilon) for epsilon in epsilons if math.isfinite(epsilon)]
        return cls(min(finite), max(finite), any(math.isinf(epsilon) for epsilon in epsilons))

    @property
    def length(self) -> float:
        """Of the finite part of the axis; of one ε alone it is a doubling."""
        return max(1.0, self.highest - self.lowest)

    def place(self, epsilon: float, aside: float = 0.0) -> float:
        """Place of one ε; series have no privacy side by side, ``aside`` places from the middle."""
        beyond = self.highest + 0.28 * self.length
        return beyond + 0.018 * self.length * aside if math.isinf(epsilon) else math.log2(epsilon)

    def apply(self, axes: Axes) -> None:
        """Give ``axes`` this scale, its ticks and its name."""
        margin, beyond = 0.07 * self.length, self.place(math.inf)
        axes.set_xlim(self.lowest - margin, beyond + 0.11 * self.length if self.endless else self.highest + margin)
        step = max(1, math.ceil((self.highest - self.lowest) / 8))
        ticks = [float(place) for place in range(math.floor(self.lowest), math.ceil(self.highest) + 1, step)]
        ticks = [tick for tick in ticks if self.lowest - margin <= tick <= self.highest + margin]
        names = [f"{2.0**tick:g}" for tick in ticks]
        if self.endless:
            axes.axvline((self.highest + beyond) / 2, color=LINE, linewidth=1.2, linestyle=(0, (1, 3)))
            ticks, names = [*ticks, beyond], [*names, "∞: no privacy"]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(names)
        axes.set_xlabel("ε, logarithmic: smaller promises more privacy", color=SOFT)


@matplotlib.rc_context(STYLE)
def curve_figure(curves: Sequence[Curve], levels: Sequence[Level], y_axis: str) -> Figure:
    """Curves over ε with bands for their 95 % intervals; ``levels`` as dashed lines. One ε at least is finite."""
    figure, axes = empty_figure(y_axis)
    budget = Budget.of([reading.epsilon for curve in curves for reading in curve.readings])
    budget.apply(axes)
    labels = draw_levels(axes, levels)
    for place, curve in enumerate(curves):
        look = _Look(curve.number, place, len(curves))
        finite = [reading for reading in curve.readings if math.isfinite(reading.epsilon)]
        endless = [reading for reading in curve.readings if math.isinf(reading.epsilon)]
        _draw_finite(axes, budget, finite, look)
        if endless:
            _draw_endless(axes, budget, [*finite[-1:], endless[0]], look)
        labels.append((curve.readings[-1].value, curve.series, look.color))
    places = [(budget.place(one.epsilon), one.value, curve.number) for curve in curves for one in curve.readings]
    _tell_cut(axes, _cut_low(axes, levels, [value for _, value, _ in places]), places)
    label_right(axes, labels)
    return figure


@matplotlib.rc_context(STYLE)
def bytes_figure(offers: Sequence[Offer], levels: Sequence[Level], y_axis: str) -> Figure:
    """Quality against what one merchant sends; a larger mark is a larger ε."""
    names = _names(offers)
    numbered = _are_numbered(names)
    figure, axes = empty_figure(y_axis, legend=names)
    spread = _spread_bytes(axes, [offer.megabytes for offer in offers], 0.032 if numbered else 0.02)
    sending: dict[float, set[int]] = {}
    for offer in offers:
        sending.setdefault(offer.megabytes, set()).add(offer.number)

    def aside(number: int, megabytes: float) -> float:
        """Places from where it belongs: only of series that send the very same."""
        same = sorted(sending[megabytes])
        return same.index(number) - (len(same) - 1) / 2

    axes.set_xlabel("MB that a merchant sends in the run", color=SOFT)
    ranks = {epsilon: rank for rank, epsilon in enumerate(sorted({o.epsilon for o in offers if o.epsilon is not None}))}
    labels = draw_levels(axes, levels)
    for place, number in enumerate(names):
        look = _Look(number, place, len(names), numbered)
        own = [offer for offer in offers if offer.number == number]
        places = [spread(offer.megabytes, aside(number, offer.megabytes)) for offer in own]
        if len(set(places)) == 1:
            axes.plot(places, [offer.value for offer in own], color=look.color, linewidth=1.0, zorder=2)
        for offer, x in zip(own, places, strict=True):
            rank = 0 if offer.epsilon is None else ranks[offer.epsilon]
            _draw_mark(axes, x, offer.value, 64 + 90 * rank / max(1, len(ranks) - 1), look)
    axes.margins(0.1)
    _cut_low(axes, levels, [offer.value for offer in offers])
    label_right(axes, labels)
    return figure


@matplotlib.rc_context(STYLE)
def pareto_figure(offers: Sequence[Offer], levels: Sequence[Level], y_axis: str) -> Figure:
    """Quality against ε for the offers whose ε is known; a larger mark is more bytes, a hollow one is beaten."""
    known = [(offer, offer.epsilon) for offer in offers if offer.epsilon is not None]
    names = _names([offer for offer, _ in known])
    figure, axes = empty_figure(y_axis, legend=names)
    budget = Budget.of([epsilon for _, epsilon in known])
    budget.apply(axes)
    most = max(offer.megabytes for offer, _ in known) or 1.0
    for place, number in enumerate(names):
        look = _Look(number, place, len(names), _are_numbered(names))
        for offer, epsilon in known:
            if offer.number == number:
                area = 40 + 140 * offer.megabytes / most
                _draw_mark(axes, budget.place(epsilon, look.aside), offer.value, area, look, filled=offer.best)
    front = sorted((epsilon, offer.value) for offer, epsilon in known if offer.best)
    heights = [max(value for other, value in front if other <= epsilon) for epsilon, _ in front]
    places = [budget.place(epsilon) for epsilon, _ in front]
    axes.step(places, heights, where="post", color=NEUTRAL, linewidth=1.0, zorder=1)
    axes.margins(y=0.12)
    labels = draw_levels(axes, levels)
    cut = _cut_low(axes, levels, [offer.value for offer, _ in known])
    _tell_cut(axes, cut, [(budget.place(epsilon), offer.value, offer.number) for offer, epsilon in known])
    label_right(axes, labels)
    return figure


def write_figure(figure: Figure, folder: Path, name: str, title: str) -> Markup:
    """Write ``name.svg`` and ``name.png`` into ``folder``; returns the SVG for the report, named ``title`` for those
    who do not see it."""
    folder.mkdir(parents=True, exist_ok=True)
    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    write_atomic(folder / f"{name}.svg", svg.getvalue())
    write_atomic(folder / f"{name}.png", png.getvalue())
    return _themed(svg.getvalue(), name, title)


@dataclass(frozen=True)
class _Look:
    """How the series number ``number`` is drawn, which has ``place`` among ``count``."""

    number: int
    place: int = 0
    count: int = 1
    numbered: bool = False

    @property
    def color(self) -> str:
        return COLORS[self.number % len(COLORS)]

    @property
    def marker(self) -> str:
        return "o" if self.numbered else MARKERS[self.number % len(MARKERS)]

    @property
    def aside(self) -> float:
        """Places from the middle, where series with equal values lie side by side."""
        return self.place - (self.count - 1) / 2


def empty_figure(y_axis: str, legend: Mapping[int, str] | None = None) -> tuple[Figure, Axes]:
    """A figure with room for names at the right, and beneath for the ``legend`` of series (number -> name), if any."""
    numbered = _are_numbered(legend or {})
    below = LEGEND_LINE * math.ceil(len(legend or ()) / LEGEND_COLUMNS) + (0.2 if legend else 0.0)
    height = HEIGHT + below
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, (0.6 + below) / height, 0.72, 3.6 / height), facecolor=PAPER)
    axes.set_title(y_axis, loc="left", color=SOFT, fontsize=10)
    axes.grid(axis="y", color=LINE, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(which="both", colors=SOFT, length=0)
    for number, name in (legend or {}).items():
        look = _Look(number, numbered=numbered)
        label = f"{number + 1}  {name}" if numbered else name  # as in ``_draw_mark``
        axes.plot([], [], marker=look.marker, color=look.color, linestyle="none", markersize=7, label=label)
    if legend:
        figure.legend(
            loc="lower left", bbox_to_anchor=(0.06, 0.0), ncols=LEGEND_COLUMNS, frameon=False, labelcolor=INK,
            handletextpad=0.2, columnspacing=1.6,
        )  # fmt: skip
    return figure, axes


def _names(offers: Sequence[Offer]) -> dict[int, str]:
    return dict(sorted({offer.number: offer.series for offer in offers}.items()))


def _are_numbered(names: Mapping[int, str]) -> bool:
    """Whether there are more series than markers, so that their marks carry numbers."""
    return len(names) > len(MARKERS)


def draw_levels(axes: Axes, levels: Sequence[Level]) -> list[tuple[float, str, str]]:
    """Draw dashed lines and return their labels (height, name, colour)."""
    for level in levels:
        axes.axhline(level.value, color=NEUTRAL, linewidth=1.2, linestyle=(0, (2, 3)), zorder=1)
    return [(level.value, level.name, NEUTRAL) for level in levels]


def _draw_finite(axes: Axes, budget: Budget, readings: Sequence[Reading], look: _Look) -> None:
    """Readings joined by a line with a band; one alone gets a whisker instead."""
    if len(readings) == 1:
        _draw_whisker(axes, budget, readings[0], look)
    elif readings:
        x = [budget.place(reading.epsilon) for reading in readings]
        low, high = ([reading.value + sign * (reading.half_width or 0.0) for reading in readings] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)
        axes.plot(
            x, [reading.value for reading in readings], color=look.color, marker=look.marker, markersize=6.5,
            markeredgecolor=PAPER, linewidth=1.9,
        )  # fmt: skip


def _draw_endless(axes: Axes, budget: Budget, ends: Sequence[Reading], look: _Look) -> None:
    """The reading without privacy, which is the last of ``ends``, and a thin line from the one before, if any."""
    x = [budget.place(end.epsilon, look.aside) for end in ends]
    axes.plot(x, [end.value for end in ends], color=look.color, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    _draw_whisker(axes, budget, ends[-1], look)


def _draw_whisker(axes: Axes, budget: Budget, reading: Reading, look: _Look) -> None:
    x, half = budget.place(reading.epsilon, look.aside), reading.half_width or 0.0
    ends = [reading.value - half, reading.value + half]
    axes.plot([x, x], ends, color=look.color, linewidth=1.4, alpha=0.7)
    axes.plot(
        [x], [reading.value], color=look.color, marker=look.marker, markersize=6.5, markeredgecolor=PAPER,
    )  # fmt: skip


def _spread_bytes(axes: Axes, amounts: Sequence[float], width: float) -> Callable[[float, float], float]:
    """Make the axis of bytes logarithmic where amounts differ much; returns (amount, places aside) -> its place. width:
    of a place, as a share of the axis."""
    low, high = min(amounts), max(amounts)
    if not low or high <= 20 * low:
        return lambda amount, aside: amount + width * (high - low) * aside
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    return lambda amount, aside: float(amount * (high / low) ** (width * aside))


def _draw_mark(axes: Axes, x: float, y: float, area: float, look: _Look, filled: bool = True) -> None:
    if look.numbered:
        area, written = max(area, NUMBERED), PAPER if filled else look.color
        axes.text(x, y, str(look.number + 1), color=written, fontsize=7.5, ha="center", va="center_baseline", zorder=4)
    axes.plot(
        [x], [y], marker=look.marker, markersize=math.sqrt(area), markeredgewidth=1.3, zorder=3,
        markerfacecolor=look.color if filled else "none", markeredgecolor=PAPER if filled else look.color,
    )  # fmt: skip


def _cut_low(axes: Axes, levels: Sequence[Level], values: Sequence[float]) -> float:
    """Cut off values far below the levels, lest they flatten the rest; returns the height under which nothing is seen.

    Levels are needed to say what is far: with fewer than two nothing is cut.
    """
    lowest = min((level.value for level in levels), default=0.0)
    highest = max(*values, *(level.value for level in levels), lowest)
    bottom = lowest - FAR * (highest - lowest)
    if len(levels) < 2 or min(values) >= bottom:
        return -math.inf
    axes.set_ylim(bottom, highest + 0.06 * (highest - bottom))
    return bottom


def _tell_cut(axes: Axes, bottom: float, places: Sequence[tuple[float, float, int]]) -> None:
    """Write values under ``bottom`` as numbers at their places (horizontal place, value, number of the series)."""
    stacked: dict[float, int] = {}
    for x, value, number in places:
        if value < bottom:
            level = stacked[round(x, 1)] = stacked.get(round(x, 1), -1) + 1
            axes.annotate(
                f"↓ {value:.3f}", (x, bottom), xytext=(0, 5 + 12 * level), textcoords="offset points", ha="center",
                color=_Look(number).color, fontsize=8.5,
            )  # fmt: skip


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names (height, text, colour) at the right edge, moved apart so that none covers another, with a thin lead."""
    bottom, top = axes.get_ylim()
    wanted = sorted((max(0.0, (value - bottom) / (top - bottom)), text, color) for value, text, color in labels)
    heights: list[float] = []
    for height, _, _ in wanted:
        heights.append(max(height, heights[-1] + LABEL_GAP) if heights else height)
    for index in reversed(range(len(heights))):
        limit = 1.0 if index == len(heights) - 1 else heights[index + 1] - LABEL_GAP
        heights[index] = min(heights[index], limit)
    for height, (at, text, color) in zip(heights, wanted, strict=True):
        axes.annotate(
            text, (1.0, at), xycoords="axes fraction", xytext=(1.03, height), textcoords="axes fraction", color=color,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0},
        )  # fmt: skip


def _themed(svg: str, name: str, title: str) -> Markup:
    """The SVG element alone: colours as the report's CSS variables, ids its own, text in the page's font."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    for color, variable in THEME.items():
        element = element.replace(color, variable)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'(href="#|url\(#)', rf"\1{name}-", element).replace("xlink:href", "href")
    element = element.replace("'DejaVu Sans'", "inherit").replace("font: 9.5px inherit", "font-size: 9.5px")
    element = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg role="img" viewBox="\1" aria-label="{escape(title)}">',
        element,
        count=1,
    )
    return Markup(element)
