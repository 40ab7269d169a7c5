"""A study with [tuning]: equally many trials for every row, the best on validation, and no report of unequal rows."""

import copy
import json
import multiprocessing
import shutil

import pytest
import tomli_w

from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.sweeps import process
from fed_distill.sweeps.cells import expand, fingerprint_of
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.progress import SweepProgress
from fed_distill.sweeps.report import write_findings
from fed_distill.sweeps.row_sampler import RowTrialSampler
from fed_distill.sweeps.row_trials import plan_of
from fed_distill.sweeps.runner import Resources, Runner
from fed_distill.sweeps.trial_log import Row

RATE = {"key": "training.merchants.learning_rate", "factors": [0.5, 1, 2]}
TABLES = {
    "name": "fair",
    "seeds": 2,
    "data_seeds": [4, 6],
    "base": {"federation": {"rounds": 5}, "controls": ["student", "server", "fedavg", "pooled"]},
    "axis": [{"name": "method", "key": "federation.method", "values": ["fedavg-kd", "fedmd"]}],
    "tuning": {
        "axis": "method",
        "trials": 3,
        "search": [RATE],
        "controls": {
            "server": [{"key": "training.server.learning_rate", "factors": [0.5, 1, 2]}],
            "fedavg": [RATE],
            "pooled": [{"key": "training.pooled.learning_rate", "factors": [0.5, 1, 2]}],
        },
    },
}
SERVER, FEDAVG, POOLED = (Row("control", name) for name in ("server", "fedavg", "pooled"))
KD, MD = Row("row", "fedavg-kd"), Row("row", "fedmd")


@pytest.fixture
def tables():
    return copy.deepcopy(TABLES)


@pytest.fixture
def small(tables):
    """No controls, so that there is a single stage."""
    tables["base"]["controls"], tables["tuning"]["controls"] = [], {}
    return tables


@pytest.fixture
def tune(sham, monkeypatch, tmp_path):
    """A function that runs all trials of a study into a folder by a function of the sham module: study and plan."""
    monkeypatch.setattr(process, "get_context", lambda kind: multiprocessing.get_context("fork"))

    def run(tables, function="run", processes=1):
        study, places = Study.parse(tables), Places(tmp_path / "fair")
        plan = plan_of(study, expand(study), places)
        for stage in plan.stages():
            sampler = RowTrialSampler(plan.planned(stage), places, plan.log, study.tuning.objective)
            Runner(places, sampler, f"sham_cells:{function}", Resources(processes, 1), SweepProgress()).run()
        return study, plan

    return run


def planned(tables, folder):
    study = Study.parse(tables)
    return plan_of(study, expand(study), Places(folder))


def test_every_row_and_control_has_as_many_trials_with_all_different_settings(tune, tables):
    _, plan = tune(tables)
    assert plan.counts() == {SERVER: 3, FEDAVG: 3, POOLED: 3, KD: 3, MD: 3}
    for row, trials in plan.results().items():
        (key,) = trials[0].settings
        own = 5e-3 if row == POOLED else 3e-3  # of the file
        assert trials[0].settings[key] == own
        assert sorted(one.settings[key] for one in trials) == [own / 2, own, own * 2]


def test_trials_have_neither_test_examples_nor_the_seeds_of_cells(small, tmp_path):
    study = Study.parse(small)
    plan = plan_of(study, expand(study), Places(tmp_path))
    trials = plan.planned(plan.stages()[0])
    assert {one.cell.experiment.data.scored_on for one in trials} == {"validation"}
    assert {(one.cell.experiment.seed, one.cell.experiment.data.seed) for one in trials} == {(2, 7)}
    assert {(cell.experiment.seed, cell.experiment.data.seed) for cell in expand(study)} == {
        (0, 4), (1, 4), (0, 6), (1, 6),
    }  # fmt: skip
    assert {cell.experiment.data.scored_on for cell in expand(study)} == {"test"}


