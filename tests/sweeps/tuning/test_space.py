"""A tuning file is checked as a whole before the first trial, and stands alone once it is read."""

import pytest

from fed_distill.errors import ConfigError
from fed_distill.sweeps.dimensions import Range
from fed_distill.sweeps.space import Tuning


class Recorder:
    """Notes what a search asks of a trial."""

    def __init__(self):
        self.asked = []

    def suggest_int(self, name, low, high, step, log):
        self.asked.append(("int", name, low, high, step, log))
        return low

    def suggest_float(self, name, low, high, step, log):
        self.asked.append(("float", name, low, high, step, log))
        return low

    def suggest_categorical(self, name, choices):
        self.asked.append(("categorical", name, tuple(choices)))
        return choices[0]


def test_ranges_are_of_integers_if_both_ends_are(tables):
    tables["search"] += [
        {"key": "federation.rounds", "low": 2, "high": 8, "step": 2},
        {"key": "federation.participation", "low": 0.5, "high": 1},
    ]
    trial = Recorder()
    values = [one.suggest(trial) for one in Tuning.parse(tables).search]
    assert values == [1e-3, "16", 2, 0.5]
    assert trial.asked == [
        ("float", "learning_rate", 1e-3, 1e-1, None, True),
        ("categorical", "batch_size", ("16", "32")),
        ("int", "rounds", 2, 8, 2, False),
        ("float", "participation", 0.5, 1, None, False),
    ]


def test_what_a_trial_runs_is_the_base_with_its_choices(tables):
    tuning = Tuning.parse({**tables, "seeds": 3})
    choices = tuning.chosen({"learning_rate": 0.02, "batch_size": "32"})
    experiment = tuning.experiment(choices)
    assert (experiment.training.merchants.learning_rate, experiment.training.merchants.batch_size) == (0.02, 32)
    assert (experiment.repeats, experiment.controls, experiment.compare) == (3, [], [])
    assert tuning.best(choices).controls == tuning.base.controls
    assert tuning.best(choices).name == "small-best"


def test_the_complete_file_gives_the_same_tuning(tables, tmp_path):
    path = tmp_path / "tuning.toml"
    tuning = Tuning.parse(tables)
    path.write_text(tuning.to_toml(), encoding="utf-8")
    again = Tuning.read(path)
    assert again.identity == tuning.identity
    assert again.base == tuning.base


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"trials": 9}, True),
        ({"title": "x"}, True),
        ({"seeds": 2}, False),
        ({"base": {"federation": {"rounds": 4}}}, False),
    ],
)
def test_more_trials_are_of_the_same_tuning_and_other_ones_are_not(tables, changes, same):
    assert (Tuning.parse({**tables, **changes}).identity == Tuning.parse(tables).identity) is same


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.2}, "learning_rate.*low = 0.2.*high = 0.1"),
        ({"low": 0.0}, "learning_rate.*log.*low"),
        ({"step": 0.1}, "learning_rate.*log and step"),
        ({"log": False, "step": -0.1}, "learning_rate.*step.*above 0"),
        ({"log": False, "step": float("nan")}, "learning_rate.*step.*above 0"),
        ({"low": 0.02, "log": False, "step": 0.5}, "learning_rate.*0.5.*low = 0.02.*high = 0.1"),
        ({"low": 0.02, "log": False, "step": 0.03}, "learning_rate.*0.03.*low = 0.02.*high = 0.1"),
        ({"key": "runtime.threads"}, "runtime.threads"),
        ({"key": "training.rate", "name": ""}, "rate.*training.rate"),
        ({"key": "training.merchants.batch_size"}, "two .*'batch_size'"),
        ({"key": "training.merchants.batch_size", "name": "other"}, "training.merchants.batch_size .*twice"),
        (
            {"key": "training.merchants.warmup_share", "high": 1.5, "log": False},
            "search warmup_share = 1.5: training.merchants.warmup_share",
        ),
    ],
)
def test_a_search_that_cannot_be_meant_is_named(tables, changes, message):
    tables["search"][0] |= changes
    with pytest.raises(ConfigError, match=message):
        Tuning.parse(tables)


@pytest.mark.parametrize("unit", ["example", "group", "merchant", "vote"])
def test_a_private_experiment_is_not_tuned_be_it_the_base_or_a_value_of_the_search(tables, unit):
    choices = [{"label": "public"}, {"label": "private", "privacy.unit": unit, "privacy.epsilon": 8.0}]
    searched = {"name": "privacy", "values": choices}
    with pytest.raises(ConfigError, match=f"privacy = private: .*privacy.unit = '{unit}'"):
        Tuning.parse({**tables, "search": [*tables["search"], searched]})
    tables["base"]["privacy"] = {"unit": unit, "epsilon": 8.0}
    with pytest.raises(ConfigError, match=f"base: .*privacy.unit = '{unit}'.* privacy.unit = 'none'"):
        Tuning.parse(tables)


def test_a_range_of_integers_wants_an_integer_step():
    with pytest.raises(ValueError, match="integer step"):
        Range(key="federation.rounds", low=1, high=4, step=0.5)


@pytest.mark.parametrize(("low", "high", "step"), [(1, 10, 3), (0.1, 0.7, 0.2), (1e-4, 3e-4, 1e-4), (0.0, 1.0, 1.0)])
def test_steps_may_end_at_the_last_number(low, high, step):
    assert Range(key="training.merchants.momentum", low=low, high=high, step=step).step == step
