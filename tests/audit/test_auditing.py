"""An audit attacks the run's own federation, finds what an overfitted one remembers, and charges nobody."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fed_distill.audit.auditing import CANARY_DELTA, Auditing, imitated, regrouped
from fed_distill.audit.finished_run import audit_run, make_grid
from fed_distill.cli.main import app
from fed_distill.data import load
from fed_distill.data.examples import Examples
from fed_distill.errors import CheckpointError
from fed_distill.methods import METHODS
from fed_distill.methods.base import private_training
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.store import read_experiment, read_summary
from fed_distill.training.plan import Duration

CHANGES = {"controls": ["server"], "federation.aggregator": "fedsubavg", "adaptation.enabled": False}
OVERFIT = {"federation.options": {"local_epochs": 20.0, "proxy_steps": 0}, "training.merchants.learning_rate": 0.03}
PRIVATE = {"privacy.unit": "example", "privacy.epsilon": 1.0, "privacy.batch_size": 16}


@pytest.fixture
def finished(tiny_experiment, simulate, tmp_path):
    """A function: the folder of a finished tiny run."""

    def finish(**changes):
        folder, _ = simulate(tiny_experiment(tmp_path, {**CHANGES, **changes}))
        return folder

    return finish


def test_merchants_get_the_examples_that_are_theirs(tiny_experiment, tmp_path):
    data = load(tiny_experiment(tmp_path).data)
    every = Examples.concatenate([merchant.train for merchant in data.merchants.values()])
    some = every.take(np.arange(0, len(every), 2))
    parts = regrouped(data, some).merchants
    assert sum(len(part.train) for part in parts.values()) == len(some)
    assert all(set(part.train.merchants) == {name} for name, part in parts.items())
    assert all(part.test is data.merchants[name].test for name, part in parts.items())
    first = next(iter(data.merchants))
    assert list(regrouped(data, data.merchants[first].train).merchants) == [first]


@pytest.mark.parametrize(
    ("method", "options", "durations"),
    [
        ("fedavg", {"local_epochs": 2.0}, (Duration(epochs=6.0),)),
        ("fedmd", {"local_epochs": 2.0, "pretrain_epochs": 20.0}, (Duration(epochs=24.0),)),
        ("scaffold", {"local_steps": 400}, (Duration(steps=1200),)),
        ("lp-mst", {}, (Duration(epochs=3.0),)),
    ],
)
def test_an_attacker_trains_as_long_as_the_merchants_in_all_rounds(method, options, durations):
    training = private_training(METHODS.build(method, options), 3)
    assert imitated(training).private_durations == durations


def test_an_overfitted_run_is_found_out_and_a_private_one_is_not(finished, tmp_path):
    few = {**OVERFIT, "data.max_merchants": 3}
    caught = audit_run(finished(name="open", **few), Callback(), shadows=4, canaries=60)
    kept = audit_run(finished(name="kept", **few, **PRIVATE), Callback(), shadows=4, canaries=60)
    assert caught["auc"] > 0.6
    assert kept["attacks"]["loss"]["auc"] < caught["attacks"]["loss"]["auc"]
    assert caught["epsilon_of_accountant"] is None
    assert kept["epsilon_lower_bound"] <= kept["epsilon_of_accountant"]
    assert kept["delta"] == CANARY_DELTA
    assert set(caught["threat_models"]) == {*caught["attacks"], "canaries", "label_shares"}


def test_an_audit_is_written_beside_the_run_stays_there_and_charges_nobody(finished, simulate):
    folder = finished(**PRIVATE)
    before = {path: path.read_bytes() for path in (folder / "checkpoint").rglob("*.jsonl")}
    result = CliRunner().invoke(app, ["audit", str(folder), "--shadows", "4", "--canaries", "40"])
    assert result.exit_code == 0, result.output
    assert "lira online" in " ".join(result.output.split())
    stored = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    brief = read_summary(folder)["privacy"]["audit"]
    assert brief["auc"] == stored["auc"]
    assert brief["epsilon_lower_bound"] == stored["epsilon_lower_bound"]
    assert {path: path.read_bytes() for path in (folder / "checkpoint").rglob("*.jsonl")} == before
    assert before
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "What attacks found" in report
    simulate(read_experiment(folder).with_changes({"runtime.resume": True}))
    assert read_summary(folder)["privacy"]["audit"] == brief


@pytest.mark.parametrize(("method", "sends"), [("fedmd", "soft labels"), ("pate", "votes"), ("fedkd", "updates")])
def test_label_shares_are_guessed_from_whatever_a_method_sends(finished, method, sends):
    changes = {"federation.method": method, "federation.options": {}, "federation.aggregator": "fedavg"}
    folder = finished(**changes)
    auditing = Auditing(folder, read_experiment(folder), make_grid, Callback())
    found = auditing._label_shares(method)
    assert set(found.errors) == set(auditing.data.merchants), sends
    assert all(0.0 <= error <= 1.0 for error in found.errors.values())


def test_a_run_that_is_not_finished_cannot_be_audited(tmp_path):
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        audit_run(tmp_path, Callback())
