"""The parts of every chart: names that can be read, marks that can be told apart, and SVG that stands in any page."""

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import numpy as np
import pytest

from fed_distill.reporting.charts import (
    INK,
    LABEL_GAP,
    LONGEST,
    MARK,
    Look,
    annotate_cut,
    cut_low,
    draw_levels,
    draw_line,
    draw_mark,
    empty_figure,
    inline,
    label_right,
    moved_apart,
    shortened,
    styled,
    write_figure,
)

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = ("fedmd", '<i>"Tom" & Söhne</i>')


@pytest.fixture
def drawn():
    """A function that draws a figure of two series, a level and names."""

    @styled
    def draw():
        figure, axes = empty_figure("quality")
        labels = draw_levels(axes, {"server alone": 0.9})
        for number, name in enumerate(NAMES):
            values = [0.91 + 0.01 * number, 0.92 + 0.01 * number]
            draw_line(axes, [1, 2], values, [(value - 0.005, value + 0.005) for value in values], Look(number))
            for x, value in zip((1, 2), values, strict=True):
                draw_mark(axes, x, value, MARK, Look(number), tip=f"{name}, round {x}: {value:.4f}")
            labels.append((values[-1], name, Look(number).color))
        label_right(axes, labels)
        return figure

    return draw


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_at_the_edge_cover_no_other_and_point_to_their_values(scale):
    _, axes = empty_figure("quality")
    axes.set_yscale(scale)
    axes.set_ylim(0.1, 10.0)
    values = [0.1, 1.0, 1.0 + 1e-6, 1.0 + 2e-6, 10.0]
    label_right(axes, [(value, f"series {place}", INK) for place, value in enumerate(values)])
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert min(above - below for below, above in pairwise(heights)) > LABEL_GAP - 1e-9
    assert heights[-1] <= 1.0
    expected = [(value - 0.1) / 9.9 if scale == "linear" else (math.log10(value) + 1) / 2 for value in values]
    assert [text.xy[1] for text in axes.texts] == pytest.approx(expected)


def test_long_names_have_room_and_the_longest_are_cut_with_the_whole_in_a_tooltip():
    names = ["short", "x" * LONGEST, "y" * (LONGEST + 9)]
    figure, axes = empty_figure("quality")
    axes.plot([0, 1], [0, 1])
    label_right(axes, [(0.5, name, INK) for name in names])
    assert [text.get_text() for text in axes.texts] == ["short", "x" * LONGEST, "y" * (LONGEST - 1) + "…"]
    figure.draw_without_rendering()
    ends = [text.get_window_extent().x1 for text in axes.texts]
    assert max(ends) <= figure.bbox.x1
    assert f"<title>{names[2]}</title>" in inline(figure, "a", "b")
    assert shortened(names[1]) == names[1]


def test_a_line_and_its_band_are_where_their_values_are(drawn):
    (axes,) = drawn().axes
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.905), pytest.approx(0.925))
    lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert [list(line) for line in lines] == [[0.91, 0.92], pytest.approx([0.92, 0.93])]


def test_values_far_below_the_levels_are_cut_off_and_told_as_numbers():
    levels, values = {"low": 0.90, "high": 0.97}, [0.2, 0.21, 0.3, 0.95]
    _, axes = empty_figure("quality")
    axes.plot(range(4), values)
    bottom = cut_low(axes, levels, values)
    assert bottom == pytest.approx(0.90 - (0.97 - 0.90))
    assert axes.get_ylim()[0] == bottom and 0.97 < axes.get_ylim()[1] < 1.0
    annotate_cut(axes, bottom, [(x, value, 0) for x, value in zip((0, 0, 2, 3), values, strict=True)])
    told = {text.get_text(): text.xyann for text in axes.texts}
    assert set(told) == {"↓ 0.200", "↓ 0.210", "↓ 0.300"}
    assert told["↓ 0.200"] != told["↓ 0.210"]  # of one place: one above the other
    assert cut_low(axes, {"low": 0.9}, values) == -math.inf


def test_places_are_moved_only_where_they_are_too_near_and_then_only_sideways():
    places = np.array([[0.0, 0.0], [4.0, 6.0], [100.0, 0.0], [50.0, 50.0], [50.0, 50.0], [50.0, 50.0]])
    moved = moved_apart(places, 10.0)
    assert moved[:, 1].tolist() == places[:, 1].tolist()
    assert moved[:2, 0] == pytest.approx([-2.0, 6.0], abs=1e-2)
    assert moved[2, 0] == 100.0
    assert sorted(moved[3:, 0]) == pytest.approx([40.0, 50.0, 60.0], abs=0.1)


def test_a_crowd_at_the_edge_stays_within_the_axes():
    places = np.zeros((8, 2))
    moved = moved_apart(places, 10.0, low=-5.0, high=1000.0)
    assert moved[:, 0].min() >= -5.0
    assert min(math.dist(one, other) for one, other in combinations(moved, 2)) > 9.0


def test_the_files_are_a_picture_and_a_drawing_with_text(drawn, tmp_path):
    write_figure(drawn(), tmp_path, "accuracy", "Quality")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(PNG)
    drawing = (tmp_path / "accuracy.svg").read_text(encoding="utf-8")
    texts = [text.text for text in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert {*NAMES, "server alone", "quality"} <= set(texts)


def test_every_mark_and_level_has_its_value_in_a_tooltip(drawn):
    titles = [title.text for title in ElementTree.fromstring(inline(drawn(), "a", "b")).iter() if "title" in title.tag]
    values = [f"{name}, round {x}: {0.90 + 0.01 * (x + n):.4f}" for n, name in enumerate(NAMES) for x in (1, 2)]
    assert sorted(titles) == sorted(["server alone: 0.9000", *values])


def test_the_inline_drawing_follows_the_theme_and_shares_no_id(drawn):
    svg = inline(drawn(), "accuracy", 'Quality & "cost"')
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'Quality & "cost"'
    assert root.get("width") is None
    assert "var(--c0)" in svg
    assert not re.search(r"#(?!accuracy)[0-9a-f]{6}\b", svg)
    assert "DejaVu" not in svg
    ids = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (svg, inline(drawn(), "other", "Other"))]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"""(?:href="#|url\(#)([^")]*)""", svg)) <= ids[0]


def test_the_same_figure_is_written_the_same_again(drawn, tmp_path):
    def written():
        write_figure(drawn(), tmp_path, "accuracy", "x")
        return (tmp_path / "accuracy.svg").read_bytes(), (tmp_path / "accuracy.png").read_bytes()

    assert written() == written()
