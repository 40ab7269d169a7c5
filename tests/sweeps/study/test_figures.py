"""Figures place ε logarithmically with no privacy at the right, keep names apart, and stand in any page."""

import math
from itertools import combinations

import numpy as np
import pytest

from fed_distill.reporting.charts import COLORS, MARKERS, NUMBERED_WIDTH, TIP
from fed_distill.sweeps.curves import Curve, Reading, Tradeoff
from fed_distill.sweeps.figures import EpsilonScale, bytes_figure, curve_figure, pareto_figure


def tips(figure):
    """What a reader is told who points at a mark."""
    return {line.get_gid().removeprefix(TIP) for line in figure.axes[0].lines if line.get_gid()}


def told_of(curve):
    shown = {math.inf: "∞"}
    return [(shown.get(one.epsilon, f"{one.epsilon:g}"), one.value) for one in curve.readings]


def curve(number, values, half=0.01, epsilons=(1.0, 2.0, 8.0, math.inf)):
    readings = [Reading(epsilon, value, half) for epsilon, value in zip(epsilons, values, strict=True)]
    return Curve(f"series {number}", number, readings)


CURVES = [curve(0, (0.90, 0.91, 0.93, 0.95)), curve(1, (0.88, 0.90, 0.93, 0.95)), curve(2, (0.87, 0.89, 0.92, 0.95))]
LEVELS = {"server alone": 0.90, "all data pooled": 0.97}
OFFERS = [
    Tradeoff("a", 0, 1.0, 0.90, 45.0, best=True),
    Tradeoff("a", 0, math.inf, 0.95, 45.0, best=True),
    Tradeoff("b", 1, 1.0, 0.89, 45.0),
    Tradeoff("c", 2, 1.0, 0.88, 0.5, best=True),
    Tradeoff("d", 3, None, 0.94, 1.0),
]


def test_equal_ratios_of_epsilon_are_equal_distances_and_no_privacy_is_beyond_all():
    budget = EpsilonScale.of([1.0, 2.0, 4.0, 8.0, math.inf])
    places = [budget.place(epsilon) for epsilon in (1.0, 2.0, 4.0, 8.0)]
    assert places == [0.0, 1.0, 2.0, 3.0]
    assert budget.place(math.inf) > 3.5
    assert budget.place(math.inf, -1) < budget.place(math.inf) < budget.place(math.inf, 1)


@pytest.mark.parametrize(
    ("epsilons", "names"),
    [
        ((1.0, 2.0, 8.0, math.inf), ["1", "2", "4", "8", "∞: no privacy"]),
        ((0.999, 7.992), ["1", "2", "4", "8"]),
        ((0.1, 0.3), ["0.125", "0.25"]),
        ((3.0,), []),
    ],
)
def test_the_ticks_are_powers_of_two(epsilons, names):
    figure = curve_figure([curve(0, [0.9] * len(epsilons), epsilons=epsilons)], {}, "quality")
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert low < high
    assert [label.get_text() for label in axes.get_xticklabels()] == names


def test_every_curve_and_level_is_named_and_every_value_told():
    figure = curve_figure(CURVES, LEVELS, "quality")
    named = {text.get_text() for text in figure.axes[0].texts}
    assert named == {"series 0", "series 1", "series 2", "server alone", "all data pooled"}
    told = {f"{one.series}, ε = {epsilon}: {value:.4f}" for one in CURVES for epsilon, value in told_of(one)}
    assert told <= tips(figure)


def test_bands_reach_from_end_to_end_of_the_intervals():
    (axes,) = curve_figure(CURVES[:1], {}, "quality").axes
    (band,) = axes.collections
    heights = [y for path in band.get_paths() for _, y in path.vertices]
    assert min(heights) == pytest.approx(0.89)
    assert max(heights) == pytest.approx(0.94)  # the largest finite epsilon: no band reaches over the gap


def test_all_marks_are_within_the_axes():
    for figure in (
        curve_figure(CURVES, LEVELS, "q"),
        bytes_figure(OFFERS, LEVELS, "q"),
        pareto_figure(OFFERS, {}, "q"),
    ):
        (axes,) = figure.axes
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            if line.get_marker() not in ("None", None, ""):
                assert all(left <= x <= right for x in line.get_xdata())
                assert all(bottom <= y <= top for y in line.get_ydata())


