"""The summary's numbers against hand computation, and its shape against schema 1."""

import json
from dataclasses import replace

import pytest

from fed_distill.config import Experiment
from fed_distill.data.examples import Task
from fed_distill.reporting.outcome import Outcome
from fed_distill.reporting.summary import summarize
from fed_distill.storage.files import strict_json

MAIN = "fedavg-kd+fedsubavg"
TASK = Task("relevance", ("irrelevant", "complement", "substitute", "exact"), True, "exact", (0.0, 0.01, 0.1, 1.0))
TEACHER = {"parameters": 5000, "accuracy": 0.7, "macro_f1": 0.6, "auc": 0.98, "ndcg@10": 0.966, "mrr@10": 0.9}


def unit(name, kind, seed, ndcg, auc=0.9, **fields):
    metrics = {"accuracy": 0.5, "macro_f1": 0.4, "auc": auc, "ndcg@10": ndcg, "mrr@10": 0.8}
    return Outcome(name, kind, seed, metrics, **fields)


def controls(seed, server=0.90, local=0.91, pooled=0.95):
    return [
        unit("server", "control", seed, server, auc=0.80),
        unit("local", "control", seed, local, auc=0.79),
        unit("pooled", "control", seed, pooled, auc=0.90),
    ]


def experiment(seeds, **federation):
    return Experiment.parse({"repeats": seeds, "federation": {"aggregator": "fedsubavg", **federation}})


def summary_of(units, seeds=2):
    return summarize(experiment(seeds), TASK, TEACHER, 1000, units, merchants=2, seconds=1.0)


def test_the_first_level_is_schema_1(summary):
    schema = {
        "schema", "dataset", "task", "method", "merchants", "rounds", "seed", "seconds", "teacher", "student",
        "controls", "retention", "gap_closed", "bytes", "privacy",
    }  # fmt: skip
    assert schema <= set(summary)
    assert (summary["schema"], summary["dataset"], summary["task"]) == (1, "pricerunner", "relevance")
    assert (summary["method"], summary["merchants"], summary["rounds"], summary["seed"]) == ("fedavg-kd", 31, 10, 0)
    assert {"parameters", "accuracy", "macro_f1", "auc", "ndcg@10"} <= set(summary["teacher"])
    assert set(summary["student"]["worst_merchant"]) == {"merchant", "accuracy"}
    assert set(summary["controls"]) == {"server", "local", "pooled", "fedavg"}
    assert set(summary["bytes"]) == {"downlink_per_merchant_round", "uplink_per_merchant_round"}
    assert summary["privacy"] == {
        "unit": "none",
        "epsilon": None,
        "delta": None,
        "audit": {"auc": None, "epsilon_lower_bound": None},
    }


def test_the_summary_is_strict_json(summary):
    assert json.loads(strict_json(summary, "summary.json")) == summary


def test_student_and_controls_are_means_over_the_seeds(summary, sample):
    for name, row in [(MAIN, summary["student"]), ("pooled", summary["controls"]["pooled"])]:
        values = [outcome.metrics["auc"] for outcome in sample.outcomes if outcome.name == name]
        assert row["auc"] == pytest.approx(sum(values) / 3)
    assert summary["seeds"] == [0, 1, 2]
    assert summary["student"]["parameters"] == 2_105_604
    assert list(summary["federations"]) == sample.federations


def test_gap_closed_is_averaged_over_the_seeds_it_is_computed_on():
    units = [*controls(0), unit(MAIN, "federation", 0, 0.93, auc=0.85)]
    units += [*controls(1, local=0.89, pooled=0.92), unit(MAIN, "federation", 1, 0.92, auc=0.90)]
    summary = summary_of(units)
    row = summary["federations"][MAIN]
    assert [seed["gap_closed"] for seed in row["by_seed"]] == pytest.approx([0.02 / 0.04, 0.02 / 0.02])
    assert summary["gap_closed"] == pytest.approx(0.75)
    assert row["interval"]["gap_closed"] == pytest.approx(12.706 * 0.25, rel=1e-3)  # t of 1 degree; sd/sqrt(2) = 0.25
    assert [seed["gap_closed_auc"] for seed in row["by_seed"]] == pytest.approx([0.5, 1.0])
    assert row["gap_closed_auc"] == pytest.approx(0.75)
    assert summary["retention"] == pytest.approx((0.93 + 0.92) / 2 / 0.966)


def test_a_gap_that_is_undefined_on_a_seed_is_null_and_says_why():
    units = [
        *controls(0),
        unit(MAIN, "federation", 0, 0.93),
        *controls(1, pooled=0.91),
        unit(MAIN, "federation", 1, 0.93),
    ]
    summary = summary_of(units)
    assert summary["gap_closed"] is None
    assert summary["federations"][MAIN]["interval"]["gap_closed"] is None
    assert summary["federations"][MAIN]["notes"] == {
        "gap_closed": "seed 1: pooling all data (0.9100) is no better than each merchant alone (0.9100)"
    }


