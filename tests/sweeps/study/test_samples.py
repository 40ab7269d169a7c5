"""Data seeds, training seeds and test units of a study: which cells there are, and how they are averaged and paired."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.reporting.outcome import Outcome
from fed_distill.reporting.unit_scores import UNIT_SCORES, read_unit_scores, written
from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.report import write_findings
from fed_distill.sweeps.samples import UnitTable, sample_of
from fed_distill.sweeps.table import summary_cells

METHODS = {"name": "method", "key": "federation.method", "values": ["fedavg-kd", "fedmd"]}


def study_of(**changes):
    return Study.parse({"name": "splits", "axis": [METHODS], "base": {"federation": {"rounds": 5}}, **changes})


def test_every_data_seed_has_every_training_seed_and_controls_of_its_own():
    cells = expand(study_of(seeds=3, data_seeds=[4, 7]))
    assert len(cells) == 2 * 3 * (2 + 1)
    found = [(cell.experiment.data.seed, cell.experiment.seed) for cell in cells if cell.role == "controls"]
    assert found == [(4, 0), (4, 1), (4, 2), (7, 0), (7, 1), (7, 2)]
    assert len({cell.fingerprint for cell in cells}) == len(cells)
    assert cells[-1].title == "method=fedmd, data seed 7, seed 2"
    own = {cell.fingerprint: cell.experiment.data.seed for cell in cells}
    assert all(own[cell.controls] == cell.experiment.data.seed for cell in cells if cell.controls)


def test_without_data_seeds_the_bases_is_used():
    cells = expand(study_of(seeds=1, base={"data": {"seed": 5}}))
    assert {(cell.experiment.data.seed, cell.data_seed) for cell in cells} == {(5, None)}
    assert cells[-1].title == "method=fedmd, seed 0"


def test_a_tiny_study_has_one_data_seed_unless_they_are_kept():
    study = study_of(seeds=2, data_seeds=[4, 7])
    assert {cell.data_seed for cell in expand(study, tiny=True)} == {4}
    assert {cell.data_seed for cell in expand(study, tiny=True, kept=["data_seeds"])} == {4, 7}


def test_attacks_are_on_the_first_data_seed():
    cells = expand(study_of(seeds=2, data_seeds=[4, 7], audit={"seeds": 1}))
    assert {(cell.data_seed, cell.seed) for cell in cells if cell.attacks} == {(4, 0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_seeds": [1, 1]}, "listed twice"),
        (
            {"data_seeds": [1], "axis": [{"key": "data.seed", "name": "split", "values": [1, 2]}]},
            "'split' and data_seeds",
        ),
    ],
)
def test_data_seeds_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        study_of(**changes)


def stepped_down(p_values):
    """Holm's procedure as its paper states it: the k-th smallest of m times m - k + 1, never falling."""
    ordered = sorted(p_values, key=p_values.get)
    products = [min(1.0, (len(ordered) - place) * p_values[name]) for place, name in enumerate(ordered)]
    return {name: max(products[: place + 1]) for place, name in enumerate(ordered)}


def frame(rows):
    return pd.DataFrame([{"run.headline": "ndcg@10", **row} for row in rows])


def test_a_sample_is_by_data_seed_and_in_order_of_seeds():
    cells = [(1, 1, 0.4), (0, 0, 0.1), (0, 1, 0.2), (1, 0, 0.3)]
    rows = frame([{"data_seed": d, "seed": s, "score": x, "fingerprint": f"{d}{s}"} for d, s, x in cells])
    assert [part.tolist() for part in sample_of(rows, "score")] == [[[0.1], [0.2]], [[0.3], [0.4]]]
    units = UnitTable({f"{d}{s}": {"score": [x, x + 0.5]} for d, s, x in cells})
    assert sample_of(rows, "score", units)[1].tolist() == [[0.3, 0.8], [0.4, 0.9]]
    assert sample_of(rows.assign(score=[None, 1.0, 1.0, 1.0]), "score") is None


