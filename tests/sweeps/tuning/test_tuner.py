"""Trials are run once, judged on validation data, stopped when hopeless, and go on after any stop."""

import csv
import json

import pytest

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.space import Tuning
from fed_distill.sweeps.trial_sampler import DATABASE, TrialSampler
from fed_distill.sweeps.trials import Trials
from fed_distill.sweeps.tune_findings import write_findings


def table(places):
    with (places.folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def starts(places):
    return sum(len(path.read_text().splitlines()) for path in places.cells.glob("*/starts"))


def test_the_best_trial_becomes_a_complete_experiment(tables, tune):
    trials = {"trials": 6, "random_trials": 6}  # drawn by their numbers alone, in whatever order they end
    tuning, places, said = tune({**tables, **trials})
    found = write_findings(tuning, places)
    rows = table(places)
    assert [row["state"] for row in rows] == ["complete"] * 6
    best = max(rows, key=lambda row: float(row["score"]))
    experiment = Experiment.read(places.folder / "best.toml")
    assert experiment.training.merchants.learning_rate == pytest.approx(float(best["learning_rate"]))
    assert experiment.controls == tuning.base.controls
    summary = json.loads((places.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["base"] == {"validation": pytest.approx(0.8)}
    assert summary["best"]["validation"] == pytest.approx(float(best["score"]))
    assert next(iter(found.importance)) == "learning_rate"  # by the formula it is all that matters
    assert sum(found.importance.values()) == pytest.approx(1.0)
    for name in ("history", "settings", "importance"):
        assert (places.folder / "figures" / f"{name}.png").stat().st_size > 0
    assert "the best so far" in said


def test_a_stopped_tuning_goes_on_as_if_it_had_not_been_and_more_trials_are_added(tables, tune, monkeypatch):
    whole_tuning, whole, _ = tune({**tables, "trials": 5}, folder="whole", processes=1)
    write_findings(whole_tuning, whole)
    tell = TrialSampler.tell

    def interrupted(self, cell, ending):
        if cell.labels["trial"] == "2":
            raise KeyboardInterrupt
        return tell(self, cell, ending)

    monkeypatch.setattr(TrialSampler, "tell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune({**tables, "trials": 4}, processes=1)
    monkeypatch.setattr(TrialSampler, "tell", tell)
    tune({**tables, "trials": 4}, processes=1)
    tuning, places, said = tune({**tables, "trials": 5}, processes=1)
    assert "6 runs, 5 of them finished before" in said
    write_findings(tuning, places)
    assert table(places) == table(whole)
    assert starts(places) == starts(whole) == len({row["cell"] for row in table(places)}) + 1


def test_a_hopeless_trial_is_stopped_by_its_rounds(tables, tune):
    """What the first trials, which none is compared with, have scored in a round is what stops the others."""
    tables["search"][0] |= {"low": 1e-5, "high": 1e-2}
    tables["base"]["training"] = {"merchants": {"learning_rate": 2e-2}}
    pruned = {"pruning": True, "unpruned_trials": 2, "warmup_rounds": 0, "trials": 6, "random_trials": 6}
    tuning, places, said = tune({**tables, **pruned}, "hang_if_bad", processes=1)
    write_findings(tuning, places)
    rows = table(places)
    stopped = [row for row in rows if row["state"] == "stopped"]
    assert stopped
    assert all("its best validation was below the median of the others" in row["reason"] for row in stopped)
    complete = [float(row["score"]) for row in rows if row["state"] == "complete"]
    assert max(float(row["score"]) for row in stopped) < max(complete)
    assert "stopped: after round" in said


def test_what_diverges_is_a_bad_setting_and_what_fails_says_why(tables, tune):
    tables["base"]["training"] = {"merchants": {"learning_rate": 0.01}}
    tuning, places, _ = tune({**tables, "trials": 8, "random_trials": 8}, "fail_if_bad")
    write_findings(tuning, places)
    for row in table(places):
        rate = float(row["learning_rate"])
        expected = ("stopped", "the loss is nan") if rate > 2e-2 else ("failed", "shop-3 has no label")
        assert (row["state"], row["reason"]) == (("complete", "") if 5e-3 <= rate <= 2e-2 else expected)
    assert len({row["state"] for row in table(places)}) == 3


def test_a_trial_whose_settings_do_not_go_together_fails_and_the_others_go_on(tables, tune):
    """Each end of a search can be run alone, with the base's other settings: momentum is of sgd, which the base has."""
    tables["base"]["training"] = {"merchants": {"optimizer": "sgd"}}
    tables["search"] = [
        {"key": "training.merchants.optimizer", "values": ["sgd", "adamw"]},
        {"key": "training.merchants.momentum", "low": 0.0, "high": 0.9},
    ]
    tuning, places, said = tune({**tables, "trials": 8, "random_trials": 8})
    write_findings(tuning, places)
    states = {(row["optimizer"], row["state"], bool(row["cell"])) for row in table(places)}
    assert states == {("sgd", "complete", True), ("adamw", "failed", False)}
    assert all("momentum" in row["reason"] for row in table(places) if row["state"] == "failed")
    assert "9 of 9" in said and "FAILED" in said
    _, places, said = tune({**tables, "trials": 8, "random_trials": 8})
    assert "9 of them finished before" in said


def test_the_objective_and_the_seeds_are_the_files(tables, tune):
    tuning, places, _ = tune({**tables, "objective": "auc", "seeds": 2, "trials": 2})
    found = write_findings(tuning, places)
    assert found.objective == "auc"
    assert found.base == pytest.approx(1.0 - 0.801)  # the mean of two seeds, 0.8 and 0.802


def test_a_base_that_cannot_be_run_is_said_at_once(tables, tune):
    with pytest.raises(ConfigError, match="the base cannot be run: shop-1 has no rows"):
        tune(tables, "broken")


def test_another_tuning_is_not_mixed_with_this_one(tables, tune):
    _, places, _ = tune({**tables, "trials": 1})
    tables["search"][0]["high"] = 0.5
    with pytest.raises(CheckpointError, match="has trials of another base or search space"):
        tune({**tables, "trials": 1})
    assert (places.folder / DATABASE).is_file()


def test_findings_need_a_base(tables, tune, tmp_path):
    with pytest.raises(CheckpointError, match="has no finished run of the base yet"):
        write_findings(Tuning.parse(tables), Places(tmp_path / "none"))


def test_each_trial_has_a_sampler_of_its_own(tables, tmp_path):
    """So what a trial tries does not depend on how many were drawn by the same process before."""
    tuning = Tuning.parse(tables)
    together = Trials(tmp_path / "one.db", tuning)
    first = [together.parameters(together.new()) for _ in range(3)]
    apart = []
    for _ in range(3):
        trials = Trials(tmp_path / "two.db", tuning)
        apart.append(trials.parameters(trials.new()))
    assert apart == first


def test_a_trial_that_was_stopped_before_it_knew_its_settings_gets_those_that_it_would_have_had(tables, tmp_path):
    tuning = Tuning.parse(tables)
    undisturbed = Trials(tmp_path / "one.db", tuning)
    expected = [undisturbed.parameters(undisturbed.new()) for _ in range(2)]
    killed = Trials(tmp_path / "two.db", tuning)
    for _ in range(2):
        killed.new()
    again = Trials(tmp_path / "two.db", tuning)
    assert [again.parameters(trial) for trial in list(again.unfinished())] == expected


def test_a_database_that_is_none_is_named(tables, tmp_path):
    (tmp_path / "trials.db").write_text("no database, and longer than any header of one would have to be" * 9)
    with pytest.raises(CheckpointError, match=r"cannot read the trials in .*trials\.db: .*file is not a database"):
        Trials(tmp_path / "trials.db", Tuning.parse(tables))
