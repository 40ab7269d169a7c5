"""Charts put marks where their values belong and names where they can be read."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from fed_distill.reporting.charts import Line, Mark, Point, Spread, interval_plot, line_chart, scatter, stacked_dots


def parsed(chart):
    return ElementTree.fromstring(str(chart))


def dots(chart):
    return [(float(dot.get("cx")), float(dot.get("cy"))) for dot in parsed(chart).iter("circle")]


def test_equal_steps_in_value_are_equal_steps_on_the_page():
    chart = interval_plot([Mark("a", 0.1), Mark("b", 0.2), Mark("c", 0.4)], "x", "t")
    (a, _), (b, _), (c, _) = dots(chart)
    assert c - b == pytest.approx(2 * (b - a), abs=0.3)


def test_a_whisker_reaches_from_end_to_end_of_the_interval():
    root = parsed(interval_plot([Mark("a", 0.5, 0.1), Mark("b", 0.6), Mark("c", 0.4)], "x", "t"))
    whisker = next(line for line in root.iter("line") if "whisker" in line.get("class"))
    centers = [float(dot.get("cx")) for dot in root.iter("circle")]
    assert float(whisker.get("x2")) == pytest.approx(centers[1], abs=0.2)
    assert float(whisker.get("x1")) == pytest.approx(centers[2], abs=0.2)


def test_greater_values_are_higher():
    chart = line_chart([Line("a", [(1, 0.1, None), (2, 0.3, None)])], [], "x", "y", "t")
    (x1, y1), (x2, y2) = dots(chart)
    assert x2 > x1
    assert y2 < y1


def test_a_line_of_one_round_and_equal_values_can_be_drawn():
    chart = line_chart([Line("a", [(1, 0.5, None)]), Line("b", [(1, 0.5, None)])], [Mark("c", 0.5)], "x", "y", "t")
    assert dots(chart)[0] == dots(chart)[1]


def test_labels_at_the_edge_do_not_cover_each_other():
    lines = [Line(f"federation {n}", [(1, 0.5, None), (2, 0.5 + n * 1e-6, None)], n) for n in range(6)]
    root = parsed(line_chart(lines, [Mark("server", 0.5)], "x", "y", "t"))
    heights = sorted(float(text.get("y")) for text in root.iter("text") if "label" in text.get("class"))
    assert len(heights) == 7
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(heights))


def test_labels_of_near_points_do_not_cover_each_other():
    root = parsed(scatter([Point("a", 1.0, 0.5), Point("b", 1.01, 0.5), Point("c", 9.0, 0.6)], [], "x", "y", "t"))
    near = {text.text: float(text.get("y")) for text in root.iter("text") if "label" in text.get("class")}
    assert abs(near["a"] - near["b"]) >= 14.9


def test_every_merchant_is_a_dot_where_there_are_few():
    chart = stacked_dots([Spread("a", [0.1, 0.1, 0.9]), Spread("b", [0.5])], "accuracy", "t")
    assert len(dots(chart)) == 4
    assert "a dot is" not in str(chart)


def test_a_dot_stands_for_several_merchants_where_there_are_many():
    chart = stacked_dots([Spread("a", [0.1] * 800 + [0.9] * 80)], "accuracy", "t")
    assert "a dot is 100 merchants" in str(chart)
    assert len(dots(chart)) == 8 + 1


def test_names_are_escaped_and_long_ones_cut_with_the_whole_in_a_tooltip():
    name = "<i>" + "x" * 40
    root = parsed(interval_plot([Mark(name, 0.5)], "x", "t"))
    label = next(text for text in root.iter("text") if "name" in text.get("class"))
    assert label.text == name[:25] + "…"
    assert label.find("title").text == name


def test_ticks_are_round_numbers():
    chart = str(interval_plot([Mark("a", 0.9544), Mark("b", 0.9679)], "x", "t"))
    assert re.findall(r'class="tick"[^>]*>([\d.]+)<', chart) == ["0.955", "0.960", "0.965"]