def test_rows_take_turns(small, tmp_path):
    plan = planned(small, tmp_path)
    assert [(one.row.name, one.number) for one in plan.planned(plan.stages()[0])] == [
        ("fedavg-kd", 0), ("fedmd", 0), ("fedavg-kd", 1), ("fedmd", 1), ("fedavg-kd", 2), ("fedmd", 2),
    ]  # fmt: skip


def test_the_best_on_validation_are_the_settings_of_the_cells_and_of_the_controls(tune, tables):
    study, plan = tune(tables)
    cells = expand(study, chosen=plan.chosen())
    rates = {cell.labels.get("method", "controls"): cell.experiment.training.merchants.learning_rate for cell in cells}
    assert rates == {"controls": 1.5e-3, "fedavg-kd": 3e-3, "fedmd": 6e-3}  # by the sham's formula
    assert {cell.experiment.training.server.learning_rate for cell in cells} == {6e-3}  # all start from its student
    (pooled,) = {cell.experiment.training.pooled.learning_rate for cell in cells if cell.role == "controls"}
    assert pooled == 2.5e-3
    assert {cell.experiment.data.scored_on for cell in cells} == {"test"}


def test_trials_of_rows_start_from_the_chosen_server(tune, tables):
    _, plan = tune(tables)
    _, others = plan.stages()
    assert {one.cell.experiment.training.server.learning_rate for one in plan.planned(others)} == {6e-3}


def test_where_the_file_is_best_its_cells_are_those_without_tuning(tune, small):
    study, plan = tune(small)
    untuned = {key: value for key, value in small.items() if key != "tuning"}
    found = [one.fingerprint for one in expand(study, chosen=plan.chosen()) if one.labels["method"] == "fedavg-kd"]
    assert found == [one.fingerprint for one in expand(Study.parse(untuned)) if one.labels["method"] == "fedavg-kd"]


def test_a_row_may_search_keys_of_its_own_within_the_same_number_of_trials(small, tmp_path):
    own = {"key": "federation.options.teacher_share", "values": [0.0, 0.5, 1.0]}
    small["tuning"]["rows"] = {"fedmd": [own]}
    plan = planned(small, tmp_path)
    trials = plan.planned(plan.stages()[0])
    assert [sum(one.row == row for one in trials) for row in (KD, MD)] == [3, 3]
    assert {len(one.settings) for one in trials if one.row == MD} == {2}
    shares = [one.settings["federation.options.teacher_share"] for one in trials if one.row == MD]
    assert shares[0] is None and set(shares[1:]) <= {0.0, 0.5, 1.0}
    assert next(one.settings for one in trials if one.row == KD) == {"training.merchants.learning_rate": 3e-3}


def test_a_row_that_was_tried_more_often_is_refused(tune, small):
    _, plan = tune(small)
    line = json.loads(plan.log.path.read_text(encoding="utf-8").splitlines()[-1])
    more = {**line, "trial": 3, "score": 0.99, "cell": "0" * 32}
    with plan.log.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(more) + "\n")
    with pytest.raises(CheckpointError, match=r"has 1 trial of fedmd with other settings .* use another --out"):
        plan.chosen()


def test_a_row_that_was_tried_less_often_is_refused_and_no_report_is_written(tune, small, tmp_path):
    study, plan = tune(small)
    lines = plan.log.path.read_text(encoding="utf-8").splitlines(keepends=True)
    plan.log.path.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="fedmd has 2 of 3 trials"):
        write_findings(study, expand(study), Places(tmp_path / "fair"), "again", plan)
    assert not (tmp_path / "fair" / "report.html").exists()


def test_another_space_in_the_same_folder_is_refused(tune, small):
    tune(small)
    small["tuning"]["search"] = [{**RATE, "factors": [0.25, 1, 4]}]
    _, plan = tune(small)
    with pytest.raises(CheckpointError, match="has 2 trials of fedavg-kd with other settings"):
        plan.chosen()


