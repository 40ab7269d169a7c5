"""The chart of the overlap shows each arm's shares by propensity, on wide and narrow pages."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from fed_distill.errors import CheckpointError
from fed_distill.reporting.campaign_effect import EFFECTS
from fed_distill.reporting.charts import NARROW_WIDTH, WIDTH
from fed_distill.reporting.overlap_chart import PropensityHistogram, overlap, overlap_figure, read_overlap
from fed_distill.reporting.report import render

FOUND = PropensityHistogram(
    edges=[0.0, 0.25, 0.5, 0.75, 1.0],
    treated=[0, 1, 2, 1],
    control=[30, 10, 0, 0],
    clipped=0.125,
    effective=(3.0, 25.0),
)


def test_treated_are_shares_upwards_and_others_downwards():
    (axes,) = overlap_figure(FOUND).axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    treated, others = [(0.375, 0.25), (0.625, 0.5), (0.875, 0.25)], [(0.125, -0.75), (0.375, -0.25)]
    assert bars == [pytest.approx(bar) for bar in (*treated, *others)]
    assert {text.get_text() for text in axes.texts} == {"treated", "others"}
    axes.figure.draw_without_rendering()
    assert not [label.get_text() for label in axes.get_yticklabels() if "\N{MINUS SIGN}" in label.get_text()]


def test_every_bar_tells_its_numbers_on_wide_and_narrow_pages():
    drawn = overlap(FOUND)
    root = ElementTree.fromstring(f"<div>{drawn}</div>")
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    told = "others, propensity 0 to 0.25: 30 of 40 (75.0\N{NARROW NO-BREAK SPACE}%)"
    assert titles.count(told) == 2
    widths = [float(element.get("viewBox").split()[2]) for element in root.iter() if element.tag.endswith("svg")]
    assert widths == [pytest.approx(72 * WIDTH), pytest.approx(72 * NARROW_WIDTH)]


def test_a_report_has_it_if_the_run_has_arms(summary):
    page = render(summary, [], "", "runs/a", arms=FOUND)
    assert 'id="overlap"' in page and "12.5\N{NARROW NO-BREAK SPACE}%" in page
    assert 'id="overlap"' not in render(summary, [], "", "runs/a")


def test_it_is_read_from_the_file_of_effects(tmp_path):
    assert read_overlap(tmp_path) is None
    (tmp_path / EFFECTS).write_text(json.dumps({"customers": {}, "overlap": FOUND.model_dump()}), encoding="utf-8")
    assert read_overlap(tmp_path) == FOUND
    (tmp_path / EFFECTS).write_text(json.dumps({"customers": {}}), encoding="utf-8")
    assert read_overlap(tmp_path) is None, "all customers are in one arm"


@pytest.mark.parametrize(
    "wrong",
    [{"treated": [1]}, {"edges": [0.0, 0.5, 0.25, 0.75, 1.0]}, {"control": [0, 0, 0, 0]}, {"treated": [-1, 1, 2, 2]}],
)
def test_a_damaged_file_is_named(tmp_path, wrong):
    damaged = {"overlap": {**FOUND.model_dump(), **wrong}}
    (tmp_path / EFFECTS).write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{EFFECTS} is damaged: restore a copy of it, or delete it and resume"):
        read_overlap(tmp_path)