def test_the_control_fedavg_has_a_gap_and_the_yardsticks_have_none():
    units = [*controls(0), unit("fedavg", "control", 0, 0.92), unit(MAIN, "federation", 0, 0.93)]
    rows = summary_of(units, seeds=1)["controls"]
    assert rows["fedavg"]["gap_closed"] == pytest.approx(0.25)
    assert [rows[name]["gap_closed"] for name in ("server", "local", "pooled")] == [None, None, None]


def test_a_federation_called_like_a_control_is_kept_apart_from_it():
    run = experiment(1, method="fedavg", aggregator="fedavg", start="labels")
    units = [unit("fedavg", "control", 0, 0.92), unit("fedavg", "federation", 0, 0.93)]
    summary = summarize(run, TASK, TEACHER, 1000, units, merchants=2, seconds=1.0)
    assert summary["controls"]["fedavg"]["ndcg@10"] == 0.92
    assert summary["federations"]["fedavg"]["ndcg@10"] == 0.93


def test_without_controls_the_gap_is_null_and_says_what_it_needs():
    summary = summary_of([unit(MAIN, "federation", 0, 0.93)], seeds=1)
    assert summary["gap_closed"] is None
    assert "server, local and pooled" in summary["federations"][MAIN]["notes"]["gap_closed"]


def test_one_seed_has_no_intervals(one_seed_summary):
    assert set(one_seed_summary["intervals"]["student"].values()) == {None}
    assert one_seed_summary["gap_closed"] is not None


def test_the_worst_merchant_is_found_after_averaging_over_the_seeds():
    counts = {"a": 30, "b": 30}
    units = [
        unit(MAIN, "federation", 0, 0.9, merchant_accuracy={"a": 0.2, "b": 0.5}, merchant_counts=counts),
        unit(MAIN, "federation", 1, 0.9, merchant_accuracy={"a": 0.9, "b": 0.5}, merchant_counts=counts),
    ]
    student = summary_of(units)["student"]
    assert student["worst_merchant"] == {"merchant": "b", "accuracy": 0.5}
    assert student["merchant_accuracy"] == pytest.approx(0.525)


def test_bytes_are_means_in_whole_bytes():
    units = [
        unit(MAIN, "federation", seed, 0.9, downlink_bytes=1000.0 + seed, uplink_bytes=10.0 + 3 * seed)
        for seed in (0, 1)
    ]
    assert summary_of(units)["bytes"] == {"downlink_per_merchant_round": 1000, "uplink_per_merchant_round": 12}


def test_adaptation_is_told_before_and_after_with_its_notes_and_merchants():
    found = unit(
        MAIN,
        "federation",
        0,
        0.93,
        before_adaptation={"ndcg@10": 0.92},
        adaptation=["distillation: undone"],
        merchant_accuracy={"a": 0.5, "b": 0.7},
        merchant_counts={"a": 30, "b": 30},
        personal_accuracy={"a": 0.6, "b": 0.9},
    )
    adaptation = summary_of([found], seeds=1)["adaptation"]
    assert (adaptation["before"]["ndcg@10"], adaptation["after"]["ndcg@10"]) == (0.92, 0.93)
    assert adaptation["notes"] == {"0": ["distillation: undone"]}
    assert adaptation["personal"] == {
        "protected": None,
        "before": {"mean": pytest.approx(0.6), "worst_merchant": {"merchant": "a", "accuracy": 0.5}},
        "after": {"mean": pytest.approx(0.75), "worst_merchant": {"merchant": "a", "accuracy": 0.6}},
    }


def test_a_run_without_adaptation_says_nothing_of_it():
    assert summary_of([unit(MAIN, "federation", 0, 0.93)], seeds=1)["adaptation"] is None


def test_speed_account_and_versions_are_kept(summary, sample):
    assert summary["speed"] == sample.speed
    assert summary["data"] == sample.account
    assert {"fed-distill", "python", "torch", "transformers", "flwr"} == set(summary["versions"])


def test_the_order_of_the_seeds_does_not_matter(summary, sample):
    mixed = sorted(sample.outcomes, key=lambda outcome: -outcome.seed)
    again = summarize(
        sample.experiment,
        TASK,
        sample.teacher,
        2_105_604,
        mixed,
        31,
        2710.4,
        speed=sample.speed,
        account=sample.account,
    )
    assert again == summary


def test_a_missing_main_federation_and_a_unit_told_twice_are_refused():
    with pytest.raises(ValueError, match="no outcome of the main federation"):
        summary_of(controls(0), seeds=1)
    twice = [unit(MAIN, "federation", 0, 0.93)] * 2
    with pytest.raises(ValueError, match=r"two outcomes of federation .* on seed 0"):
        summary_of(twice)
    assert summary_of([twice[0], replace(twice[0], seed=1)])["seeds"] == [0, 1]
