"""The summary's numbers against hand computation, and its shape against schema 1."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fed_distill.config import Experiment
from fed_distill.data.examples import Task
from fed_distill.reporting.differences import sample_of
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


def three_seeds(quality, name, kind="control", rise=0.0):
    """Scores of three seeds whose differences to other rows are the same on each seed, but for ``rise``."""
    return [unit(name, kind, seed, quality + rise * (seed - 1) + 0.001 * seed, auc=quality - 0.1) for seed in range(3)]


def test_gap_closed_is_a_ratio_of_means_with_the_interval_of_a_ratio():
    levels = {"server": 0.90, "local": 0.91, "pooled": 0.95}
    units = [one for name, level in levels.items() for one in three_seeds(level, name)]
    row = summary_of([*units, *three_seeds(0.93, MAIN, "federation", rise=0.004)], seeds=3)["federations"][MAIN]
    assert row["gap_closed"] == pytest.approx(0.5)
    # The numerators 0.016, 0.020, 0.024 over 0.04: sd 0.1, t of two degrees 4.302653.
    assert row["interval"]["gap_closed"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-4)
    assert row["gap_closed_auc"] == pytest.approx(0.5)
    assert row["retention"] == pytest.approx(0.931 / 0.966)


def test_a_gap_that_is_not_clear_of_noise_is_null_and_says_why():
    """450 % was once printed where pooling was worth 0.0004 more than the server."""
    units = three_seeds(0.90, "server") + three_seeds(0.89, "local") + three_seeds(0.9004, "pooled", rise=0.003)
    row = summary_of([*units, *three_seeds(0.9018, MAIN, "federation")], seeds=3)["federations"][MAIN]
    assert (row["gap_closed"], row["interval"]["gap_closed"]) == (None, None)
    assert row["notes"]["gap_closed"] == (
        "pooling all data (0.9014) is not clearly better than the server alone (0.9010): the difference is "
        "0.0004 ± 0.0075"
    )


def test_a_gap_of_one_seed_without_queries_is_unknown():
    units = [*controls(0), unit("fedavg", "control", 0, 0.92), unit(MAIN, "federation", 0, 0.93)]
    row = summary_of(units, seeds=1)["federations"][MAIN]
    assert row["gap_closed"] is None
    assert "with one seed it is unknown" in row["notes"]["gap_closed"]


def test_the_control_fedavg_has_a_gap_and_the_yardsticks_have_none():
    levels = {"server": 0.90, "local": 0.91, "pooled": 0.95, "fedavg": 0.92}
    units = [one for name, level in levels.items() for one in three_seeds(level, name)]
    rows = summary_of([*units, *three_seeds(0.93, MAIN, "federation")], seeds=3)["controls"]
    assert rows["fedavg"]["gap_closed"] == pytest.approx(0.25)
    assert [rows[name]["gap_closed"] for name in ("server", "local", "pooled")] == [None, None, None]


def with_units(name, kind, scores, seed=0):
    return replace(unit(name, kind, seed, float(np.mean(scores))), by_unit=[float(score) for score in scores])


def test_scores_by_unit_are_of_macro_f1_only_where_there_is_no_ranking():
    rng = np.random.default_rng(0)
    ranked = with_units(MAIN, "federation", rng.uniform(0.5, 1.0, 50))
    assert sample_of([ranked], "macro_f1") == [np.array([[0.4]])]
    unranked = replace(ranked, metrics={"accuracy": 0.5, "macro_f1": float(np.mean(ranked.by_unit)), "auc": 0.9})
    assert sample_of([unranked], "macro_f1")[0].shape == (1, 50)
    assert sample_of([unranked], "accuracy")[0].shape == (1, 1)


def test_one_seed_has_intervals_over_its_queries_and_paired_differences():
    rng = np.random.default_rng(0)
    server = rng.uniform(0.5, 1.0, 200)
    ours, student = server + rng.normal(0.02, 0.05, 200), server - rng.normal(0.03, 0.05, 200)
    units = [with_units("student", "control", student), with_units("server", "control", server)]
    summary = summary_of([*units, with_units(MAIN, "federation", ours)], seeds=1)
    row = summary["federations"][MAIN]
    expected = stats.ttest_1samp(ours, 0.0).confidence_interval()
    assert row["interval"]["ndcg@10"] == pytest.approx((expected.high - expected.low) / 2)
    assert summary["interval_covers"] == ["test data"]
    found = {name: stats.ttest_rel(one, server) for name, one in (("student", student), (MAIN, ours))}
    assert row["above"]["server"]["value"] == pytest.approx(float(np.mean(ours - server)))
    assert row["above"]["server"]["p_value"] == pytest.approx(found[MAIN].pvalue)
    assert row["above"]["fedavg"] is None
    first, second = sorted(found, key=lambda name: found[name].pvalue)
    adjusted = {first: 2 * found[first].pvalue, second: max(found[second].pvalue, 2 * found[first].pvalue)}
    assert row["above"]["server"]["p_adjusted"] == pytest.approx(adjusted[MAIN])
    assert summary["controls"]["student"]["above"]["server"]["p_adjusted"] == pytest.approx(adjusted["student"])
    assert summary["adds"]["teacher"]["value"] == pytest.approx(float(np.mean(server - student)))
    assert summary["adds"]["federation"]["value"] == pytest.approx(float(np.mean(ours - server)))
    assert summary["adds"]["federation_without_teacher"] is None
    assert summary["adds"]["teacher"]["p_adjusted"] == pytest.approx(adjusted["student"])
    assert summary["adds"]["federation"]["p_adjusted"] == pytest.approx(adjusted[MAIN])
    assert (summary["adds"]["teacher"]["over"], summary["adds"]["federation"]["over"]) == ("student", "server")


def test_a_federation_that_starts_from_labels_is_compared_with_the_student_of_labels():
    units = [unit("student", "control", 0, 0.85), unit("server", "control", 0, 0.90), unit(MAIN, "federation", 0, 0.93)]
    run = experiment(1, start="labels")
    summary = summarize(run, TASK, TEACHER, 1000, units, merchants=2, seconds=1.0)
    assert summary["adds"]["federation"]["value"] == pytest.approx(0.08)
    assert summary["adds"]["federation"]["over"] == "student"
    assert summary["adds"]["federation"]["p_adjusted"] is None, "the table has no column above the student of labels"


def test_retention_of_a_teacher_that_is_no_better_than_chance_is_null():
    units = [unit(MAIN, "federation", 0, 0.93)]
    chance = {"ndcg@10": 0.97}
    summary = summarize(experiment(1), TASK, TEACHER, 1000, units, merchants=2, seconds=1.0, chance=chance)
    assert summary["retention"] is None
    assert "no better than chance" in summary["federations"][MAIN]["notes"]["retention"]


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


def test_what_federation_adds_is_without_domain_adaptation_which_is_told_apart():
    rng = np.random.default_rng(0)
    server = rng.uniform(0.5, 1.0, 200)
    before = server + rng.normal(0.02, 0.05, 200)
    adapted = before + rng.normal(0.01, 0.05, 200)
    units = [with_units("server", "control", server)]
    ours = with_units(MAIN, "federation", adapted)
    scores = {"ndcg@10": float(np.mean(before))}
    changed = replace(ours, before_adaptation=scores, before_by_unit=before.tolist())
    summary = summary_of([*units, changed], seeds=1)
    adds, row = summary["adds"], summary["federations"][MAIN]
    assert row["above"]["server"]["value"] == pytest.approx(float(np.mean(adapted - server)))
    assert adds["federation"]["value"] == pytest.approx(float(np.mean(before - server)))
    assert adds["federation"]["p_value"] == pytest.approx(stats.ttest_rel(before, server).pvalue)
    assert adds["federation"]["p_adjusted"] is None, "the table compares the adapted student"
    assert adds["adaptation"]["value"] == pytest.approx(float(np.mean(adapted - before)))
    assert (adds["federation"]["over"], adds["adaptation"]["over"]) == ("server", "federation")
    undone = replace(ours, before_adaptation=dict(ours.metrics), before_by_unit=adapted.tolist())
    adds = summary_of([*units, undone], seeds=1)["adds"]
    assert adds["federation"]["value"] == pytest.approx(float(np.mean(adapted - server)))
    assert adds["federation"]["p_adjusted"] == row["above"]["server"]["p_adjusted"]
    assert (adds["adaptation"]["value"], adds["adaptation"]["half_width"]) == (0.0, 0.0)
    assert summary_of([*units, ours], seeds=1)["adds"]["adaptation"] is None


def test_an_outcome_of_a_release_without_scores_before_adaptation_is_compared_by_its_means():
    server = with_units("server", "control", np.linspace(0.5, 1.0, 50))
    ours = with_units(MAIN, "federation", np.linspace(0.6, 1.0, 50))
    old = replace(ours, before_adaptation={"ndcg@10": 0.79})
    adds = summary_of([server, old], seeds=1)["adds"]
    assert adds["federation"]["value"] == pytest.approx(0.79 - 0.75)
    assert adds["adaptation"]["value"] == pytest.approx(0.80 - 0.79)
    assert adds["federation"]["half_width"] is None


def test_students_of_merchants_own_are_judged_beside_the_global_one():
    """Means over the seeds of merchants with a student in each of them; rows without own students say so by null."""
    counts = {"a": 30, "b": 30, "c": 30}
    shared = {"a": 0.5, "b": 0.6, "c": 0.9}
    found = [
        unit(MAIN, "federation", 0, 0.9, merchant_accuracy=shared, merchant_counts=counts, own_accuracy=own)
        for own in ({"a": 0.6, "b": 0.9}, {"a": 0.8, "b": 0.7, "c": 0.1})
    ]
    summary = summary_of([found[0], replace(found[1], seed=1)])
    assert summary["federations"][MAIN]["own_students"] == {
        "mean": pytest.approx(0.75),
        "worst_merchant": {"merchant": "a", "accuracy": pytest.approx(0.7)},
        "global_mean": pytest.approx(0.55),
    }
    assert summary_of([unit(MAIN, "federation", 0, 0.9)], seeds=1)["federations"][MAIN]["own_students"] is None


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