@pytest.mark.parametrize(
    ("options", "factor"), [({}, 1 / 2), ({"world_seed": 0}, 1 / 2 + 0.2 / 0.7)], ids=["marketplaces", "splits of one"]
)
def test_intervals_over_splits_of_the_same_rows_are_wider(options, factor, write_cells, tmp_path):
    """Student's for two data seeds, with the correction of Nadeau and Bengio (2003) where they share rows."""
    data = {"dataset": "marketplace", "options": options, "valid_share": 0.1, "test_share": 0.2}
    study = study_of(seeds=1, data_seeds=[4, 7], base={"federation": {"rounds": 5}, "data": data})
    cells, places = expand(study), Places(tmp_path / "splits")
    write_cells(cells, places)
    results = results_table(study, cells, places)
    results = results.assign(score=results["data_seed"].map({4: 0.90, 7: 0.92}))
    found = combinations_table(study, results)["score_interval"]
    assert found.tolist() == pytest.approx([stats.t.ppf(0.975, 1) * 0.02 / 2**0.5 * factor**0.5] * 2)


def test_a_cell_without_scores_by_unit_leaves_means_for_all():
    rows = frame([{"data_seed": d, "seed": 0, "score": 0.5, "fingerprint": str(d)} for d in (0, 1)])
    found = sample_of(rows, "score", UnitTable({"0": {"score": [0.25, 0.75]}}))
    assert [part.tolist() for part in found] == [[[0.5]], [[0.5]]]


def test_scores_by_unit_are_read_back(tmp_path):
    outcome = Outcome("server", "control", 3, {"ndcg@10": 0.5}, by_unit=[0.25, 0.75])
    (tmp_path / UNIT_SCORES).write_text(written([outcome, Outcome("local", "control", 3, {})]))
    (row,) = read_unit_scores(tmp_path)
    assert (row.kind, row.name, row.seed, row.scores) == ("control", "server", 3, [0.25, 0.75])
    (tmp_path / UNIT_SCORES).write_text("{}")
    with pytest.raises(CheckpointError, match=UNIT_SCORES):
        read_unit_scores(tmp_path)


@pytest.fixture
def measured(write_cells, tmp_path):
    """A study of one seed whose cells have scores by unit: study, cells, places, scores by (row, unit)."""
    study = study_of(
        seeds=1,
        base={"federation": {"rounds": 5}, "controls": ["student", "server", "fedavg"]},
        axis=[{**METHODS, "values": ["fedavg-kd", "fedmd", "feddf"]}],
        baseline=["method", "fedmd"],
    )
    cells, places = expand(study), Places(tmp_path / "splits")
    write_cells(cells, places)
    rng = np.random.default_rng(0)
    server = rng.uniform(0.5, 1.0, 80)
    levels = {"student": -0.05, "server": 0.0, "fedavg": 0.01, "fedavg-kd": 0.03, "fedmd": 0.02, "feddf": 0.01}
    scores = {name: server + (level and rng.normal(level, 0.06, 80)) for name, level in levels.items()}

    def outcome(name, kind):
        return Outcome(name, kind, 0, {}, by_unit=scores[name].tolist())

    for cell in cells:
        own = [outcome(cell.experiment.federation.method, "federation")]
        own += [outcome(name, "control") for name in cell.experiment.controls]
        folder = places.run(cell.fingerprint)
        (folder / UNIT_SCORES).write_text(written(own))
        summary = json.loads((folder / "summary.json").read_text())
        summary["student"]["ndcg@10"] = float(scores[cell.experiment.federation.method].mean())
        for name in summary["controls"]:
            summary["controls"][name]["ndcg@10"] = float(scores[name].mean())
        (folder / "summary.json").write_text(json.dumps(summary))
    return study, cells, places, scores


