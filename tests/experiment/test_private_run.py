"""A protected run keeps its promise to the end, whatever its merchants' limits are, and says what it cost."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.data import load
from fed_distill.errors import BudgetExceeded, ConfigError
from fed_distill.evaluation.metrics import SCORES
from fed_distill.experiment import run
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.unit_scores import UNIT_SCORES

PRIVATE = {
    "privacy.unit": "example",
    "privacy.epsilon": 6.0,
    "privacy.batch_size": 8,
    "controls": ["server", "fedavg"],
    "federation.rounds": 3,
}


def lines(folder, arm):
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, text) if line["federation"] == arm]


@pytest.fixture
def limited(tiny_experiment, tmp_path):
    """A function that makes a private experiment whose site has limits (TOML)."""

    def make(limits, **changes):
        path = tmp_path / "limits.toml"
        path.write_text(limits, encoding="utf-8")
        return tiny_experiment(tmp_path, {**PRIVATE, "privacy.limits": str(path), **changes})

    return make


def test_the_summary_tells_what_each_federation_cost(tiny_experiment, simulate, tmp_path):
    experiment = tiny_experiment(tmp_path, {**PRIVATE, "compare": [{"method": "fedmd"}]})
    folder, _ = simulate(experiment)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    main = experiment.federation.title
    for title in (main, "fedmd"):
        told = summary["federations"][title]["privacy"]
        assert (told["unit"], told["merchants"]) == ("example", 5)
        assert 0.9 * 6.0 < told["epsilon"] <= 6.0
    assert summary["privacy"]["epsilon"] == summary["federations"][main]["privacy"]["epsilon"]
    assert all(line["train_loss"] is None for line in lines(folder, main))
    assert all(line["train_loss"] is not None for line in lines(folder, "fedavg"))
    spent = [
        ledger.epsilon("example")
        for at in (folder / "checkpoint" / "ledgers" / "seed-0").iterdir()
        if not at.name.startswith("fedmd") and not at.name.endswith(".newest")
        for ledger in map(Ledgers(at).of, Ledgers(at).merchants())
    ]
    assert max(spent) == pytest.approx(summary["privacy"]["epsilon"])
    assert (folder / UNIT_SCORES).exists()
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "any one example of a merchant" in report
    assert "How it is protected" in report


def test_without_reported_scores_a_simulation_writes_no_scores_by_test_unit(
    tiny_experiment, simulate, tmp_path, monkeypatch
):
    changes = {**PRIVATE, "privacy.report_scores": False, "federation.rounds": 1, "controls": [], "name": "kept"}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    assert not (folder / UNIT_SCORES).exists()
    monkeypatch.setattr(run, "is_simulated", lambda grid: False)
    folder, _ = simulate(tiny_experiment(tmp_path, {**changes, "name": "deployed"}))
    assert (folder / UNIT_SCORES).exists(), "the test set of a deployment is the server's own"
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["student"]["ndcg@10"] is not None


def test_a_run_with_too_little_noise_for_any_promise_ends_and_says_so(tiny_experiment, simulate, tmp_path):
    """Its epsilon is infinite, which JSON has no number for: the run's results are not lost by that."""
    noise = {"privacy.epsilon": None, "privacy.noise_multiplier": 1e-3, "federation.rounds": 1, "controls": ["server"]}
    folder, _ = simulate(tiny_experiment(tmp_path, {**PRIVATE, **noise}))
    told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["privacy"]
    assert (told["unit"], told["epsilon"], told["noise_multiplier"]["most"]) == ("example", None, 1e-3)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "there is no guarantee: no ε is large enough" in report and "with ε =" not in report


def test_a_merchant_whose_budget_covers_a_part_of_the_run_leaves_it_to_the_others(limited, simulate):
    poor = min(load(limited("").data).merchants)
    experiment = limited(f'[default]\nmax_epsilon = 20.0\n[merchants."{poor}"]\nmax_epsilon = 6.0\n')
    folder, _ = simulate(experiment)
    found = lines(folder, experiment.federation.title)
    assert [line["merchants"] for line in found] == [4, 4, 4]
    assert all("privacy budget" in line["reasons"][0] for line in found)
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["student"]["accuracy"] is not None


def test_a_federation_that_no_budget_covers_ends_before_its_first_round(limited, simulate):
    with pytest.raises(BudgetExceeded, match="round 1: no merchant can participate any more"):
        simulate(limited("[default]\nmax_epsilon = 6.0\n"))


def test_a_federation_ends_when_no_merchant_has_any_budget_left(limited, simulate, monkeypatch):
    """As when another run spends it meanwhile: at its beginning every budget seemed to cover it."""
    monkeypatch.setattr("fed_distill.mechanisms.release.Protection._check_whole", lambda *_: None)
    experiment = limited("[default]\nmax_epsilon = 6.0\n")
    folder, _ = simulate(experiment)
    found = lines(folder, experiment.federation.title)
    assert 1 <= len(found) < 3
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["federations"][experiment.federation.title]["rounds"] == len(found)
    assert summary["privacy"]["epsilon"] <= 6.0