def test_values_far_below_the_levels_are_told_as_numbers():
    collapsed = [curve(3, (0.2, 0.3, 0.93, 0.95)), curve(4, (0.21, 0.92, 0.93, 0.95))]
    (axes,) = curve_figure([*CURVES, *collapsed], LEVELS, "quality").axes
    assert axes.get_ylim()[0] == pytest.approx(0.90 - (0.97 - 0.90))
    told = {text.get_text() for text in axes.texts if text.get_text().startswith("↓")}
    assert told == {"↓ 0.200", "↓ 0.300", "↓ 0.210"}
    assert curve_figure(collapsed, {}, "quality").axes[0].get_ylim()[0] < 0.2


def test_bytes_that_differ_much_are_on_a_logarithmic_axis():
    assert bytes_figure(OFFERS, {}, "q").axes[0].get_xscale() == "log"
    assert bytes_figure(OFFERS[:3], {}, "q").axes[0].get_xscale() == "linear"


def test_beaten_choices_are_hollow_and_those_of_unknown_epsilon_absent():
    (axes,) = pareto_figure(OFFERS, {}, "q").axes
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() for line in marks] == [COLORS[0], COLORS[0], "none", COLORS[2]]
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert names == ["a", "b", "c"]


@pytest.mark.parametrize("draw", [bytes_figure, pareto_figure])
def test_more_series_than_markers_have_numbers_in_their_marks_and_before_their_names(draw):
    offers = [Tradeoff(f"series {place}", place, 1.0 + place, 0.9, 1.0) for place in range(len(MARKERS) + 1)]
    for some, numbered in ((offers, True), (offers[:-1], False)):
        (axes,) = draw(some, {}, "q").axes
        names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
        written = [text.get_text() for text in axes.texts if text.get_text().isdigit()]
        marks = {line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1} - {"None"}
        if numbered:
            assert written == [str(place + 1) for place in range(len(offers))]
            assert names == [f"{place + 1}  series {place}" for place in range(len(offers))] and marks == {"o"}
        else:
            assert not written and names == [offer.series for offer in some] and len(marks) == len(MARKERS)


def test_marks_with_numbers_cover_no_other_and_lead_to_where_they_belong():
    crowd = [Tradeoff(f"series {place}", place, None, 0.9 + 1e-5 * place, 1.0) for place in range(12)]
    crowd.append(Tradeoff("far", 12, None, 0.95, 1.0))
    (axes,) = bytes_figure(crowd, LEVELS, "q").axes
    axes.figure.draw_without_rendering()
    marks = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    places = axes.transData.transform(np.array(marks)) * 72 / axes.figure.dpi
    assert len(marks) == len(crowd)
    assert min(math.dist(one, other) for one, other in combinations(places, 2)) > NUMBERED_WIDTH - 0.2
    leads = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    begun = {(float(x), float(y)) for (x, y), _ in leads}
    assert begun >= {(offer.megabytes, offer.value) for offer in crowd[:2]}
    assert (1.0, 0.95) not in begun
    assert marks[-1].tolist() == [1.0, 0.95]


def test_offers_that_lie_far_below_are_told_as_numbers():
    (axes,) = bytes_figure([*OFFERS, Tradeoff("e", 4, 2.0, 0.3, 2.0)], LEVELS, "q").axes
    assert "↓ 0.300" in [text.get_text() for text in axes.texts]


def test_only_series_that_send_the_same_stand_aside_from_their_bytes():
    offers = [Tradeoff(f"series {place}", place, None, 0.9, sent) for place, sent in enumerate((0.01, 5.0, 5.0, 100.0))]
    figure = bytes_figure(offers, {}, "nDCG@10")
    places = sorted({float(line.get_xdata()[0]) for line in figure.axes[0].lines if len(line.get_xdata()) == 1})
    assert (places[0], places[-1]) == (0.01, 100.0)
    assert places[1] < 5.0 < places[2] and places[1] * places[2] == pytest.approx(25.0)
