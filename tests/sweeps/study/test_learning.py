"""Learning curves are means of the cells' validated rounds, against the bytes sent by then."""

import json

import pytest

from fed_distill.reporting.charts import TIP
from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.figures import learning_figure
from fed_distill.sweeps.gallery import draw_charts
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.learning import Learning, Step, ValidationCurve, read_learning
from fed_distill.sweeps.places import Places

NAMES = {"server": "alone", "local": "own"}
FEDAVG, FEDMD = [0.90, 0.92, None, 0.94], [0.80, 0.81]


def record(federation, number, value, sent=250_000.0):
    return {
        "seed": 0,
        "federation": federation,
        "round": number,
        "total_bytes": {"uplink": 6 * sent},  # of the sham's six merchants
        **({} if value is None else {"valid": {"ndcg@10": value}}),
    }


@pytest.fixture
def learned(tables, write_cells, tmp_path):
    """A function that reads the curves of two methods on two seeds, whose second seed is 0.02 better."""
    tables |= {"seeds": 2, "axis": [{"name": "method", "key": "federation.method", "values": ["fedavg-kd", "fedmd"]}]}
    tables.pop("exclude")
    study = Study.parse(tables)
    cells, places = expand(study), Places(tmp_path / "costs")
    write_cells(cells, places)
    for cell in cells:
        if cell.role == "cell":
            method = cell.labels["method"]
            values = FEDAVG if method == "fedavg-kd" else FEDMD
            records = [record("student", 1, 0.1)]  # of a control, which is none of the cell's rounds
            records += [
                record(method, at + 1, None if value is None else value + 0.02 * cell.seed)
                for at, value in enumerate(values)
            ]
            lines = "".join(json.dumps(one) + "\n" for one in records)
            (places.run(cell.fingerprint) / "metrics.jsonl").write_text(lines, encoding="utf-8")

    def read():
        results = results_table(study, cells, places)
        return read_learning(study, results, combinations_table(study, results), places, NAMES)

    read.study, read.cells, read.places = study, cells, places
    return read


def test_a_step_is_the_mean_over_the_cells_and_bytes_add_up_over_all_rounds(learned):
    kd, md = learned().curves
    assert (kd.series, kd.number, md.series, md.number) == ("fedavg-kd", 0, "fedmd", 1)
    assert [step.round for step in kd.steps] == [1, 2, 4]
    assert [step.value for step in kd.steps] == pytest.approx([0.91, 0.93, 0.95])
    assert [step.megabytes for step in kd.steps] == pytest.approx([0.25, 0.5, 1.0])
    assert [step.value for step in md.steps] == pytest.approx([0.81, 0.82])


def test_levels_are_controls_with_validation_scores(learned, sham):
    levels = learned().levels
    assert list(levels) == ["alone"]  # the sham's local control was not validated
    (base,) = {sham.validations(cell.experiment)["server"]["ndcg@10"] for cell in learned.cells}
    assert levels["alone"] == pytest.approx(base)


def test_a_round_that_one_cell_lacks_and_a_series_with_a_missing_cell_are_left_out(learned):
    places = learned.places
    cells = {(cell.labels["method"], cell.seed): cell for cell in learned.cells if cell.role == "cell"}
    metrics = places.run(cells["fedavg-kd", 1].fingerprint) / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    (places.run(cells["fedmd", 0].fingerprint) / "summary.json").unlink()
    (curve,) = learned().curves
    assert curve.series == "fedavg-kd"
    assert [step.round for step in curve.steps] == [1, 2]


def test_over_budgets_of_one_series_there_are_no_curves(finished):
    results = results_table(finished.study, finished.cells, finished.places)
    combinations = combinations_table(finished.study, results)
    assert read_learning(finished.study, results, combinations, finished.places, NAMES) == Learning((), {})


def test_the_figure_marks_the_last_round_and_is_drawn_only_where_something_is_learned(learned, tmp_path):
    steps = [Step(1, 0.25, 0.91), Step(2, 0.5, 0.93)]
    curves = [ValidationCurve("a", 0, steps), ValidationCurve("b", 1, [Step(1, 0.001, 0.92)])]
    (axes,) = learning_figure(curves, {"server alone": 0.90, "all data pooled": 0.97}, "quality").axes
    assert axes.get_xscale() == "log"
    assert {line.get_gid().removeprefix(TIP) for line in axes.lines if line.get_gid()} == {
        "a, round 2: 0.9300, 0.5 MB",
        "b, round 1: 0.9200, 0.001 MB",
        "server alone: 0.9000",
        "all data pooled: 0.9700",
    }
    results = results_table(learned.study, learned.cells, learned.places)
    combinations = combinations_table(learned.study, results)
    for drawn, known in ((curves, True), (curves[1:], False)):
        charts = draw_charts(results, combinations, Learning(drawn, {}), tmp_path / "figures")
        assert ("learning" in [chart.name for chart in charts]) is known