def test_merchants_may_ask_for_privacy_in_everything(limited, simulate):
    experiment = limited('[default]\nunits = ["example"]\n', controls=["server", "local", "pooled", "fedavg"])
    folder, _ = simulate(experiment)
    assert lines(folder, "fedavg") == []
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["controls"]) == ["server", "pooled"]
    assert (folder / "report.html").stat().st_size > 0
    assert len(lines(folder, experiment.federation.title)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"privacy": {"unit": "merchant", "epsilon": 6.0}, "federation.method": "fedmd"},
            "choose a method that sends an update only",
        ),
        (
            {"privacy": {"unit": "merchant", "epsilon": 6.0}, "federation.aggregator": "fedmedian"},
            "with aggregator fedavg, not",
        ),
        (
            {"privacy": {"unit": "merchant", "epsilon": 6.0}, "federation.method": "scaffold"},
            "privacy.unit = 'merchant' adds noise to a mean of updates: choose a method that sends an update only",
        ),
        (
            {
                "privacy": {"unit": "merchant", "epsilon": 6.0},
                "federation.aggregator_options": {"weight": "examples-squared"},
            },
            "weights all merchants alike: remove federation.aggregator_options",
        ),
        ({"privacy": {"unit": "vote", "epsilon": 6.0}}, "choose a method that sends votes only, such as pate"),
        (
            {"privacy.weighting": "examples-squared", "federation.aggregator": "fedmedian"},
            "is for aggregator fedavg, not fedmedian",
        ),
        (
            {"privacy.weighting": "examples-squared", "federation.aggregator_options": {"weight": "examples"}},
            "another weight in aggregator_options",
        ),
        (
            {"federation.method": "scaffold", "privacy.training.optimizer": "sgd", "privacy.rows": 10},
            "method scaffold trains whole tables: drop privacy.rows",
        ),
        (
            {
                "federation.method": "scaffold",
                "privacy.training.optimizer": "sgd",
                "privacy.weighting": "examples-squared",
            },
            "method scaffold counts all merchants alike: drop privacy.weighting",
        ),
    ],
)
def test_noise_that_would_not_cover_what_is_sent_is_refused(tiny_experiment, simulate, tmp_path, changes, message):
    changes = {"federation.aggregator": "fedavg", "federation.options": {}, **changes}
    with pytest.raises(ConfigError, match=message):
        simulate(tiny_experiment(tmp_path, {**PRIVATE, **changes}))


@pytest.mark.parametrize("unit", ["example", "merchant", "vote"])
def test_a_method_that_sends_more_than_its_unit_covers_is_refused_before_anything_is_written(
    tiny_experiment, simulate, tmp_path, unit
):
    privacy = {"unit": unit, "epsilon": 6.0}
    changes = {**PRIVATE, "privacy": privacy, "federation.method": "fd", "federation.options": {}}
    with pytest.raises(ConfigError, match=f"privacy.unit = '{unit}' does not cover all payloads of method fd"):
        simulate(tiny_experiment(tmp_path / "runs", changes))
    assert not (tmp_path / "runs").exists()


def test_the_server_distils_at_its_own_rate_whatever_that_of_private_merchants_is(tiny_experiment, simulate, tmp_path):
    """Private steps may want a rate that is hundreds of times another; what the server trains is not private."""
    changes = {
        "privacy": {"unit": "vote", "epsilon": 1e4, "training": {"optimizer": "sgd", "learning_rate": 1e-12}},
        "federation": {"method": "pate", "rounds": 1},
        "controls": [],
        "adaptation.enabled": False,
    }
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    kept = folder / "checkpoint" / "seed-0"
    start = load_file(kept / "server" / "two-tower" / "final.safetensors")
    end = load_file(kept / "federations" / "pate" / "final.safetensors")
    assert max(float((end[name] - value).abs().max()) for name, value in start.items()) > 1e-3


@pytest.mark.parametrize(("unit", "depends"), [("none", True), ("example", False)])
@pytest.mark.parametrize(
    "deciding",
    [
        {"federation.patience": 1, "adaptation.enabled": False},
        {"federation.rounds": 1, "adaptation.learning_rate": 0.1},
    ],
    ids=["stop", "adapt"],
)
def test_what_a_private_run_releases_does_not_depend_on_merchants_validation_examples(
    tiny_experiment, simulate, tmp_path, monkeypatch, unit, depends, deciding
):
    """Neither when it stops nor which stages of adaptation it keeps: with merchants' scores turned upside down the
    student is the same, and without privacy another."""
    privacy = {"unit": unit, "noise_multiplier": 0.5, "batch_size": 8} if unit == "example" else {"unit": unit}
    changes = {"privacy": privacy, "controls": [], "federation.rounds": 4, "data.max_merchants": 3, **deciding}
    students = []
    for name in ("as it is", "upside down"):
        folder, _ = simulate(tiny_experiment(tmp_path / name, changes))
        students.append(load_file(folder / "checkpoint/seed-0/federations/fedavg-kd/final.safetensors"))
        monkeypatch.setattr(Evaluator, "validation", upside_down(Evaluator.validation))
        monkeypatch.setattr(Evaluator, "validation_resampled", turned(Evaluator.validation_resampled))
    assert any(not torch.equal(value, students[1][name]) for name, value in students[0].items()) is depends


def turned(validation_resampled):
    def negative(self, student):
        score = validation_resampled(self, student)
        return replace(score, value=-score.value, resamples=-score.resamples)

    return negative


def upside_down(validation):
    """The same measurements with every score counted from 1 downwards."""

    def measured(self, student):
        return {name: 1.0 - value if name in SCORES else value for name, value in validation(self, student).items()}

    return measured


def test_groups_by_a_second_text_need_one(tiny_experiment, simulate, tmp_path):
    changes = {**PRIVATE, "privacy.unit": "group", "privacy.group": "pair", "data.task": "category"}
    with pytest.raises(ConfigError, match="by their second text, and task category has one text"):
        simulate(tiny_experiment(tmp_path / "runs", changes))
    assert not (tmp_path / "runs").exists()
