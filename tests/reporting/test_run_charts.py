"""The charts of a run show every value where it belongs, under its name."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from fed_distill.reporting.charts import LONGEST, NARROW_WIDTH, WIDTH, inline, responsive
from fed_distill.reporting.run_charts import (
    LearningCurve,
    Spread,
    Value,
    learning,
    learning_figure,
    spread_figure,
    traffic,
    traffic_figure,
    values_figure,
)


def titles(figure):
    root = ElementTree.fromstring(inline(figure, "a", "b"))
    return [element.text for element in root.iter() if element.tag.endswith("title")]


def marks(axes):
    """Places of the single marks."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1 and line.get_gid()]


def test_values_stand_in_rows_from_the_highest_down_with_whiskers_over_their_intervals():
    figure = values_figure([Value("a", 0.5, 0.1, 0), Value("b", 0.6), Value("c", 0.4)], "x")
    (axes,) = figure.axes
    assert marks(axes) == [(0.4, 0), (0.5, 1), (0.6, 2)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    assert not axes.yaxis_inverted() and not axes.xaxis_inverted()
    (whisker,) = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert whisker.get_xydata().tolist() == [[0.4, 1], [0.6, 1]]
    assert titles(figure) == ["c: 0.4000", "a: 0.5000 ± 0.1000", "b: 0.6000"]
    assert [text.get_text() for text in axes.texts] == ["0.4000", "0.5000", "0.6000"]


def test_names_are_escaped_and_long_ones_cut_with_the_whole_in_a_tooltip():
    name = "<i>" + "x" * LONGEST
    figure = values_figure([Value(name, 0.5)], "x")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [name[: LONGEST - 1] + "…"]
    assert titles(figure) == [f"{name}: 0.5000"]


def test_ticks_are_round_numbers():
    (axes,) = values_figure([Value("a", 0.9544), Value("b", 0.9679)], "x").axes
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    inside = [label.get_text() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert inside == ["0.955", "0.960", "0.965"]


def test_a_curve_goes_through_its_means_with_a_band_over_their_intervals():
    figure = learning_figure([LearningCurve("a", [(1, 0.1, 0.05), (2, 0.3, None)])], {"server": 0.2}, "y")
    (axes,) = figure.axes
    assert marks(axes)[-2:] == [(1, 0.1), (2, 0.3)]
    band = axes.collections[0].get_paths()[0].vertices
    assert sorted({(x, round(y, 9)) for x, y in band.tolist()}) == [(1, 0.05), (1, 0.15), (2, 0.3)]
    assert titles(figure) == ["server: 0.2000", "a, round 1: 0.1000", "a, round 2: 0.3000"]
    assert {text.get_text() for text in axes.texts} == {"a", "server"}


def test_a_curve_of_one_round_and_equal_values_can_be_drawn():
    figure = learning_figure([LearningCurve(name, [(1, 0.5, None)]) for name in "ab"], {"c": 0.5}, "y")
    assert marks(figure.axes[0]) == [(1, 0.5), (1, 0.5)]
    inline(figure, "a", "b")


def test_bytes_begin_at_zero_and_every_name_is_in_the_legend():
    figure = traffic_figure({"a": (3.0, 0.5, 0), "b": (9.0, 0.6, 1)}, {"server": 0.4}, "y")
    (axes,) = figure.axes
    assert axes.get_xlim()[0] == 0.0
    assert marks(axes) == [(3.0, 0.5), (9.0, 0.6)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert titles(figure) == ["server: 0.4000", "a: 3 MB, 0.5000", "b: 9 MB, 0.6000"]


def dots(figure):
    return [line.get_xydata() for line in figure.axes[0].lines if line.get_linestyle() == "None"]


def test_every_merchant_is_a_dot_where_there_are_few():
    spreads = [Spread("a", {"x": 0.1, "y": 0.1, "z": 0.9}), Spread("b", {"x": 0.5}, 0)]
    figure = spread_figure(spreads, "accuracy")
    first, second = dots(figure)
    assert (len(first), len(second)) == (3, 1)
    step = (0.9 - 0.1) / 80
    assert sorted(first[:, 0]) == pytest.approx([0.1, 0.1, 0.9], abs=step)
    assert len({tuple(dot) for dot in first.tolist()}) == 3  # equal ones are stacked
    assert figure.axes[0].get_xlabel() == "accuracy"
    assert titles(figure)[:2] == ["a: 3 merchants, x has the lowest, 0.1000", "a: mean 0.3667"]
    assert {"a", "mean 0.367", " x"} <= {text.get_text() for text in figure.axes[0].texts}


def test_a_dot_stands_for_several_merchants_where_there_are_many():
    many = {f"m{place}": 0.1 if place < 800 else 0.9 for place in range(880)}
    figure = spread_figure([Spread("a", many)], "accuracy")
    assert figure.axes[0].get_xlabel() == "accuracy (a dot is 100 merchants)"
    (found,) = dots(figure)
    assert len(found) == 8 + 1


def test_merchants_that_are_all_equal_can_be_drawn():
    (found,) = dots(spread_figure([Spread("a", {"x": 0.5, "y": 0.5})], "accuracy"))
    assert found[:, 0] == pytest.approx([0.5, 0.5], abs=0.01)


LONG = [Spread("x" * LONGEST, {"m1": 0.1, "m2": 0.5}), Spread("labels only, no teacher", {"m1": 0.2, "m2": 0.9})]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: values_figure([Value("x" * LONGEST, 0.5, 0.1), Value("server alone", 0.6)], "quality"),
        lambda: learning_figure([LearningCurve("x" * LONGEST, [(1, 0.1, None), (2, 0.3, None)])], {"a": 0.2}, "y"),
        lambda: traffic_figure({"x" * LONGEST: (3.0, 0.5, 0), "b": (9.0, 0.6, 1)}, {"all data pooled": 0.4}, "y"),
        lambda: spread_figure(LONG, "accuracy"),
    ],
    ids=["values", "learning", "traffic", "spread"],
)
def test_on_a_telephone_every_chart_is_drawn_narrower_and_nothing_is_outside(draw):
    figures = []

    def kept():
        figures.append(draw())
        return figures[-1]

    page = responsive(kept, "chart", "title")
    assert page.count("<svg") == 2 and page.count('class="narrow"') == 1
    assert [figure.get_figwidth() for figure in figures] == [WIDTH, NARROW_WIDTH]
    for figure in figures:
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert box.x0 > -0.02 and box.x1 < figure.get_figwidth() + 0.02
        assert figure.axes[0].get_position().width > 0.2
    assert draw().get_figwidth() == WIDTH, "the width is set back"


@pytest.mark.parametrize("name", ["$5_$ Store", r"A$\shop$"])
def test_dollar_signs_in_names_are_no_formulas(name):
    for figure in (
        values_figure([Value(name, 0.5)], "x"),
        spread_figure([Spread("a", {name: 0.5, "b": 0.6})], "x"),
        learning_figure([LearningCurve(name, [(1, 0.5, None)])], {name: 0.5}, "y"),
    ):
        assert any(name in title for title in titles(figure))


def test_a_curve_ends_with_the_first_seed_that_does():
    """The first of two seeds stops after round 3: a mean over the other alone would jump."""
    records = [
        {"federation": "m", "seed": seed, "round": number, "valid": {"auc": value}}
        for seed, rounds, value in ((0, 3, 0.9), (1, 6, 0.5))
        for number in range(1, rounds + 1)
    ]
    drawn = learning({"headline": "auc", "controls": {}}, records, "AUC", {"m": 0})
    found = set(re.findall(r"m, round (\d): ([\d.]+)", str(drawn)))
    assert found == {("1", "0.7000"), ("2", "0.7000"), ("3", "0.7000")}


def test_the_bytes_of_a_control_are_those_of_its_rounds():
    counted = {"bytes": {"downlink": 4e6, "uplink": 2e6}, "seeds": 1}
    summary = {"headline": "auc", "controls": {}, "merchants": 2, "answers": {"fedavg": counted}}
    row = {"auc": 0.5, "rounds": 5, "bytes": {"downlink_per_merchant_round": 1e6, "uplink_per_merchant_round": 1e6}}
    drawn = str(traffic(summary, [("FedAvg, no teacher", "fedavg", row)], "AUC", {}))
    assert "FedAvg, no teacher: 3 MB, 0.5000" in drawn
