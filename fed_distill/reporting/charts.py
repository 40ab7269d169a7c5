"""Common style and elements of all charts, in matplotlib, and their conversion to SVG and PNG.

Series differ by colour and marker and are labelled, so that charts are readable without colours; if there are more
series than markers, they are numbered. SVG uses the CSS variables of the page for colours, so that it follows the light
or dark theme. Imports are slow: import this module where a chart is drawn.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fed_distill.storage.files import write_atomic

COLORS = ("#1f5fbf", "#b8520a", "#0c7866", "#9c2f78", "#6d6200", "#5b45ad")
"""Colours of the series in the light theme; in SVG they become the CSS variables ``--c0`` to ``--c5``."""
INK, SOFT, LINE, NEUTRAL, PAPER = "#1d2127", "#5b636e", "#e4e1db", "#747d89", "#ffffff"
THEME = {
    **{color: f"var(--c{number})" for number, color in enumerate(COLORS)},
    INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", NEUTRAL: "var(--neutral)", PAPER: "var(--card)",
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
WIDTH, NARROW_WIDTH, HEIGHT, DPI = 9.6, 4.9, 4.6, 160
"""Inches, and dots an inch. The narrow width is for pages on telephones, see ``responsive``."""
_width = ContextVar("width", default=WIDTH)
LEFT = 0.72
"""Inches beside the axes for their numbers."""
LEGEND_COLUMNS, LEGEND_LINE = 3, 0.21
DOTTED = (0, (2, 3))
"""Line style of levels."""
MARK = 6.5**2
"""Area of a marker in square points."""
NUMBERED_WIDTH = 12.5
"""Width in points of a numbered marker."""
LONGEST, NARROW_LONGEST, LETTER = 36, 25, 5.8
"""Maximum lengths of a displayed name, the rest being in the tooltip; width of a letter in points."""
ROUNDS_APART = 500
"""Maximum number of iterations of moving markers apart."""
ENOUGH = 1e-3
"""Tolerance in pixels for overlapping markers."""
LABEL_GAP = 0.058
"""Minimum distance of two labels at the right edge, relative to the height of the axes."""
FAR = 1.0
"""Values further below the lowest level than this multiple of the best value's height over it are cut off."""
TIP = "tip:"
"""Prefix of ids that become tooltips in SVG."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # names of merchants and labels may contain dollar signs
}
styled = matplotlib.rc_context(STYLE)
"""Decorator of functions that create figures."""


@dataclass(frozen=True)
class Look:
    """Style of the series ``number``, with index ``place`` among ``count`` series."""

    number: int
    place: int = 0
    count: int = 1
    numbered: bool = False

    @property
    def color(self) -> str:
        """Colour of markers and lines."""
        return COLORS[self.number % len(COLORS)]

    @property
    def marker(self) -> str:
        """Shape of markers."""
        return "o" if self.numbered else MARKERS[self.number % len(MARKERS)]

    @property
    def aside(self) -> float:
        """Offset from the middle for series with equal values, in steps."""
        return self.place - (self.count - 1) / 2


def width() -> float:
    """Return the width of figures in inches."""
    return _width.get()


def new_figure(height: float, **options: Any) -> Figure:
    """Create a figure with the common width and ``height`` in inches."""
    figure = Figure(figsize=(width(), height), facecolor=PAPER, **options)
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes, grid: str = "") -> Axes:
    """Remove the frame except for its lower edge; ``grid``: ``x`` or ``y`` for grid lines at its values."""
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(which="both", colors=SOFT, length=0)
    if grid == "x":
        axes.grid(axis="x", color=LINE, linewidth=0.9)
    elif grid == "y":
        axes.grid(axis="y", color=LINE, linewidth=0.9)
    return axes


def empty_figure(
    y_axis: str, legend: Mapping[int, str] | None = None, columns: int = LEGEND_COLUMNS
) -> tuple[Figure, Axes]:
    """Create a figure with room for labels at the right, and below for a ``legend`` (name by series) in ``columns``."""
    numbered = are_numbered(legend or {})
    columns = max(1, int(columns * width() / WIDTH))
    below = LEGEND_LINE * math.ceil(len(legend or ()) / columns) + (0.2 if legend else 0.0)
    height = HEIGHT + below
    figure = new_figure(height)
    left = LEFT / width()
    axes = clean(figure.add_axes((left, (0.6 + below) / height, 0.795 - left, 3.6 / height)), grid="y")
    axes.set_title(y_axis, loc="left", color=SOFT, fontsize=10)
    for number, name in (legend or {}).items():
        look = Look(number, numbered=numbered)
        label = f"{number + 1}  {name}" if numbered else name  # as in ``draw_mark``
        axes.plot([], [], marker=look.marker, color=look.color, linestyle="none", markersize=7, label=label)
    if legend:
        figure.legend(
            loc="lower left", bbox_to_anchor=(0.06, 0.0), ncols=columns, frameon=False, labelcolor=INK,
            handletextpad=0.2, columnspacing=1.6,
        )  # fmt: skip
    return figure, axes


def rows_figure(height: float) -> tuple[Figure, Axes]:
    """Create a figure with room for names of rows at the left."""
    figure = new_figure(height, layout="constrained")
    return figure, clean(figure.add_subplot())


def are_numbered(names: Mapping[int, str]) -> bool:
    """Whether there are more series than markers, so that markers are numbered."""
    return len(names) > len(MARKERS)


def tipped(artist: Artist, text: str) -> None:
    """Add a tooltip, which becomes the ``title`` of the SVG element."""
    artist.set_gid(f"{TIP}{text}")


def shortened(name: str) -> str:
    """Truncate a name to ``LONGEST`` characters, or ``NARROW_LONGEST`` where the figure is narrow."""
    most = LONGEST if width() == WIDTH else NARROW_LONGEST
    return name if len(name) <= most else name[: most - 1] + "…"


def room(names: Sequence[str]) -> float:
    """Return the width of names beside the axes, relative to the figure."""
    return (LETTER * max(len(shortened(name)) for name in names) + 24) / (72 * width())


def draw_levels(axes: Axes, levels: Mapping[str, float]) -> list[tuple[float, str, str]]:
    """Draw dashed lines (height by name) and return their labels (height, name, colour)."""
    for name, value in levels.items():
        line = axes.axhline(value, color=NEUTRAL, linewidth=1.2, linestyle=DOTTED, zorder=1)
        tipped(line, f"{name}: {value:.4f}")
    return [(value, name, NEUTRAL) for name, value in levels.items()]


def draw_mark(axes: Axes, x: float, y: float, area: float, look: Look, filled: bool = True, tip: str = "") -> None:
    """Draw a marker with an area in square points, with the number of the series if series are numbered."""
    if look.numbered:
        area, written = max(area, NUMBERED_WIDTH**2), PAPER if filled else look.color
        axes.text(x, y, str(look.number + 1), color=written, fontsize=7.5, ha="center", va="center_baseline", zorder=4)
    (mark,) = axes.plot(
        [x], [y], color=look.color, marker=look.marker, markersize=math.sqrt(area), markeredgewidth=1.3, zorder=3,
        markerfacecolor=look.color if filled else "none", markeredgecolor=PAPER if filled else look.color,
    )  # fmt: skip
    if tip:
        tipped(mark, tip)


def draw_line(
    axes: Axes, x: Sequence[float], y: Sequence[float], ends: Sequence[tuple[float, float]], look: Look
) -> None:
    """Draw a line through points, with a band between the lower and upper ``ends`` of their intervals."""
    low, high = zip(*ends, strict=True)
    axes.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)
    axes.plot(x, y, color=look.color, linewidth=1.9)


def moved_apart(
    places: npt.NDArray[np.float64], least: float, low: float = -math.inf, high: float = math.inf
) -> npt.NDArray[np.float64]:
    """Move positions ``[n, 2]`` sideways, between ``low`` and ``high``, until every two are about ``least`` apart.

    Heights are unchanged, because they represent the values."""
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


def cut_low(axes: Axes, levels: Mapping[str, float], values: Sequence[float]) -> float:
    """Cut off values far below the levels, so that the rest stays readable; return the lower limit.

    With fewer than two levels there is no reference, and nothing is cut.
    """
    lowest = min(levels.values(), default=0.0)
    highest = max(*values, *levels.values(), lowest)
    bottom = lowest - FAR * (highest - lowest)
    if len(levels) < 2 or min(values) >= bottom:
        return -math.inf
    axes.set_ylim(bottom, highest + 0.06 * (highest - bottom))
    return bottom


def annotate_cut(axes: Axes, bottom: float, places: Sequence[tuple[float, float, int]]) -> None:
    """Write values below ``bottom`` as numbers (horizontal position, value, number of the series)."""
    stacked: dict[float, int] = {}
    for x, value, number in places:
        if value < bottom:
            level = stacked[round(x, 1)] = stacked.get(round(x, 1), -1) + 1
            axes.annotate(
                f"↓ {value:.3f}", (x, bottom), xytext=(0, 5 + 12 * level), textcoords="offset points", ha="center",
                color=Look(number).color, fontsize=8.5,
            )  # fmt: skip


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write labels (height, text, colour) at the right edge without overlap, connected by thin lines.

    The axes are narrowed to make room."""
    if not labels:
        return
    left, bottom, wide, height = axes.get_position().bounds
    axes.set_position((left, bottom, min(wide, 1.0 - left - room([text for _, text, _ in labels])), height))
    axes.get_ylim()  # fixes the limits
    to_axes = axes.get_yaxis_transform() - axes.transAxes
    wanted = sorted((max(0.0, float(to_axes.transform((1.0, value))[1])), text, color) for value, text, color in labels)
    heights: list[float] = []
    for at, _, _ in wanted:
        heights.append(max(at, heights[-1] + LABEL_GAP) if heights else at)
    for index in reversed(range(len(heights))):
        limit = 1.0 if index == len(heights) - 1 else heights[index + 1] - LABEL_GAP
        heights[index] = min(heights[index], limit)
    for place, (at, text, color) in zip(heights, wanted, strict=True):
        label = axes.annotate(
            shortened(text), (1.0, at), xycoords="axes fraction", xytext=(1.03, place), textcoords="axes fraction",
            color=color, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0},
        )  # fmt: skip
        if shortened(text) != text:
            tipped(label, text)


