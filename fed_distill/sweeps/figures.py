"""The figures of a study: quality over ε, against bytes, and both; learning curves.

The ε axis is logarithmic; combinations without privacy are placed beyond its right end, at ∞.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fed_distill.reporting import charts
from fed_distill.sweeps.curves import Curve, Reading, Tradeoff
from fed_distill.sweeps.learning import ValidationCurve

SIDE_BY_SIDE = 0.02
"""Distance between series with equal bytes, as a share of the axis."""
POINTS = 72
"""Points per inch."""


@dataclass(frozen=True)
class EpsilonScale:
    """Horizontal position of ε: its binary logarithm, and a position beyond the right end for no privacy."""

    lowest: float
    highest: float
    endless: bool

    @classmethod
    def of(cls, epsilons: Sequence[float]) -> "EpsilonScale":
        """Create the scale for these ε, at least one of them finite."""
        finite = [math.log2(epsilon) for epsilon in epsilons if math.isfinite(epsilon)]
        return cls(min(finite), max(finite), any(math.isinf(epsilon) for epsilon in epsilons))

    @property
    def length(self) -> float:
        """Length of the finite part of the axis; 1 (a doubling) for a single ε."""
        return max(1.0, self.highest - self.lowest)

    def place(self, epsilon: float, aside: float = 0.0) -> float:
        """Return the position of ε; series without privacy are side by side, ``aside`` steps from the middle."""
        beyond = self.highest + 0.28 * self.length
        return beyond + 0.018 * self.length * aside if math.isinf(epsilon) else math.log2(epsilon)

    def apply(self, axes: Axes) -> None:
        """Set scale, ticks and label of ``axes``."""
        margin, beyond = 0.07 * self.length, self.place(math.inf)
        axes.set_xlim(self.lowest - margin, beyond + 0.11 * self.length if self.endless else self.highest + margin)
        step = max(1, math.ceil((self.highest - self.lowest) / 8))
        ticks = [float(place) for place in range(math.floor(self.lowest), math.ceil(self.highest) + 1, step)]
        ticks = [tick for tick in ticks if self.lowest - margin <= tick <= self.highest + margin]
        names = [f"{2.0**tick:g}" for tick in ticks]
        if self.endless:
            axes.axvline((self.highest + beyond) / 2, color=charts.LINE, linewidth=1.2, linestyle=(0, (1, 3)))
            ticks, names = [*ticks, beyond], [*names, "∞: no privacy"]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(names)
        axes.set_xlabel("ε, logarithmic: smaller is more private", color=charts.SOFT)


@charts.styled
def curve_figure(curves: Sequence[Curve], levels: Mapping[str, float], y_axis: str) -> Figure:
    """Draw curves over ε with 95 % bands, and ``levels`` as dashed lines. At least one ε must be finite."""
    figure, axes = charts.empty_figure(y_axis)
    budget = EpsilonScale.of([reading.epsilon for curve in curves for reading in curve.readings])
    budget.apply(axes)
    labels = charts.draw_levels(axes, levels)
    for place, curve in enumerate(curves):
        look = charts.Look(curve.number, place, len(curves))
        finite = [reading for reading in curve.readings if math.isfinite(reading.epsilon)]
        endless = [reading for reading in curve.readings if math.isinf(reading.epsilon)]
        if len(finite) > 1:
            x = [budget.place(reading.epsilon) for reading in finite]
            charts.draw_line(
                axes, x, [reading.value for reading in finite], [_ends(reading) for reading in finite], look
            )
        if endless:  # connected by a thin line
            x = [budget.place(reading.epsilon, look.aside) for reading in (*finite[-1:], endless[0])]
            y = [reading.value for reading in (*finite[-1:], endless[0])]
            axes.plot(x, y, color=look.color, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        for reading in [*(finite if len(finite) == 1 else []), *endless[:1]]:  # these have no band
            axes.plot([budget.place(reading.epsilon, look.aside)] * 2, _ends(reading), color=look.color, alpha=0.7)
        for reading in (*finite, *endless[:1]):
            tip = f"{curve.series}, ε = {_epsilon(reading.epsilon)}: {reading.value:.4f}"
            charts.draw_mark(axes, budget.place(reading.epsilon, look.aside), reading.value, charts.MARK, look, tip=tip)
        labels.append((curve.readings[-1].value, curve.series, look.color))
    places = [(budget.place(one.epsilon), one.value, curve.number) for curve in curves for one in curve.readings]
    charts.annotate_cut(axes, charts.cut_low(axes, levels, [value for _, value, _ in places]), places)
    charts.label_right(axes, labels)
    return figure


@charts.styled
def bytes_figure(offers: Sequence[Tradeoff], levels: Mapping[str, float], y_axis: str) -> Figure:
    """Draw quality against bytes sent per merchant; marker size grows with ε. Overlapping numbered markers are moved
    sideways and connected to their position."""
    names = _names(offers)
    numbered = charts.are_numbered(names)
    figure, axes = charts.empty_figure(y_axis, legend=names)
    spread = _spread_bytes(axes, offers)
    axes.set_xlabel("MB that a merchant sends in the run", color=charts.SOFT)
    labels = charts.draw_levels(axes, levels)
    places = [(offer.megabytes if numbered else spread(offer), offer.value) for offer in offers]
    axes.plot(*zip(*places, strict=True), linestyle="none")  # invisible; sets the limits
    axes.margins(0.1)
    axes.autoscale_view()
    bottom = charts.cut_low(axes, levels, [offer.value for offer in offers])
    axes.autoscale(enable=False)
    ranks = {epsilon: rank for rank, epsilon in enumerate(sorted({o.epsilon for o in offers if o.epsilon is not None}))}
    for place, number in enumerate(names):
        look = charts.Look(number, place, len(names), numbered)
        own = [at for at, offer in zip(places, offers, strict=True) if offer.number == number]
        if len({x for x, _ in own}) == 1:
            axes.plot(*zip(*own, strict=True), color=look.color, linewidth=1.0, zorder=2)
    for offer, at, (x, y) in zip(offers, places, _moved(axes, places) if numbered else places, strict=True):
        look = charts.Look(offer.number, numbered=numbered)
        if (x, y) != at:
            axes.plot([at[0], x], [at[1], y], color=look.color, linewidth=0.9, zorder=2)
        rank = 0 if offer.epsilon is None else ranks[offer.epsilon]
        charts.draw_mark(axes, x, y, 64 + 90 * rank / max(1, len(ranks) - 1), look, tip=_tip(offer))
    charts.annotate_cut(
        axes, bottom, [(x, offer.value, offer.number) for (x, _), offer in zip(places, offers, strict=True)]
    )
    charts.label_right(axes, labels)
    return figure


@charts.styled
def pareto_figure(offers: Sequence[Tradeoff], levels: Mapping[str, float], y_axis: str) -> Figure:
    """Draw quality against ε; marker size grows with bytes, and hollow markers are not Pareto-optimal."""
    known = [(offer, offer.epsilon) for offer in offers if offer.epsilon is not None]
    names = _names([offer for offer, _ in known])
    figure, axes = charts.empty_figure(y_axis, legend=names)
    budget = EpsilonScale.of([epsilon for _, epsilon in known])
    budget.apply(axes)
    most = max(offer.megabytes for offer, _ in known) or 1.0
    for place, number in enumerate(names):
        look = charts.Look(number, place, len(names), charts.are_numbered(names))
        for offer, epsilon in known:
            if offer.number == number:
                area = 40 + 140 * offer.megabytes / most
                x = budget.place(epsilon, look.aside)
                charts.draw_mark(axes, x, offer.value, area, look, filled=offer.best, tip=_tip(offer))
    front = sorted((epsilon, offer.value) for offer, epsilon in known if offer.best)
    heights = [max(value for other, value in front if other <= epsilon) for epsilon, _ in front]
    places = [budget.place(epsilon) for epsilon, _ in front]
    axes.step(places, heights, where="post", color=charts.NEUTRAL, linewidth=1.0, zorder=1)
    axes.margins(y=0.12)
    labels = charts.draw_levels(axes, levels)
    cut = charts.cut_low(axes, levels, [offer.value for offer, _ in known])
    charts.annotate_cut(axes, cut, [(budget.place(epsilon), offer.value, offer.number) for offer, epsilon in known])
    charts.label_right(axes, labels)
    return figure


@charts.styled
def learning_figure(curves: Sequence[ValidationCurve], levels: Mapping[str, float], y_axis: str) -> Figure:
    """Draw the score after each round against the bytes sent by then, with a line for each series; its last round has
    the series' marker."""
    names = {curve.number: curve.series for curve in curves}
    numbered = charts.are_numbered(names)
    figure, axes = charts.empty_figure(y_axis, legend=names)
    axes.set_xlabel("MB that a merchant has sent after each round", color=charts.SOFT)
    _scale_bytes(axes, [step.megabytes for curve in curves for step in curve.steps])
    labels = charts.draw_levels(axes, levels)
    for curve in curves:
        look, last = charts.Look(curve.number, numbered=numbered), curve.steps[-1]
        axes.plot(
            [step.megabytes for step in curve.steps], [step.value for step in curve.steps], color=look.color,
            linewidth=1.4, marker=".", markersize=5, zorder=2,
        )  # fmt: skip
        tip = f"{curve.series}, round {last.round}: {last.value:.4f}, {last.megabytes:.3g} MB"
        charts.draw_mark(axes, last.megabytes, last.value, 2 * charts.MARK, look, tip=tip)
    axes.margins(0.06, 0.08)
    axes.autoscale_view()
    reached = [(curve.steps[-1].megabytes, curve.steps[-1].value, curve.number) for curve in curves]
    charts.annotate_cut(axes, charts.cut_low(axes, levels, [value for _, value, _ in reached]), reached)
    charts.label_right(axes, labels)
    return figure


