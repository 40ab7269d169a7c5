"""What a value of an axis is worth over the baseline is a difference of cells that are equal else, seed by seed."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.gains import baseline_fingerprints, gain_by_cell, gains_cells
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.table import summary_cells

AXES = [
    {"name": "domain", "key": "data.seed", "values": [1, 2]},
    {"name": "adaptation", "key": "training.dropout", "values": [0.0, 0.1, 0.2]},
]


SEEDS = (0.001, -0.001, 0.003)
"""What luck adds by seed, in ``sham_cells``."""


def cells_of(scores):
    """A results table (domain, adaptation, seed) -> score, beside a control."""
    rows = [("cell", *key, "-".join(map(str, key)), score, score + 0.1) for key, score in scores.items()]
    rows.append(("controls", None, None, 0, "controls", 0.5, 0.6))
    columns = ["role", "domain", "adaptation", "seed", "fingerprint", "score", "auc"]
    return pd.DataFrame(rows, columns=columns).assign(**{"run.headline": "macro_f1"})


def gains_of(study, table):
    return gain_by_cell(table.assign(baseline=baseline_fingerprints(study, table)), "score")


@pytest.fixture
def study():
    return Study.parse({"name": "g", "base": {}, "seeds": 2, "axis": AXES, "baseline": ["adaptation", "0"]})


SCORES = {
    ("1", "0", 0): 0.5, ("1", "0", 1): 0.7, ("1", "0.1", 0): 0.6, ("1", "0.1", 1): 0.7, ("1", "0.2", 0): 0.4,
    ("1", "0.2", 1): 0.6, ("2", "0", 0): 0.9, ("2", "0", 1): 0.9, ("2", "0.1", 0): 0.8, ("2", "0.1", 1): 0.7,
    ("2", "0.2", 0): 0.9,
}  # fmt: skip


def test_a_gain_is_paired_by_seed_and_all_other_labels(study):
    table = cells_of(SCORES)
    found = dict(zip(SCORES, gains_of(study, table), strict=False))
    assert math.isnan(found["1", "0", 0]) and math.isnan(found["2", "0", 1])  # the baseline itself
    paired = {key: found[key] for key in SCORES if key[1] != "0"}
    assert paired == pytest.approx(
        {key: score - SCORES[key[0], "0", key[2]] for key, score in SCORES.items() if key[1] != "0"}
    )
    assert math.isnan(gains_of(study, table).iloc[-1])  # a control


def test_without_the_baselines_cell_or_a_baseline_nothing_is_said(study):
    table = cells_of({key: score for key, score in SCORES.items() if key != ("1", "0", 1)})
    lacking = gains_of(study, table)[(table["domain"] == "1") & (table["seed"] == 1)]
    assert lacking.isna().all() and len(lacking) == 2
    assert gains_of(study.model_copy(update={"baseline": None}), table).isna().all()


def test_scores_of_two_metrics_have_no_difference(study):
    table = cells_of(SCORES)
    table.loc[table["adaptation"] == "0", "run.headline"] = "ndcg@10"
    assert gains_of(study, table).isna().all()


def test_the_table_of_gains_has_a_mean_with_its_interval_over_the_lines_and_the_worst(study):
    nan = math.nan
    rows = [("1", "0", 0.6, nan, nan), ("1", "0.1", 0.65, 0.05, 0.02), ("1", "0.2", 0.5, -0.1, nan)]
    rows += [("2", "0", 0.9, nan, nan), ("2", "0.1", 0.75, -0.15, 0.03), ("2", "0.2", nan, nan, nan)]
    table = pd.DataFrame(rows, columns=["domain", "adaptation", "score", "gain", "gain_interval"])
    table = table.assign(**{"run.headline": "macro_f1"})
    half = 12.706204736 * np.std([0.05, -0.15], ddof=1) / math.sqrt(2)  # Student's t of one degree of freedom, 97.5 %
    assert gains_cells(study, table) == [
        ["domain", "0: macro-F1", "0.1", "0.2"],
        ["1", "0.6000", "+0.0500 ± 0.0200", "−0.1000"],
        ["2", "0.9000", "−0.1500 ± 0.0300", "–"],
        ["mean", "", f"−0.0500 ± {half:.4f}", "–"],
        ["worst", "", "−0.1500", "–"],
    ]


def test_combinations_from_which_the_baseline_is_excluded_are_not_in_the_table_of_gains(study):
    rows = [("1", "0", 0.6, math.nan, math.nan), ("1", "0.1", 0.65, 0.05, 0.02), ("1", "0.2", 0.7, 0.1, 0.02)]
    rows += [("2", "0.1", 0.75, math.nan, math.nan), ("2", "0.2", 0.8, math.nan, math.nan)]
    table = pd.DataFrame(rows, columns=["domain", "adaptation", "score", "gain", "gain_interval"])
    table = table.assign(**{"run.headline": "macro_f1"})
    assert [line[0] for line in gains_cells(study, table)] == ["domain", "1", "mean", "worst"]
    assert gains_cells(study, table[table["domain"] == "2"]) == []


def test_of_one_axis_there_is_no_second_table(study):
    alone = study.model_copy(update={"axes": study.axes[1:]})
    assert gains_cells(alone, pd.DataFrame()) == []


def test_a_study_shows_its_gains(tables, write_cells, tmp_path):
    study = Study.parse({**tables, "exclude": [], "baseline": ["method", "fedmd"]})
    cells, places = expand(study), Places(tmp_path / "costs")
    write_cells(cells, places)
    results = results_table(study, cells, places)
    combinations = combinations_table(study, results)
    header, *lines = summary_cells(study, results, combinations)
    own = [dict(zip(header, line, strict=True)) for line in lines if line[0] == "fedavg-kd"]
    assert {line["gain over fedmd"] for line in own} == {"+0.0300 ± 0.0000"}  # luck is the seed's, and cancels
    assert {line["in AUC"] for line in own} == {"+0.0300 ± 0.0000"}
    assert len(gains_cells(study, combinations)) == 1 + 2 * 3 + 2


def test_a_server_that_differs_by_cell_is_two_columns_and_one_that_does_not_a_line(tables, write_cells, tmp_path):
    def shown(axis, name):
        study = Study.parse({**tables, "axis": [axis], "exclude": []})
        cells, places = expand(study), Places(tmp_path / name)
        write_cells(cells, places)
        results = results_table(study, cells, places)
        header, *lines = summary_cells(study, results, combinations_table(study, results))
        return [dict(zip(header, line, strict=True)) for line in lines]

    apart = shown({"key": "training.server.epochs", "values": [1, 2]}, "apart")
    assert [line["epochs"] for line in apart] == ["1", "2"]
    half = student_t.ppf(0.975, 2) * np.std(SEEDS, ddof=1) / math.sqrt(3)
    for line in apart:
        assert line["server alone"] == f"{0.90 + np.mean(SEEDS):.4f} ± {half:.4f}"
        assert line["server alone: AUC"] == f"{0.91 + np.mean(SEEDS):.4f} ± {half:.4f}"
    together = shown({"key": "training.merchants.batch_size", "values": [8, 16]}, "together")
    assert "server alone" in {line["batch_size"] for line in together}
    assert not any("server alone: AUC" in line for line in together)
