"""Two finished runs side by side; the interval is that of scipy's paired t-test over the queries."""

import json
import re

import pytest
from scipy import stats

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.reporting.run_comparison import compare_runs
from fed_distill.reporting.unit_scores import UNIT_SCORES

OURS = [0.5, 0.7, 0.9, 0.4, 0.8, 0.6]
THEIRS = [0.6, 0.7, 0.8, 0.6, 0.9, 0.9]


def run(folder, scores, changes=None, seeds=(0,), task="relevance", federation="fedavg-kd", **more):
    """Write the files of a finished run that are compared, with ``scores`` for its federation and server."""
    folder.mkdir()
    experiment = Experiment(name=folder.name).with_changes({"federation.label": federation, **(changes or {})})
    (folder / "experiment.toml").write_text(experiment.to_toml(), encoding="utf-8")
    mean = sum(scores) / len(scores)
    row = {"ndcg@10": mean, "accuracy": 0.5, "uplink_bytes": 1000, "retention": None}
    summary = {
        "task": task,
        "headline": "ndcg@10",
        "seeds": list(seeds),
        "federation": federation,
        "teacher": {"ndcg@10": 0.9},
        "controls": {"server": row},
        "federations": {federation: row},
        **more,
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    rows = [
        {"kind": kind, "name": name, "seed": seed, "scores": scores}
        for kind, name in (("control", "server"), ("federation", federation))
        for seed in seeds
    ]
    (folder / UNIT_SCORES).write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return folder


def scores_of(found, row):
    return {one.metric: one for one in found.scores if one.row == row}


def test_differences_are_paired_by_query(tmp_path):
    found = compare_runs(run(tmp_path / "a", OURS), run(tmp_path / "b", THEIRS, {"federation.rounds": 3}))
    one = scores_of(found, "server alone")["ndcg@10"]
    test = stats.ttest_rel(THEIRS, OURS)
    interval = test.confidence_interval(0.95)
    assert one.difference is not None
    assert one.difference.value == pytest.approx((interval.low + interval.high) / 2)
    assert one.difference.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert one.difference.p_value == pytest.approx(test.pvalue)
    assert found.unpaired == ""
    assert dict(found.settings) == {"federation.rounds": (10, 3)}


def test_other_figures_are_beside_each_other_without_an_interval(tmp_path):
    found = compare_runs(run(tmp_path / "a", OURS), run(tmp_path / "b", THEIRS))
    rows = scores_of(found, "fedavg-kd")
    assert (rows["accuracy"].ours, rows["accuracy"].theirs, rows["accuracy"].difference) == (0.5, 0.5, None)
    assert rows["uplink_bytes"].ours == 1000
    assert "retention" not in rows


def test_main_federations_of_other_names_are_compared(tmp_path):
    found = compare_runs(run(tmp_path / "a", OURS), run(tmp_path / "b", THEIRS, federation="other"))
    assert scores_of(found, "fedavg-kd / other")["ndcg@10"].difference is not None


@pytest.mark.parametrize(
    ("changes", "more", "reason"),
    [
        ({"data.seed": 1}, {}, "the test data may differ, by data.seed"),
        ({"data.proxy_domains": ["toys"]}, {}, "the test data may differ, by data.proxy_domains"),
        ({"data.options": {"merchants": 5}}, {}, "the test data may differ, by data.options.merchants"),
        ({}, {"seeds": (0, 1)}, r"the training seeds differ: \[0\] and \[0, 1\]"),
    ],
)
def test_scores_of_other_test_data_are_not_paired_and_it_is_said_why(tmp_path, changes, more, reason):
    found = compare_runs(run(tmp_path / "a", OURS), run(tmp_path / "b", THEIRS, changes, **more))
    assert not any(one.difference for one in found.scores)
    assert re.fullmatch(reason, found.unpaired)


def test_another_proxy_set_or_share_of_labels_has_the_same_test_data(tmp_path):
    changes = {"data.proxy_size": 9, "data.client_labels": 0.5}
    found = compare_runs(run(tmp_path / "a", OURS), run(tmp_path / "b", THEIRS, changes))
    assert scores_of(found, "server alone")["ndcg@10"].difference is not None


def test_another_number_of_units_is_not_paired(tmp_path):
    found = compare_runs(run(tmp_path / "a", OURS), run(tmp_path / "b", THEIRS[:4]))
    assert "no row in common with equally many test units" in found.unpaired


def test_other_tasks_and_unfinished_runs_are_refused(tmp_path):
    ours = run(tmp_path / "a", OURS)
    with pytest.raises(ConfigError, match="scores of different tasks"):
        compare_runs(ours, run(tmp_path / "b", THEIRS, task="matching"))
    (tmp_path / "a" / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="the run is not finished; continue it with --resume"):
        compare_runs(ours, tmp_path / "b")
