"""What all figures are drawn with, in matplotlib: their look, marks, levels and names, and the files that they become,
SVG and PNG, and SVG that follows the report's theme.

Series differ by colour and by marker and carry their names, so that no figure needs its colours to be told apart; more
series than there are markers have numbers.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fed_distill.storage.files import write_atomic
from fed_distill.sweeps.curves import Level

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
NUMBERED_WIDTH = 12.5
"""Width in points of a mark that has a number in it."""
ROUNDS_APART = 500
"""Times at most that marks are pushed apart."""
ENOUGH = 1e-3
"""Of a pixel: who is nearer by less is not moved."""
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
class Look:
    """How the series number ``number`` is drawn, which has ``place`` among ``count``."""

    number: int
    place: int = 0
    count: int = 1
    numbered: bool = False

    @property
    def color(self) -> str:
        """Of marks and lines."""
        return COLORS[self.number % len(COLORS)]

    @property
    def marker(self) -> str:
        """Shape of marks."""
        return "o" if self.numbered else MARKERS[self.number % len(MARKERS)]

    @property
    def aside(self) -> float:
        """Places from the middle, where series with equal values lie side by side."""
        return self.place - (self.count - 1) / 2


def empty_figure(y_axis: str, legend: Mapping[int, str] | None = None) -> tuple[Figure, Axes]:
    """A figure with room for names at the right, and beneath for the ``legend`` of series (number -> name), if any."""
    numbered = are_numbered(legend or {})
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
        look = Look(number, numbered=numbered)
        label = f"{number + 1}  {name}" if numbered else name  # as in ``draw_mark``
        axes.plot([], [], marker=look.marker, color=look.color, linestyle="none", markersize=7, label=label)
    if legend:
        figure.legend(
            loc="lower left", bbox_to_anchor=(0.06, 0.0), ncols=LEGEND_COLUMNS, frameon=False, labelcolor=INK,
            handletextpad=0.2, columnspacing=1.6,
        )  # fmt: skip
    return figure, axes


def are_numbered(names: Mapping[int, str]) -> bool:
    """Whether there are more series than markers, so that their marks carry numbers."""
    return len(names) > len(MARKERS)


def draw_levels(axes: Axes, levels: Sequence[Level]) -> list[tuple[float, str, str]]:
    """Draw dashed lines and return their labels (height, name, colour)."""
    for level in levels:
        axes.axhline(level.value, color=NEUTRAL, linewidth=1.2, linestyle=(0, (2, 3)), zorder=1)
    return [(level.value, level.name, NEUTRAL) for level in levels]


def draw_mark(axes: Axes, x: float, y: float, area: float, look: Look, filled: bool = True) -> None:
    """A mark of that area in square points, with the series' number in it where they are numbered."""
    if look.numbered:
        area, written = max(area, NUMBERED_WIDTH**2), PAPER if filled else look.color
        axes.text(x, y, str(look.number + 1), color=written, fontsize=7.5, ha="center", va="center_baseline", zorder=4)
    axes.plot(
        [x], [y], marker=look.marker, markersize=math.sqrt(area), markeredgewidth=1.3, zorder=3,
        markerfacecolor=look.color if filled else "none", markeredgecolor=PAPER if filled else look.color,
    )  # fmt: skip


def moved_apart(
    places: npt.NDArray[np.float64], least: float, low: float = -math.inf, high: float = math.inf
) -> npt.NDArray[np.float64]:
    """Places ``[n, 2]`` moved sideways, between ``low`` and ``high``, as little as it takes for every two of them to be
    ``least`` apart, or nearly so; heights stay, as it is they that are read."""
    moved = places.astype(np.float64)
    one, other = np.triu_indices(len(moved), k=1)
    wanted = np.sqrt(np.clip(least**2 - (moved[other, 1] - moved[one, 1]) ** 2, 0.0, None))
    for _ in range(ROUNDS_APART):
        between = moved[other, 0] - moved[one, 0]
        lacking = np.clip(wanted - np.abs(between), 0.0, None)
        if lacking.max(initial=0.0) < ENOUGH:
            break
        push = 0.5 * lacking * np.where(between < 0, -1.0, 1.0)
        np.add.at(moved[:, 0], other, push)
        np.add.at(moved[:, 0], one, -push)
        moved[:, 0] = moved[:, 0].clip(low, high)
    return moved


def cut_low(axes: Axes, levels: Sequence[Level], values: Sequence[float]) -> float:
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


def tell_cut(axes: Axes, bottom: float, places: Sequence[tuple[float, float, int]]) -> None:
    """Write values under ``bottom`` as numbers at their places (horizontal place, value, number of the series)."""
    stacked: dict[float, int] = {}
    for x, value, number in places:
        if value < bottom:
            level = stacked[round(x, 1)] = stacked.get(round(x, 1), -1) + 1
            axes.annotate(
                f"↓ {value:.3f}", (x, bottom), xytext=(0, 5 + 12 * level), textcoords="offset points", ha="center",
                color=Look(number).color, fontsize=8.5,
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