def _names(offers: Sequence[Tradeoff]) -> dict[int, str]:
    return dict(sorted({offer.number: offer.series for offer in offers}.items()))


def _ends(reading: Reading) -> tuple[float, float]:
    half = reading.half_width or 0.0
    return reading.value - half, reading.value + half


def _epsilon(epsilon: float | None) -> str:
    return "unknown" if epsilon is None else "∞" if math.isinf(epsilon) else f"{epsilon:.3g}"


def _tip(offer: Tradeoff) -> str:
    return f"{offer.series}, ε = {_epsilon(offer.epsilon)}: {offer.value:.4f}, {offer.megabytes:.3g} MB"


def _spread_bytes(axes: Axes, offers: Sequence[Tradeoff]) -> Callable[[Tradeoff], float]:
    """Scale the axis (``_scale_bytes``); return the position of each offer, with equal ones side by side."""
    amounts = [offer.megabytes for offer in offers]
    low, high = min(amounts), max(amounts)
    sending: dict[float, set[int]] = {}
    for offer in offers:
        sending.setdefault(offer.megabytes, set()).add(offer.number)

    def aside(offer: Tradeoff) -> float:
        """Return the offset from its position, as a share of the axis."""
        same = sorted(sending[offer.megabytes])
        return SIDE_BY_SIDE * (same.index(offer.number) - (len(same) - 1) / 2)

    if not _scale_bytes(axes, amounts):
        return lambda offer: offer.megabytes + (high - low) * aside(offer)
    return lambda offer: float(offer.megabytes * (high / low) ** aside(offer))


def _scale_bytes(axes: Axes, amounts: Sequence[float]) -> bool:
    """Use a logarithmic axis if ``amounts`` differ much; return whether it is one."""
    low, high = min(amounts), max(amounts)
    if not low or high <= 20 * low:
        return False
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    return True


def _moved(axes: Axes, places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return positions (data coordinates) of numbered markers without overlap."""
    pixels, width = axes.transData.transform(np.array(places)), charts.NUMBERED_WIDTH * axes.figure.dpi / POINTS
    moved = charts.moved_apart(pixels, width, axes.bbox.x0 + width / 2, axes.bbox.x1 - width / 2)
    back = axes.transData.inverted().transform(moved)
    stayed = np.isclose(moved, pixels).all(axis=1)
    return [at if stays else (float(x), float(y)) for at, stays, (x, y) in zip(places, stayed, back, strict=True)]
