"""One set of keys for the optimizer of every training, and what is taken over from which."""

import pytest

from fed_distill.config import Experiment, OptimizerChanges, OptimizerConfig

OWN = {
    "optimizer": "sgd",
    "learning_rate": 0.5,
    "schedule": "constant",
    "warmup_share": 0.25,
    "momentum": 0.9,
    "weight_decay": 0.125,
    "clip_norm": 2.0,
}
PRIVATE = {"privacy.unit": "example", "privacy.epsilon": 1.0}


def keys(config):
    return {name: getattr(config, name) for name in OptimizerConfig.model_fields}


def test_own_has_another_value_of_every_key():
    assert OWN.keys() == OptimizerConfig.model_fields.keys() == OptimizerChanges.model_fields.keys()
    default = OptimizerConfig()
    assert all(value != getattr(default, name) for name, value in OWN.items())


@pytest.mark.parametrize("key", OWN)
def test_what_is_not_changed_is_as_in_the_other_training(key):
    base, default = OptimizerConfig(**OWN), keys(OptimizerConfig())
    value = default[key]
    found = keys(OptimizerChanges(**{key: value}).over(base))
    stays = {"momentum": 0.0} if key == "optimizer" else {}  # adamw has none to take over
    assert found == {**OWN, key: value, **stays}


TAKES_FROM = {
    "training.pooled": ("training.server", Experiment.model_validate({}).training.pooled.learning_rate),
    "training.local": ("training.merchants", None),
    "privacy.training": ("training.merchants", None),
    "adaptation": ("training.server", 0.3 * OWN["learning_rate"]),
}


def resolved(experiment, table):
    training = experiment.training
    return keys(
        {
            "training.pooled": training.of_pooled,
            "training.local": training.of_local,
            "privacy.training": lambda: experiment.training_of(experiment.federation.title),
            "adaptation": lambda: experiment.adaptation.over(training.server),
        }[table]()
    )


@pytest.mark.parametrize("table", TAKES_FROM)
def test_each_table_takes_over_what_it_does_not_have(table):
    other, rate = TAKES_FROM[table]
    base = Experiment().with_changes({**PRIVATE, **{f"{other}.{key}": value for key, value in OWN.items()}})
    assert resolved(base, table) == {**OWN, **({} if rate is None else {"learning_rate": rate})}
    for key, value in keys(OptimizerConfig(learning_rate=0.75)).items():
        changed = resolved(base.with_changes({f"{table}.{key}": value}), table)
        assert changed[key] == value


@pytest.mark.parametrize(
    "table", ["training.merchants", "training.server", "teacher", "teacher.masked", "student.masked"]
)
def test_a_table_of_its_own_takes_over_nothing(table):
    changes = {f"{table}.{key}": value for key, value in OWN.items()}
    experiment = Experiment().with_changes(changes)
    found = experiment
    for part in table.split("."):
        found = getattr(found, part)
    assert keys(found) == OWN
    others = {"training.merchants", "training.server"} - {table}
    assert all(keys(getattr(experiment.training, one.rpartition(".")[2])) == keys(OptimizerConfig()) for one in others)


def test_batches_of_the_controls_are_those_of_whom_they_are_compared_with():
    experiment = Experiment().with_changes({"training.server.batch_size": 5, "training.merchants.batch_size": 7})
    assert (experiment.training.of_pooled().batch_size, experiment.training.of_local().batch_size) == (5, 7)
    own = experiment.with_changes({"training.pooled.batch_size": 3, "training.local.batch_size": 4}).training
    assert (own.of_pooled().batch_size, own.of_local().batch_size) == (3, 4)
    assert (own.of_server().batch_size, own.of_merchants().batch_size) == (5, 7)


def test_an_ensemble_takes_over_the_optimizer_of_the_first_teacher():
    teacher = {**OWN, "ensemble": [{"seed": 1}, {"learning_rate": 0.25}]}
    members = Experiment.parse({"teacher": teacher}).teacher.members()
    assert [keys(config) for config, _ in members] == [OWN, OWN, {**OWN, "learning_rate": 0.25}]
