"""Controls of a study whose axes change them: lines above the combinations that they are compared with."""

import json

import pytest

from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.control_groups import control_groups
from fed_distill.sweeps.findings import answer
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.table import summary_cells

LABELS = "labels only, no teacher"
AXES = [
    {"name": "data", "key": "training.server.epochs", "values": [1, 2]},  # as other data do, it changes the controls
    {"name": "method", "key": "federation.method", "values": ["fedavg-kd", "fedmd"]},
]


@pytest.fixture
def measured(tables, write_cells, tmp_path):
    """The study's results; cells of the second data set are measured by macro-F1."""

    def measured(axes, headline="ndcg@10"):
        study = Study.parse({**tables, "axis": axes, "exclude": []})
        cells, places = expand(study), Places(tmp_path / f"{headline}-{len(axes)}")
        write_cells(cells, places)
        for cell in cells:
            path = places.run(cell.fingerprint) / "summary.json"
            if cell.experiment.training.server.epochs == 2:
                path.write_text(json.dumps(json.loads(path.read_text()) | {"headline": headline}))
        results = results_table(study, cells, places)
        return study, results, combinations_table(study, results)

    return measured


def lines_of(study, results, combinations):
    header, *lines = summary_cells(study, results, combinations)
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_each_data_set_has_its_controls_above_its_methods(measured):
    lines = lines_of(*measured(AXES))
    assert [line["data"] for line in lines] == ["1"] * 7 + ["2"] * 7
    for first in (0, 7):
        own = [line["method"] for line in lines[first : first + 7]]
        assert own[0] == LABELS and own[5:] == ["fedavg-kd", "fedmd"]
        assert lines[first]["above server"] == "−0.0500 ± 0.0000"  # 0.85 and 0.90, with the same luck
        assert lines[first]["cells"] == "" and lines[first + 5]["cells"] == "3 of 3"
    assert "metric" not in lines[0] and "server alone" not in lines[0]


def test_metrics_that_differ_are_named_in_each_line(measured):
    study, results, combinations = measured(AXES, "macro_f1")
    lines = lines_of(study, results, combinations)
    assert [line["metric"] for line in lines] == ["nDCG@10"] * 7 + ["macro-F1"] * 7
    kept = [line for line in lines if line["method"] == LABELS]
    assert [line["score"][:6] for line in kept] == ["0.8510", "0.5510"]  # macro-F1 is 0.3 below nDCG@10
    assert answer(combinations) == (
        "The cells of this study have different metrics: nDCG@10, macro-F1. Compare rows of one metric."
    )


def test_a_combination_with_controls_of_its_own_has_a_column(measured):
    study, results, combinations = measured(AXES[:1])
    (group,) = control_groups(study, results, combinations)
    assert group.controls.empty and len(group.rows) == 2
    assert all(line["server alone"].startswith("0.9010") for line in lines_of(study, results, combinations))


def test_groups_are_told_by_controls_and_not_by_one_axis(measured):
    axes = [AXES[1], {"name": "words", "key": "training.pooled.epochs", "values": [1, 2]}, AXES[0]]
    study, results, combinations = measured(axes)
    found = [(dict(group.labels), group.place) for group in control_groups(study, results, combinations)]
    expected = [{"words": one, "data": two} for one in ("1", "2") for two in ("1", "2")]
    assert [labels for labels, _ in found] == expected and {place for _, place in found} == {"method"}