def write_figure(figure: Figure, folder: Path, name: str, title: str) -> Markup:
    """Write ``name.svg`` and ``name.png`` into ``folder``; return the SVG for a page, see ``inline``."""
    folder.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    drawing = _svg(figure, name)
    write_atomic(folder / f"{name}.svg", drawing)
    write_atomic(folder / f"{name}.png", png.getvalue())
    return _themed(drawing, name, title)


def inline(figure: Figure, name: str, title: str) -> Markup:
    """Return the figure as an SVG element with the accessible name ``title``; ``name`` must be unique in the page."""
    return _themed(_svg(figure, name), name, title)


def responsive(draw: Callable[[], Figure], name: str, title: str) -> Markup:
    """Return a figure twice, as by ``inline``: ``draw`` is called for wide pages and, with another ``width``, for
    narrow ones. The page's style shows the one that fits."""
    wide = inline(draw(), name, title)
    token = _width.set(NARROW_WIDTH)
    try:
        narrow = inline(draw(), f"{name}-narrow", title)
    finally:
        _width.reset(token)
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def _svg(figure: Figure, name: str) -> str:
    """Return reproducible SVG text: no date, ids derived from ``name``, tooltips as titles."""
    svg = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(rf"""<g id=(["']){TIP}(.*?)\1>""", r"<g><title>\2</title>", svg.getvalue())


def _themed(svg: str, name: str, title: str) -> Markup:
    """Return the SVG element with the page's CSS variables as colours, its own ids and the page's font."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    for color, variable in THEME.items():
        element = element.replace(color, variable)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'(href="#|url\(#)', rf"\1{name}-", element).replace("xlink:href", "href")
    element = re.sub(r"font: (?:(\w+) )?([\d.]+)px 'DejaVu Sans'", _font, element).replace("'DejaVu Sans'", "inherit")
    element = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg role="img" viewBox="\1" aria-label="{escape(title)}">',
        element,
        count=1,
    )
    return Markup(element)


def _font(found: re.Match[str]) -> str:
    """Separate size and weight: the shorthand ``font``, used by older matplotlib, cannot inherit the family."""
    return f"font-size: {found[2]}px" + (f"; font-weight: {found[1]}" if found[1] else "")
