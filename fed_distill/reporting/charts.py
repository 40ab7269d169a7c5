"""Charts as inline SVG whose colours are CSS variables, so that they follow the reader's light or dark theme.

Every mark has a tooltip and every series its name beside it, so that no chart needs its colours to be told apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH = 880
"""Width of every chart in SVG units; a unit is a CSS pixel where there is room."""
COLORS = 6
"""The CSS colours ``.color0`` (the run's own federation) to ``.color5``; what else there is, is neutral."""
DOT = 6.2
"""Distance between stacked dots."""
LABEL_GAP = 15
LABEL_LENGTH = 26


@dataclass(frozen=True)
class Mark:
    """One value with its name. half_width: of its interval. color: number of the CSS colour; None for neutral."""

    label: str
    value: float
    half_width: float | None = None
    color: int | None = None


@dataclass(frozen=True)
class Line:
    """A named line through ``points`` (x, y, half-width of the interval or None)."""

    label: str
    points: Sequence[tuple[float, float, float | None]]
    color: int = 0


@dataclass(frozen=True)
class Point:
    """A named point of a scatter plot."""

    label: str
    x: float
    y: float
    color: int | None = None


@dataclass(frozen=True)
class Spread:
    """Many values under one name, and the name of whoever has the ``lowest``."""

    label: str
    values: Sequence[float] = field(default_factory=list)
    lowest: str = ""
    color: int | None = None


class _Scale:
    """A linear map from values to SVG units, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, bins: int = 5, pad: float = 0.06) -> None:
        low, high = min(values), max(values)
        margin = pad * (high - low) or 0.05 * abs(high) or 0.5
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end
        ticks = MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        self.ticks = [float(tick) for tick in ticks if self.low <= tick <= self.high]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def name(self, tick: float) -> str:
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        digits = next((digits for digits in range(7) if abs(round(step, digits) - step) < 1e-9 * max(1.0, step)), 6)
        return f"{tick:.{digits}f}"


def interval_plot(marks: Sequence[Mark], axis: str, title: str) -> Markup:
    """One row a mark: its value as a dot, its interval as a whisker."""
    left, right, row, top = 190, 74, 30, 8
    bottom = top + row * len(marks)
    ends = [mark.value + sign * (mark.half_width or 0.0) for mark in marks for sign in (-1, 1)]
    x = _Scale(ends, left, WIDTH - right)
    parts = _vertical_grid(x, top, bottom, axis)
    for index, mark in enumerate(marks):
        y = top + row * (index + 0.5)
        style, strong, spread = _color(mark.color), _strong(mark.color), ""
        if mark.half_width is not None:
            parts.append(
                _segment(f"whisker {style}", x(mark.value - mark.half_width), y, x(mark.value + mark.half_width), y)
            )
            spread = f" ± {mark.half_width:.4f}"
        parts.append(_text(f"name{strong}", left - 14, y + 4, mark.label, "end"))
        parts.append(_dot(style, x(mark.value), y, 5.5, f"{mark.label}: {mark.value:.4f}{spread}"))
        parts.append(_text(f"value{strong}", WIDTH - 4, y + 4, f"{mark.value:.4f}", "end"))
    return _svg(parts, bottom + 42, title)


def line_chart(lines: Sequence[Line], levels: Sequence[Mark], x_axis: str, y_axis: str, title: str) -> Markup:
    """Lines over rounds with bands for their intervals; ``levels`` are dashed horizontal lines."""
    height = 340
    points = [point for line in lines for point in line.points]
    ys = [y + sign * (half or 0.0) for _, y, half in points for sign in (-1, 1)] + [level.value for level in levels]
    plot = _Plot(_Scale([x for x, _, _ in points], 58, WIDTH - 176, bins=8, pad=0.0), _Scale(ys, height - 48, 26))
    x, y = plot.x, plot.y
    parts = plot.frame([tick for tick in x.ticks if tick == round(tick)], x_axis, y_axis)
    labels = plot.levels(parts, levels)
    for line in lines:
        style = _color(line.color)
        if any(half is not None for _, _, half in line.points):
            edge = [(x(at), y(value + (half or 0.0))) for at, value, half in line.points]
            edge += [(x(at), y(value - (half or 0.0))) for at, value, half in reversed(line.points)]
            parts.append(f'<polygon class="band {style}" points="{_path(edge)}"/>')
        path = _path([(x(at), y(value)) for at, value, _ in line.points])
        parts.append(f'<polyline class="line {style}" points="{path}"/>')
        parts += [_dot(style, x(at), y(v), 3, f"{line.label}, round {at:g}: {v:.4f}") for at, v, _ in line.points]
        labels.append((y(line.points[-1][1]), line.label, style))
    return _svg([*parts, *plot.side_labels(labels)], height, title)


def scatter(points: Sequence[Point], levels: Sequence[Mark], x_axis: str, y_axis: str, title: str) -> Markup:
    """Named points, x from 0; ``levels`` are dashed horizontal lines."""
    height = 320
    x = _Scale([0.0, *(point.x for point in points)], 58, WIDTH - 176, bins=6, pad=0.04)
    y = _Scale([point.y for point in points] + [level.value for level in levels], height - 48, 26)
    plot = _Plot(x, y)
    parts = plot.frame(x.ticks, x_axis, y_axis)
    parts += plot.side_labels(plot.levels(parts, levels))
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: -point.y):
        style, px, py = _color(point.color), x(point.x), y(point.y)
        parts.append(_dot(style, px, py, 6.5, f"{point.label}: {point.x:.3g}, {point.y:.4f}"))
        before = px > (x.start + x.end) / 2
        length = 7.5 * min(len(point.label), LABEL_LENGTH) + 12
        start, end = (px - length, px) if before else (px, px + length)
        while any(abs(py - height) < LABEL_GAP and start < right and left < end for left, right, height in taken):
            py += 1
        taken.append((start, end, py))
        parts.append(
            _text(f"label {style}", px - 12 if before else px + 12, py + 4, point.label, "end" if before else "start")
        )
    return _svg(parts, height, title)


def stacked_dots(spreads: Sequence[Spread], axis: str, title: str) -> Markup:
    """One row a spread: its values as stacked dots, their mean as a bar, the lowest one named.

    Where there are many values a dot stands for several, and the axis says for how many.
    """
    left, right, top, bins = 190, 24, 6, 84
    x = _Scale([value for spread in spreads for value in spread.values], left, WIDTH - right, pad=0.02)
    columns = [_binned(spread.values, x, bins) for spread in spreads]
    each = -(-max(count for of_spread in columns for count in of_spread) // 8)
    row = 34 + DOT * max(3, -(-max(count for of_spread in columns for count in of_spread) // each))
    bottom = top + row * len(spreads)
    parts = _vertical_grid(x, top, bottom, axis if each == 1 else f"{axis} (a dot is {each} merchants)")
    step = (WIDTH - right - left) / bins
    for index, (spread, of_spread) in enumerate(zip(spreads, columns, strict=True)):
        base = top + row * (index + 1) - 14
        mean = sum(spread.values) / len(spread.values)
        style = _color(spread.color)
        parts.append(_segment("base", left, base + 5, WIDTH - right, base + 5))
        parts.append(_text(f"name{_strong(spread.color)}", left - 14, base - 12, spread.label, "end"))
        parts.append(_text("tick", left - 14, base + 4, f"mean {mean:.3f}", "end"))
        for number, count in enumerate(of_spread):
            parts += [
                _dot(style, left + (number + 0.5) * step, base - DOT * level, 2.9) for level in range(-(-count // each))
            ]
        parts.append(_segment(f"mean {style}", x(mean), base - row + 26, x(mean), base + 5))
        if spread.lowest:
            parts.append(_text("tick", x(min(spread.values)) - 2, base - 12, spread.lowest))
    return _svg(parts, bottom + 42, title)


@dataclass(frozen=True)
class _Plot:
    """The frame that line charts and scatter plots share: grid, axes, levels, and names at the right edge."""

    x: _Scale
    y: _Scale

    def frame(self, ticks: Sequence[float], x_axis: str, y_axis: str) -> list[str]:
        left, right, bottom = self.x.start, self.x.end, self.y.start
        parts = [_text("axis", left, 12, y_axis), _text("axis", (left + right) / 2, bottom + 42, x_axis, "middle")]
        for tick in self.y.ticks:
            parts.append(_segment("grid", left, self.y(tick), right, self.y(tick)))
            parts.append(_text("tick", left - 8, self.y(tick) + 4, self.y.name(tick), "end"))
        parts += [_text("tick", self.x(tick), bottom + 20, self.x.name(tick), "middle") for tick in ticks]
        return parts

    def levels(self, parts: list[str], levels: Sequence[Mark]) -> list[tuple[float, str, str]]:
        """Draw the levels into ``parts`` and return their labels."""
        for level in levels:
            at = self.y(level.value)
            parts.append(_segment("level", self.x.start, at, self.x.end, at, f"{level.label}: {level.value:.4f}"))
        return [(self.y(level.value), level.label, "neutral") for level in levels]

    def side_labels(self, labels: Sequence[tuple[float, str, str]]) -> list[str]:
        """Labels (height, text, colour class) at the right edge, moved apart so that none covers another."""
        ordered = sorted(labels)
        heights: list[float] = []
        for at, _, _ in ordered:
            heights.append(max(at, heights[-1] + LABEL_GAP) if heights else max(at, self.y.end))
        for index in reversed(range(len(heights))):
            limit = self.y.start if index == len(heights) - 1 else heights[index + 1] - LABEL_GAP
            heights[index] = min(heights[index], limit)
        return [
            _text(f"label {style}", self.x.end + 12, height + 4, text)
            for height, (_, text, style) in zip(heights, ordered, strict=True)
        ]


def _vertical_grid(x: _Scale, top: float, bottom: float, axis: str) -> list[str]:
    parts = [_text("axis", (x.start + x.end) / 2, bottom + 37, axis, "middle")]
    for tick in x.ticks:
        parts.append(_segment("grid", x(tick), top, x(tick), bottom))
        parts.append(_text("tick", x(tick), bottom + 17, x.name(tick), "middle"))
    return parts


def _binned(values: Sequence[float], x: _Scale, bins: int) -> list[int]:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - x.low) / (x.high - x.low) * bins))] += 1
    return counts


def _text(style: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    shown = escape(text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…")
    cut = f"<title>{escape(text)}</title>" if len(text) > LABEL_LENGTH and style != "axis" else ""
    content = escape(text) if style == "axis" else shown
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{content}{cut}</text>'


def _segment(style: str, x1: float, y1: float, x2: float, y2: float, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{title}</line>'


def _dot(style: str, x: float, y: float, radius: float, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _color(color: int | None) -> str:
    return "neutral" if color is None else f"color{color % COLORS}"


def _strong(color: int | None) -> str:
    return " strong" if color == 0 else ""


def _svg(parts: Sequence[str], height: float, title: str) -> Markup:
    opening = f'<svg role="img" viewBox="0 0 {WIDTH} {height:g}" aria-label="{escape(title)}">'
    return Markup(opening + "".join(parts) + "</svg>")