@pytest.mark.parametrize(("trials", "runs"), [(2, True), (3, True), (3, False)])
def test_another_objective_in_the_same_folder_is_refused(tune, small, trials, runs, tmp_path):
    """Scores of another metric would choose, or of two: those in the log and those of trials that are added."""
    small["tuning"]["trials"] = 2
    tune(small)
    if not runs:
        shutil.rmtree(tmp_path / "fair" / "cells")
    small["tuning"] |= {"trials": trials, "objective": "auc"}
    _, plan = tune(small)
    with pytest.raises(CheckpointError, match=r"objective.* another --out"):
        plan.chosen()


def test_a_score_that_was_changed_in_the_log_is_refused(tune, small):
    _, plan = tune(small)
    text = plan.log.path.read_text(encoding="utf-8")
    last = json.loads(text.splitlines()[-1])
    plan.log.path.write_text(text.replace(json.dumps(last["score"]), "0.99"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"has ndcg@10 = 0\.99 for trial \d of .*, and its run has ndcg@10 = 0\."):
        plan.chosen()


def test_a_trial_that_is_in_the_log_twice_is_refused(tune, small, tmp_path):
    """The later line would count, also if the runs are no longer there."""
    _, plan = tune(small)
    shutil.rmtree(tmp_path / "fair" / "cells")
    first = json.loads(plan.log.path.read_text(encoding="utf-8").splitlines()[0])
    with plan.log.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**first, "score": 0.99}) + "\n")
    with pytest.raises(CheckpointError, match="has trial 0 of fedavg-kd twice"):
        plan.chosen()


@pytest.mark.parametrize("score", ["NaN", "Infinity", '"0.99"'])
def test_a_score_that_is_no_number_is_a_damaged_line(tune, small, score):
    _, plan = tune(small)
    lines = plan.log.path.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "score": "?"}).replace('"?"', score)
    plan.log.path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="line 2 is not a trial"):
        plan.chosen()


def test_more_trials_keep_the_first_ones(tune, small):
    small["tuning"]["trials"] = 2
    _, two = tune(small)
    first = two.log.path.read_text(encoding="utf-8")
    small["tuning"]["trials"] = 3
    _, three = tune(small)
    assert three.counts() == {KD: 3, MD: 3}
    assert three.log.path.read_text(encoding="utf-8").startswith(first)
    with pytest.raises(CheckpointError, match="has 1 trial of fedavg-kd with other settings"):
        two.chosen()  # of three trials that were run, two are not to be shown as all


