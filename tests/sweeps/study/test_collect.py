"""The tables hold what the runs wrote, means and intervals as computed by hand, and nothing that no run said."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from fed_distill.errors import CheckpointError
from fed_distill.sweeps.collect import (
    FAILED,
    FINISHED,
    MISSING,
    _adjust,
    _controls,
    combinations_table,
    flattened,
    results_table,
)
from fed_distill.sweeps.table import summary_cells


@pytest.fixture
def results(finished):
    return results_table(finished.study, finished.cells, finished.places)


def pick(table, **labels):
    mask = np.logical_and.reduce([table[name] == label for name, label in labels.items()])
    return table[mask]


def test_a_row_is_a_cell_with_its_labels_and_what_its_run_measured(finished, results, sham):
    assert len(results) == len(finished.cells)
    row = pick(results, method="fedmd", unit="example", epsilon="8", seed=1).iloc[0]
    score = 0.92 - 0.06 / 9 - 0.001
    assert row["status"] == FINISHED
    assert row["run.headline"] == "ndcg@10"
    assert row["score"] == row["ndcg@10"] == pytest.approx(score)
    assert row["auc"] == pytest.approx(score + 0.01)
    assert (row["worst_merchant"], row["worst_merchant_accuracy"]) == ("shop-3", pytest.approx(score - 0.4))
    assert row["retention"] == pytest.approx(score / 0.96)
    assert (row["downlink_bytes"], row["uplink_bytes"], row["sent_bytes"]) == (50_000, 50_000, 5 * 50_000)
    assert row["total_bytes"] == 5 * 100_000
    assert (row["run.rounds"], row["run.merchants"], row["run.examples"]) == (5, 6, 4440)
    assert (row["seconds"], row["run.seconds"]) == (50, 60)


def test_a_row_is_compared_with_the_controls_of_its_own_seed(results):
    row = pick(results, method="fedmd", unit="example", epsilon="inf", seed=2).iloc[0]
    server, pooled, score = 0.90 + 0.003, 0.97 + 0.003, 0.92 + 0.003
    assert row["control.server"] == pytest.approx(server)
    assert row["control.fedavg"] == pytest.approx(0.94 + 0.003)
    assert row["above_server"] == pytest.approx(score - server)
    assert row["above_fedavg"] == pytest.approx(0.92 - 0.94)
    assert math.isnan(row["gap_closed"])  # one seed without scores by unit does not show that pooling is worth it
    assert pooled == row["control.pooled"]


def test_the_gap_closed_is_a_ratio_of_means_over_the_seeds(finished, results):
    row = pick(combinations_table(finished.study, results), method="fedmd", unit="example", epsilon="inf").iloc[0]
    assert row["gap_closed"] == pytest.approx((0.92 - 0.90) / (0.97 - 0.90))


def test_privacy_and_audits_are_flattened(results):
    row = pick(results, method="fedmd", unit="example", epsilon="8", seed=2).iloc[0]
    assert row["privacy.unit"] == "example"
    assert row["privacy.epsilon"] == pytest.approx(7.992)
    assert row["privacy.delta"] == pytest.approx(3e-4)
    assert (row["privacy.noise_multiplier.least"], row["privacy.noise_multiplier.most"]) == (0.8, 1.9)
    assert row["privacy.reveals"] == "how many examples: with noise; counted | its scores: exactly"
    assert (row["audit.auc"], row["audit.epsilon_lower_bound"]) == (pytest.approx(0.58), 0.4)
    assert row["audit.attacks.loss.tpr_at_1pct"] == 0.02
    free = pick(results, method="fedmd", epsilon="inf", seed=2).iloc[0]
    assert free["privacy.unit"] == "none"
    assert math.isnan(free["privacy.epsilon"])


def test_lists_are_one_text():
    flat = flattened({"a": {"b": 1, "c": [1, 2]}, "r": [{"what": "x", "how": "y"}, "z"]}, "p")
    assert flat == {"p.a.b": 1, "p.a.c": "1 | 2", "p.r": "x: y | z"}


def test_a_combination_has_means_and_t_intervals_over_its_seeds(finished, results):
    table = combinations_table(finished.study, results)
    row = pick(table, method="fedavg-kd", unit="merchant", epsilon="1").iloc[0]
    scores = np.array([0.95 - 0.09 / 2 + luck for luck in (0.001, -0.001, 0.003)])
    assert row["score"] == pytest.approx(scores.mean())
    half = student_t.ppf(0.975, 2) * scores.std(ddof=1) / math.sqrt(3)
    assert row["score_interval"] == pytest.approx(half)
    assert row["above_server"] == pytest.approx(0.05 - 0.045)
    assert row["above_server_interval"] == pytest.approx(0.0, abs=1e-9)  # the seed's luck is the same for both
    assert (row["seeds"], row["of"], row["series"]) == (3, 3, "fedavg-kd · merchant")
    assert row["privacy.delta"] == pytest.approx(3e-4)  # the largest of the seeds
    assert list(table["epsilon"]) == ["1", "8", "inf"] * 3


def test_cells_that_failed_or_were_not_run_are_rows_that_say_so(finished):
    cells, places = finished.cells, finished.places
    labels = {"method": "fedavg-kd", "unit": "example", "epsilon": "8"}
    failed, missing, _ = [cell for cell in cells if dict(cell.labels) == labels]
    for cell in (failed, missing):
        (places.run(cell.fingerprint) / "summary.json").unlink()
    places.failure(failed.fingerprint).write_text("no label\n", encoding="utf-8")
    results = results_table(finished.study, cells, places)
    rows = pick(results, **labels)
    assert list(rows["status"]) == [FAILED, MISSING, FINISHED]
    assert rows["reason"].iloc[0] == "no label"
    assert rows["score"].isna().tolist() == [True, True, False]
    row = pick(combinations_table(finished.study, results), **labels).iloc[0]
    assert (row["seeds"], row["of"]) == (1, 3)
    assert row["score"] == pytest.approx(rows["score"].iloc[2])
    assert math.isnan(row["score_interval"])


def test_combinations_of_the_same_runs_are_one_hypothesis():
    """As the rows without privacy of several units are; by hand: two hypotheses of p = 0.01 and 0.03."""
    rows = [{"p": 0.01}, {"p": 0.03}, {"p": 0.01}, {"p": None}]
    _adjust(rows, "p", ["none", "example", "none", "failed"])
    assert [row["p"] for row in rows] == [0.02, 0.03, 0.02, None]


def test_without_its_controls_a_cell_has_no_gap_but_its_scores(finished):
    for cell in finished.cells:
        if cell.role == "controls":
            (finished.places.run(cell.fingerprint) / "summary.json").unlink()
    results = results_table(finished.study, finished.cells, finished.places)
    own = results[results["role"] == "cell"]
    assert own["score"].notna().all()
    assert own[["gap_closed", "above_server", "control.server"]].isna().all(axis=None)


def test_a_study_of_which_nothing_has_run_has_tables(finished, tmp_path):
    places = type(finished.places)(tmp_path / "elsewhere")
    results = results_table(finished.study, finished.cells, places)
    assert set(results["status"]) == {MISSING}
    table = combinations_table(finished.study, results)
    assert (table["seeds"] == 0).all()
    assert table["score"].isna().all()


def test_a_mean_that_one_seed_lacks_is_missing(finished):
    (cell, *_) = [cell for cell in finished.cells if cell.labels.get("epsilon") == "8"]
    path = finished.places.run(cell.fingerprint) / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["student"]["auc"] = None
    summary["student"]["worst_merchant"] = None
    path.write_text(json.dumps(summary), encoding="utf-8")
    results = results_table(finished.study, finished.cells, finished.places)
    row = pick(combinations_table(finished.study, results), **cell.labels).iloc[0]
    assert math.isnan(row["auc"])
    assert math.isnan(row["worst_merchant_accuracy"])
    assert not math.isnan(row["score"])


def test_students_that_merchants_keep_are_compared_with_the_global_one_at_the_same_merchants(finished):
    """Both columns are in the table only where a method has such students."""
    cells = [cell for cell in finished.cells if dict(cell.labels).get("epsilon") == "8"]
    before = results_table(finished.study, finished.cells, finished.places)
    header, *_ = summary_cells(finished.study, before, combinations_table(finished.study, before))
    assert not {"own students", "above global"} & set(header)
    for cell in cells:
        path = finished.places.run(cell.fingerprint) / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary["student"]["own_students"] = {"mean": 0.8 + 0.01 * cell.seed, "global_mean": 0.7}
        path.write_text(json.dumps(summary), encoding="utf-8")
    results = results_table(finished.study, finished.cells, finished.places)
    combinations = combinations_table(finished.study, results)
    row = pick(combinations, **cells[0].labels).iloc[0]
    assert row["own_students"] == pytest.approx(0.81)
    assert row["own_above_global"] == pytest.approx(0.11)
    assert row["own_above_global_interval"] == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)
    header, *lines = summary_cells(finished.study, results, combinations)
    shown = {tuple(line[header.index(name)] for name in ("own students", "above global")) for line in lines}
    assert shown == {("–", "–"), ("0.8100 ± 0.0248", "+0.1100 ± 0.0248")}


@pytest.mark.parametrize(("key", "title"), [("cold", "cold start"), ("with_bm25", "with BM25")])
def test_scores_that_a_row_has_beside_its_own_are_compared_with_the_servers(finished, key, title):
    """Both columns are in the table only where they were measured, with the controls' scores."""
    cells = [cell for cell in finished.cells if dict(cell.labels).get("epsilon") == "8"]
    before = results_table(finished.study, finished.cells, finished.places)
    header, *_ = summary_cells(finished.study, before, combinations_table(finished.study, before))
    assert not {title, f"{title} above server"} & set(header)
    for cell in finished.cells:
        path = finished.places.run(cell.fingerprint) / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary["student"][key] = {"ndcg@10": 0.8 + 0.01 * cell.seed}
        if not cell.labels:
            summary["controls"]["server"][key] = {"ndcg@10": 0.7}
            summary["controls"]["pooled"][key] = {"ndcg@10": 0.9 - 0.02 * cell.seed}
        path.write_text(json.dumps(summary), encoding="utf-8")
    results = results_table(finished.study, finished.cells, finished.places)
    combinations = combinations_table(finished.study, results)
    row = pick(combinations, **cells[0].labels).iloc[0]
    assert (row[key], row[f"{key}_above_server"]) == (pytest.approx(0.81), pytest.approx(0.11))
    assert row[f"{key}_above_server_interval"] == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)
    header, *lines = summary_cells(finished.study, results, combinations)
    shown = {tuple(line[header.index(name)] for name in (title, f"{title} above server")) for line in lines}
    assert ("0.8100 ± 0.0248", "+0.1100 ± 0.0248") in shown
    assert ("0.7000 ± 0.0000", "–") in shown  # the server's student itself
    assert ("0.8800 ± 0.0497", "+0.1800 ± 0.0497") in shown  # all data pooled


