"""Whoever uses a key by its old name is told the new one, wherever keys are written."""

import pytest

from fed_distill.config import Experiment
from fed_distill.config.keys import has_key, leaf_keys
from fed_distill.config.renamed import REMOVED, RENAMED
from fed_distill.errors import ConfigError
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.space import Tuning

RATE = "training.server_learning_rate is now training.server.learning_rate"


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_gone_and_the_new_ones_are_there(old):
    assert not has_key(old)
    assert all(has_key(new) for new in RENAMED[old])


@pytest.mark.parametrize("key", ["training.merchants.clip_norm", "privacy.queries", "data.options.rows", "privacy"])
def test_a_key_that_there_is_is_known(key):
    assert has_key(key)


@pytest.mark.parametrize("key", ["training.merchants.rows", "tomorrow", "data.rows", "privacy.rate", "seed.rows"])
def test_a_key_that_there_is_not_is_unknown(key):
    assert not has_key(key)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_in_a_table_and_on_a_command_line_is_answered_by_the_new(old, tmp_path):
    message = f"{old} is now {RENAMED[old][0]}".replace(".", r"\.")
    value = {} if old in ("poisoning", "poisoning.options") else 1
    path = tmp_path / "mine.toml"
    path.write_text("", encoding="utf-8")
    if old == "poisoning":
        tables = {"poisoning": value}
    else:
        table, _, key = old.partition(".")
        tables = {table: {key: value}}
    with pytest.raises(ConfigError, match=f"^experiment: {message}"):
        Experiment.parse(tables)
    with pytest.raises(ConfigError, match=message):
        Experiment.read(path, {old: value})


def test_a_key_whose_value_means_something_else_says_so():
    with pytest.raises(ConfigError, match=r"adaptation\.learning_rate, .*multiply .* training\.server\.learning_rate$"):
        Experiment.parse({"adaptation": {"learning_rate_scale": 0.3}})


@pytest.mark.parametrize("old", REMOVED)
def test_a_removed_key_names_what_there_is_instead(old):
    table, _, key = old.partition(".")
    assert not has_key(old) and has_key(REMOVED[old].split()[0])
    with pytest.raises(ConfigError, match=f"{old} was removed: {REMOVED[old]}".replace(".", r"\.")):
        Experiment.parse({table: {key: 2}})


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"federation": {"method": "fedmd"}, "seed": 1}, ["federation.method", "seed"]),
        ({"teacher.options": {"layers": {"a": 1}, "width": 2}}, ["teacher.options.layers.a", "teacher.options.width"]),
        ({"federation.options": {}}, ["federation.options"]),
    ],
)
def test_a_table_sets_the_keys_in_it(changes, keys):
    assert leaf_keys(changes) == keys


def test_one_that_has_become_several_is_answered_by_all_of_them():
    with pytest.raises(ConfigError) as found:
        Experiment.parse({"training": {"schedule": "cosine"}})
    told = "training.schedule is now training.merchants.schedule and training.server.schedule: set the ones you need"
    assert str(found.value) == f"experiment: {told}"


def test_an_old_key_of_a_compared_federation_is_named_with_its_table():
    with pytest.raises(
        ConfigError, match=r"table 2 of compare: federation\.max_update_norm is now federation\.max_norm"
    ):
        Experiment.parse({"compare": [{"label": "a"}, {"label": "b", "max_update_norm": 3.0}]})


def test_a_run_config_of_flower_is_answered_too():
    with pytest.raises(ConfigError, match=RATE):
        Experiment.from_run_config({"set": "training.server_learning_rate = 0.1"})


STUDY = {"name": "a", "base": {}, "seeds": 1}


@pytest.mark.parametrize(
    "axis",
    [
        {"key": "training.server_learning_rate", "values": [0.1]},
        {"name": "rate", "values": [{"label": "high", "training.server_learning_rate": 0.1}]},
    ],
)
def test_an_axis_of_a_study_is_answered_when_its_file_is_read(axis):
    with pytest.raises(ConfigError, match=RATE):
        Study.parse({**STUDY, "axis": [axis]})


@pytest.mark.parametrize("place", ["base", "override"])
def test_the_base_of_a_study_is_answered(place):
    tables = {**STUDY, "axis": [{"key": "federation.rounds", "values": [1]}]}
    old = {"training.server_learning_rate": 0.1}
    with pytest.raises(ConfigError, match=RATE):
        Study.parse({**tables, "base": old} if place == "base" else tables, overrides=old if place != "base" else {})


@pytest.mark.parametrize("search", [{"low": 0.1, "high": 0.2}, {"values": [0.1]}])
def test_a_search_is_answered(search):
    with pytest.raises(ConfigError, match=RATE):
        Tuning.parse({"name": "a", "base": {}, "search": [{"key": "training.server_learning_rate", **search}]})