def test_rows_are_paired_with_controls_unit_by_unit(measured):
    study, cells, places, scores = measured
    units = UnitTable.read(cells, places, study.base.controls)
    table = combinations_table(study, results_table(study, cells, places, units), units).set_index("method")
    assert set(table["covers"]) == {"test data"}
    for name in ("server", "fedavg"):
        expected = {method: stats.ttest_rel(scores[method], scores[name]) for method in table.index}
        for method, found in expected.items():
            interval = found.confidence_interval()
            row = table.loc[method]
            assert row[f"above_{name}"] == pytest.approx((interval.low + interval.high) / 2, abs=1e-6)
            assert row[f"above_{name}_interval"] == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)
        adjusted = stepped_down({method: found.pvalue for method, found in expected.items()})
        assert table[f"above_{name}_p"].to_dict() == pytest.approx(adjusted, rel=1e-3)


def test_a_gain_is_paired_with_the_baselines_cell_unit_by_unit(measured):
    study, cells, places, scores = measured
    units = UnitTable.read(cells, places, study.base.controls)
    table = combinations_table(study, results_table(study, cells, places, units), units).set_index("method")
    found = {name: stats.ttest_rel(scores[name], scores["fedmd"]) for name in ("fedavg-kd", "feddf")}
    for name, test in found.items():
        interval = test.confidence_interval()
        assert table.loc[name, "gain"] == pytest.approx((interval.low + interval.high) / 2, abs=1e-6)
        assert table.loc[name, "gain_interval"] == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)
    adjusted = stepped_down({name: test.pvalue for name, test in found.items()})
    assert table["gain_p"].drop("fedmd").to_dict() == pytest.approx(adjusted, rel=1e-3)
    assert table.loc["fedmd", ["gain", "gain_interval", "gain_p"]].isna().all()


def test_a_baseline_on_other_test_data_is_not_paired_unit_by_unit(measured, write_cells, tmp_path):
    study, cells, places, scores = measured
    units = UnitTable.read(cells, places, study.base.controls)
    results = results_table(study, cells, places, units)
    assert results["same_test_data"].tolist() == [bool(isinstance(one, str)) for one in results["baseline"]]
    others = combinations_table(study, results.assign(same_test_data=False), units).set_index("method")
    assert others.loc["feddf", "gain"] == pytest.approx(np.mean(scores["feddf"] - scores["fedmd"]), abs=1e-6)
    assert others[["gain_interval", "gain_p"]].isna().all(axis=None)
    split = {"name": "split", "key": "data.seed", "values": [1, 2]}
    moved = study_of(seeds=1, axis=[split], baseline=["split", "1"], base=study.base.model_dump(mode="json"))
    elsewhere = Places(tmp_path / "moved")
    write_cells(expand(moved), elsewhere)
    found = results_table(moved, expand(moved), elsewhere).set_index("split")
    assert isinstance(found.loc["2", "baseline"], str) and not found.loc["2", "same_test_data"]


def test_cells_without_scores_by_unit_are_counted_on_the_page(measured):
    study, cells, places, _ = measured

    def page():
        return write_findings(study, cells, places, "fed-distill study").report.read_text(encoding="utf-8")

    assert "finished cells have no" not in page()
    (places.run(cells[-1].fingerprint) / UNIT_SCORES).unlink()
    assert f"1 of {len(cells)} finished cells have no scores by test unit" in page()
    for cell in cells[:-1]:
        (places.run(cell.fingerprint) / UNIT_SCORES).unlink()
    assert f"{len(cells)} of {len(cells)} finished cells have no" in page()
    assert "headline metric over" not in page()


def test_the_table_shows_what_the_teacher_adds_with_a_minus(measured):
    study, cells, places, scores = measured
    units = UnitTable.read(cells, places, study.base.controls)
    results = results_table(study, cells, places, units)
    header, *lines = summary_cells(study, results, combinations_table(study, results, units), units)
    (student,) = [line for line in lines if line[0] == "labels only, no teacher"]
    found = student[header.index("above server")]
    assert found.startswith(f"−{np.mean(scores['server'] - scores['student']):.4f} ± ")
    assert all(len(line) == len(header) for line in lines)


def test_the_page_says_what_intervals_cover(measured):
    study, cells, places, _ = measured
    page = write_findings(study, cells, places, "fed-distill study").report.read_text(encoding="utf-8")
    assert "that of the headline metric over test data" in page