def test_a_trial_that_was_killed_before_its_line_is_logged_and_not_run_again(tune, small, monkeypatch, tmp_path):
    tell, seen = RowTrialSampler.tell, []

    def killed(self, cell, ending):
        seen.append(cell)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return tell(self, cell, ending)

    monkeypatch.setattr(RowTrialSampler, "tell", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(small)
    monkeypatch.setattr(RowTrialSampler, "tell", tell)
    log = tmp_path / "fair" / "trials.jsonl"
    assert len(log.read_text(encoding="utf-8").splitlines()) == 3
    with log.open("a", encoding="utf-8") as file:
        file.write('{"kind": "row", "na')  # and a torn line
    _, plan = tune(small)
    assert plan.counts() == {KD: 3, MD: 3}
    starts = [path.read_text(encoding="utf-8") for path in (tmp_path / "fair" / "cells").glob("*/starts")]
    assert [text.count("\n") for text in starts] == [1] * 6
    assert [json.loads(line)["trial"] for line in log.read_text(encoding="utf-8").splitlines()] == [0, 0, 1, 1, 2, 2]


def test_a_diverged_trial_counts_and_is_not_chosen(tune, small):
    study, plan = tune(small, "diverge_at_6e_3")
    diverged = [one for one in plan.results()[MD] if one.score is None]
    assert [(one.settings, one.reason) for one in diverged] == [
        ({"training.merchants.learning_rate": 6e-3}, "the loss is not finite")
    ]
    assert plan.counts() == {KD: 3, MD: 3}
    chosen = {one.labels["method"]: one.experiment for one in expand(study, chosen=plan.chosen())}
    assert chosen["fedmd"].training.merchants.learning_rate == 3e-3  # 0.7 on validation, as 6e-3 has no score


def test_a_failed_trial_leaves_the_row_short_and_is_repeated(tune, small):
    _, plan = tune(small, "fail_fedmd")
    assert plan.counts() == {KD: 3, MD: 0}
    with pytest.raises(CheckpointError, match="fedmd has 0 of 3 trials"):
        plan.chosen()
    _, plan = tune(small)
    assert plan.counts() == {KD: 3, MD: 3}


def test_the_report_tells_how_the_settings_were_chosen(tune, tables, write_cells, tmp_path):
    study, plan = tune(tables)
    cells, places = expand(study, chosen=plan.chosen()), Places(tmp_path / "fair")
    write_cells(cells, places)
    found = write_findings(study, cells, places, "again", plan)
    assert found.tables(1)[-1] == (found.tuning.table, 3)
    assert [line[:5] for line in found.tuning.table] == [
        ["method", "trials", "best settings", "nDCG@10, file's settings", "nDCG@10, best"],
        ["control: server alone", "3", "learning_rate 0.006 (file: 0.003)", "0.7000", "0.8000"],
        ["control: FedAvg, no teacher", "3", "learning_rate 0.0015 (file: 0.003)", "0.7000", "0.8000"],
        ["control: all data pooled", "3", "learning_rate 0.0025 (file: 0.005)", "0.7000", "0.8000"],
        ["fedavg-kd", "3", "as in the file: learning_rate 0.003", "0.8000", "0.8000"],
        ["fedmd", "3", "learning_rate 0.006 (file: 0.003)", "0.7000", "0.8000"],
    ]
    page = found.report.read_text(encoding="utf-8")
    assert "How the settings were chosen" in page and "Each row had 3 trials" in page
    assert "The training seed of the trials, 2, is none of the cells" in page
    again = Study.read(places.folder / "study.toml")
    assert [fingerprint_of(one.experiment) for one in expand(again, chosen=plan.chosen())] == [
        one.fingerprint for one in cells
    ]


def test_a_seed_that_cells_share_is_said(tune, small, write_cells, tmp_path):
    small["tuning"] |= {"seed": 1, "data_seed": 4}
    study, plan = tune(small)
    cells, places = expand(study, chosen=plan.chosen()), Places(tmp_path / "fair")
    write_cells(cells, places)
    said = " ".join(write_findings(study, cells, places, "again", plan).tuning.sentences)
    assert "The training seed of the trials, 1, is also one of the cells'." in said
    assert "The data seed of the trials, 4, is also one of the cells'." in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": "unit"}, "unknown axis 'unit'; axes: method"),
        ({"trials": 1}, "must be at least 2, not 1"),
        (
            {"rows": {"fedprox": [{"key": "federation.rounds", "values": [1, 2]}]}},
            "axis 'method' has no value 'fedprox'",
        ),
        ({"rows": {"fedmd": [RATE]}}, "two searches have the name 'learning_rate'"),
        ({"rows": {"fedmd": []}}, "'fedmd' has an empty space"),
        ({"search": []}, "'fedavg-kd' has nothing to search"),
        ({"controls": {"server": [RATE]}}, "compared with the control 'fedavg', which has no trials"),
        ({"search": [{"key": "runtime.threads", "values": [1, 2]}]}, "runtime.threads cannot be varied"),
        ({"search": [{"key": "training.merchants.learning_rate", "factors": [1, 0]}]}, "must be greater than 0, not 0"),
        ({"search": [{"key": "training.merchants.learning_rate", "factors": [2, 2]}]}, "a factor is listed twice"),
        (
            {"search": [{"key": "training.merchants.learning_rate", "factors": [0.1231, 0.1234]}]},
            "two factors are × 0.123 in three digits",
        ),
    ],
)
def test_mistakes_in_the_table_are_named(tables, change, message):
    tables["tuning"] |= change
    with pytest.raises(ConfigError, match=message):
        Study.parse(tables)


def test_a_control_of_which_the_study_has_none_is_named(small):
    small["tuning"]["controls"] = {"server": [RATE]}
    with pytest.raises(ConfigError, match="the base has no control 'server'"):
        Study.parse(small)


