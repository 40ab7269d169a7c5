"""Whole runs under attack: the plain mean is ruined, robust merging stays near what it gives where all are honest."""

import json

import pytest

from fed_distill.adversaries.byzantine import byzantine_merchants
from fed_distill.errors import ConfigError

WITHIN = 0.1
"""Ten points; the plain mean loses more than twice as many."""
CHANGES = {
    "controls": ["server"],
    "adaptation.enabled": False,
    "data.max_merchants": 10,
    "data.options": {
        "merchants": 14, "rows": 200, "size_spread": 0.2, "languages": ["en"], "grade_skew": 0.0,
        "ranking_queries": 200, "ranking_candidates": 20,
    },
    "data.max_examples": 400,
    "training.server.epochs": 3,
    "federation": {"method": "fedavg", "rounds": 5, "validate_every": 5, "label": "mean"},
    "compare": [
        {"label": "flame", "aggregator": "flame"},
        {"label": "flame, submodels", "aggregator": "fedsubflame"},
    ],
}  # fmt: skip
FLIPPED = {"byzantine": {"fraction": 0.3, "attack": "sign-flip", "options": {"scale": 3.0}}}


@pytest.fixture(scope="module")
def runs(tiny_experiment, simulate, tmp_path_factory):
    """Summaries by name, of a clean and of a attacked run, and the attacked run's experiment and folder."""
    found = {}
    for name, attack in (("clean", {}), ("attacked", FLIPPED)):
        experiment = tiny_experiment(tmp_path_factory.mktemp(name), {**CHANGES, **attack})
        folder, _ = simulate(experiment)
        found[name] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found, experiment, folder


@pytest.mark.parametrize("metric", ["ndcg@10", "accuracy"])
def test_sign_flippers_ruin_the_mean_and_not_flame(runs, metric):
    clean, attacked = (
        {title: row[metric] for title, row in runs[0][name]["federations"].items()} for name in ("clean", "attacked")
    )
    assert attacked["mean"] < clean["mean"] - 2 * WITHIN
    for robust in ("flame", "flame, submodels"):
        assert attacked[robust] > clean[robust] - WITHIN
        assert attacked[robust] > clean["mean"] - WITHIN


def test_controls_are_the_same_under_attack(runs):
    clean, attacked = (runs[0][name]["controls"]["server"] for name in ("clean", "attacked"))
    assert clean["ndcg@10"] == attacked["ndcg@10"]


def test_the_report_names_the_byzantine_merchants_and_figures_by_merchant_are_of_the_others(runs):
    (summaries, experiment, folder), merchants = runs, set(runs[0]["clean"]["by_merchant"]["counts"])
    deviating = byzantine_merchants(experiment, sorted(merchants), 0)
    told = summaries["attacked"]["byzantine"]
    assert told == {
        "attack": "sign-flip",
        "options": {"scale": 3.0},
        "fraction": 0.3,
        "merchants": {"0": sorted(deviating)},
    }
    assert summaries["clean"]["byzantine"] is None
    by_merchant = summaries["attacked"]["by_merchant"]
    assert set(by_merchant["counts"]) == merchants - deviating
    for rows in (*by_merchant["federations"].values(), *by_merchant["controls"].values()):
        assert set(rows) == merchants - deviating
    assert f"sign-flip (on seed 0: {', '.join(sorted(deviating))})" in (folder / "report.html").read_text(
        encoding="utf-8"
    )


def test_scores_of_byzantine_merchants_do_not_count_in_the_rounds_of_personal_students(
    tiny_experiment, simulate, tmp_path
):
    quick = {"controls": [], "adaptation.enabled": False, "federation": {"method": "fedmd", "rounds": 1}}
    lines = []
    for name, attack in (("clean", {}), ("attacked", {"byzantine": {"fraction": 0.6, "attack": "sign-flip"}})):
        folder, _ = simulate(tiny_experiment(tmp_path, {"name": name, **quick, **attack}))
        lines.append(json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]))
    clean, attacked = lines  # the trained students are the same, what is sent is not
    assert clean["merchants"] == attacked["merchants"] == 5
    assert clean["merchant_accuracy"]["mean"] != attacked["merchant_accuracy"]["mean"]


def test_an_attack_that_there_is_not_is_said_before_anything_is_trained(tiny_experiment, simulate, tmp_path):
    with pytest.raises(ConfigError, match="unknown attack 'sabotage'"):
        simulate(tiny_experiment(tmp_path, {"byzantine": {"fraction": 0.3, "attack": "sabotage"}}))
    assert not (tmp_path / "tiny").exists()


def test_an_aggregator_for_more_merchants_than_a_round_has_is_refused_before_anything_is_written(
    tiny_experiment, simulate, tmp_path
):
    changes = {"controls": [], "federation.aggregator": "krum", "federation.participation": 0.8}
    with pytest.raises(ConfigError, match=r"aggregator krum .* requires 5 merchants a round, and a round has 4 of 5"):
        simulate(tiny_experiment(tmp_path, changes))
    assert not list(tmp_path.iterdir())