def test_attacks_are_averaged_over_the_cells_that_were_attacked(finished):
    cells = [cell for cell in finished.cells if dict(cell.labels).get("epsilon") == "8"]
    for cell in cells:
        path = finished.places.run(cell.fingerprint) / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8"))
        auc = {0: 0.6, 1: 0.5, 2: None}[cell.seed]
        summary["privacy"]["audit"] = {"auc": auc, "epsilon_lower_bound": None, "threat_models": {"loss": "anyone"}}
        path.write_text(json.dumps(summary), encoding="utf-8")
    results = results_table(finished.study, finished.cells, finished.places)
    row = pick(combinations_table(finished.study, results), **cells[0].labels).iloc[0]
    assert row["audit.auc"] == pytest.approx(0.55)
    assert not [name for name in results if "threat" in name]


def test_a_torn_summary_is_named(finished):
    path = finished.places.run(finished.cells[0].fingerprint) / "summary.json"
    path.write_text('{"headline": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=str(path)):
        results_table(finished.study, finished.cells, finished.places)


def test_the_table_survives_parquet(results, tmp_path):
    results.to_parquet(tmp_path / "results.parquet", index=False)
    again = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(again, results, check_dtype=False)


def test_only_recommenders_by_purchases_may_be_missing_among_the_controls():
    summary = {"controls": {"server": {"auc": 0.7}}, "student": {"auc": 0.8}}
    found = _controls(summary, ["server", "repeat", "fedavg"])
    assert found == {"server": {"auc": 0.7}, "fedavg": {"auc": 0.8}}
    with pytest.raises(KeyError, match="pooled"):
        _controls(summary, ["server", "pooled"])