def test_a_key_is_changed_by_an_axis_or_by_the_tuning(small):
    small["axis"].append({"key": "training.merchants.learning_rate", "values": [1e-3, 1e-2]})
    with pytest.raises(ConfigError, match=r"axis 'learning_rate' and tuning both change training\.merchants"):
        Study.parse(small)


def test_a_space_without_enough_settings_is_named(small, tmp_path):
    small["tuning"]["trials"] = 4
    with pytest.raises(ConfigError, match=r"fedavg-kd: its space has 3 distinct settings, .* for 4 trials"):
        planned(small, tmp_path).preview()


def test_mistakes_in_rows_are_found_before_the_server_is_tuned(tables, tmp_path):
    tables["tuning"]["rows"] = {"fedmd": [{"key": "federation.rounds", "values": [-1, -2]}]}
    with pytest.raises(ConfigError, match=r"cell method=fedmd: .*rounds"):
        planned(tables, tmp_path).preview()


def test_a_factor_of_what_is_not_set_is_named(small, tmp_path):
    small["tuning"]["search"] = [{"key": "federation.options.local_epochs", "factors": [0.5, 1, 2]}]
    plan = planned(small, tmp_path)
    with pytest.raises(
        ConfigError, match=r"federation\.options\.local_epochs is not set, which no factor can multiply"
    ):
        plan.planned(plan.stages()[0])


def test_private_rows_are_not_tuned(small, tmp_path):
    small["base"]["privacy"] = {"unit": "example", "epsilon": 8}
    plan = planned(small, tmp_path)
    with pytest.raises(ConfigError, match=r"privacy\.unit = 'example' cannot be tuned"):
        plan.planned(plan.stages()[0])


def test_tiny_has_two_trials_of_each_row(tables, tmp_path):
    study = Study.parse(tables)
    plan = plan_of(study, expand(study, tiny=True), Places(tmp_path), tiny=True)
    assert plan.trials == 2
    assert plan_of(study, expand(study), Places(tmp_path), True, ["tuning.trials"]).trials == 3


def test_the_number_of_trials_and_the_seeds_can_be_set(tables):
    changes = {"tuning.trials": 2, "tuning.seed": 9, "tuning.data_seed": 4, "federation.rounds": 3}
    study = Study.parse(tables, overrides=changes)
    assert (study.tuning.trials, study.base.federation.rounds) == (2, 3)
    assert study.trial_seeds == {"seed": 9, "data.seed": 4}
    untuned = {key: value for key, value in tables.items() if key != "tuning"}
    with pytest.raises(ConfigError, match=r"tuning\.trials is set, but the study has no \[tuning\] table"):
        Study.parse(untuned, overrides={"tuning.trials": 2})


def test_a_study_may_extend_another_file(tables, tmp_path):
    tuning = tables.pop("tuning")
    (tmp_path / "plain.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    own = {"extends": "plain.toml", "name": "tuned", "tuning": tuning}
    (tmp_path / "tuned.toml").write_text(tomli_w.dumps(own), encoding="utf-8")
    plain, tuned = Study.read(tmp_path / "plain.toml"), Study.read(tmp_path / "tuned.toml")
    assert (tuned.name, tuned.seeds, tuned.tuning.trials) == ("tuned", 2, 3)
    assert [one.fingerprint for one in expand(tuned)] == [one.fingerprint for one in expand(plain)]
    (tmp_path / "again.toml").write_text('extends = "tuned.toml"', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tuned\.toml extends another study itself"):
        Study.read(tmp_path / "again.toml")


def test_trials_of_controls_are_of_the_first_value_of_other_axes_too(tables, tmp_path):
    tables["base"]["data"] = {"dataset": "marketplace", "task": "relevance"}
    tables["axis"].append({"key": "data.task", "values": ["sentiment", "faq"]})
    plan = planned(tables, tmp_path)
    trials = [one for stage in plan.stages()[:1] for one in plan.planned(stage)]
    assert {one.row.kind for one in trials} == {"control"}
    assert {one.cell.experiment.data.task for one in trials} == {"sentiment"}
