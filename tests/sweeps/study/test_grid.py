"""A study file is typed and checked; a mistake is one message that names file, axis, value or key."""

import math
import tomllib

import pytest

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.sweeps.axes import COLUMNS, Axis, label_of
from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.variation import varied

FILE = """
name = "mine"
seeds = 2

[base]
file = "base.toml"
federation.rounds = 4

[[axis]]
key = "training.merchants.batch_size"
values = [8, 16]
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "base.toml").write_text('[data]\nproxy_size = 77\n[federation]\nmethod = "fedmd"\n', encoding="utf-8")
    path = tmp_path / "study.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_the_base_is_a_file_beside_the_study_with_the_studys_own_tables_over_it(file):
    study = Study.read(file)
    expected = Experiment().with_changes(
        {"name": "base", "data.proxy_size": 77, "federation.method": "fedmd", "federation.rounds": 4}
    )  # fmt: skip
    assert study.base == expected
    assert (study.name, study.seeds, study.axes[0].name) == ("mine", 2, "batch_size")


def test_a_base_may_be_named_or_given_in_full(tables, tmp_path):
    (tmp_path / "one.toml").write_text("seed = 5\n", encoding="utf-8")
    assert Study.parse({**tables, "base": "one.toml"}, folder=tmp_path).base.seed == 5
    assert Study.parse({**tables, "base": {"seed": 6}}).base.seed == 6


def test_what_a_base_compares_itself_with_does_not_count(tables, tmp_path):
    (tmp_path / "one.toml").write_text('repeats = 5\n[[compare]]\nmethod = "fedmd"\n', encoding="utf-8")
    base = Study.parse(
        {**tables, "base": {"file": "one.toml", "federation": {"method": "fedmd"}}}, folder=tmp_path
    ).base
    assert (base.federation.method, base.compare, base.repeats) == ("fedmd", [], 1)


def test_overrides_change_the_base_or_the_study(file):
    study = Study.read(file, {"seeds": 1, "title": "Why?", "federation.rounds": 9})
    assert (study.seeds, study.title, study.base.federation.rounds) == (1, "Why?", 9)


def test_the_written_study_stands_alone_and_means_the_same(study):
    assert Study.parse(tomllib.loads(study.to_toml())) == study


def test_a_value_is_a_label_and_changes_however_its_keys_are_written():
    axis = Axis.model_validate(
        {
            "name": "how",
            "key": "federation.rounds",
            "values": [
                3,
                {"label": "far", "federation": {"rounds": 9, "options": {"a": 1}}, "training.merchants.batch_size": 2},
            ],
        }
    )
    assert [choice.label for choice in axis.choices] == ["3", "far"]
    assert axis.choices[0].changes == {"federation.rounds": 3}
    assert axis.choices[1].changes == {
        "federation.rounds": 9,
        "federation.options": {"a": 1},
        "training.merchants.batch_size": 2,
    }


@pytest.mark.parametrize(
    ("value", "label"), [(8, "8"), (8.0, "8"), (0.5, "0.5"), (math.inf, "inf"), (True, "true"), ("prv", "prv")]
)
def test_plain_values_are_called_by_themselves(value, label):
    assert label_of(value) == label


def test_only_an_axis_that_varies_epsilon_or_noise_and_nothing_else_is_the_budget(study):
    assert study.budget_axis == "epsilon"
    free = {"label": "free", "privacy.unit": "none"}
    private = {"label": "8", "privacy.unit": "example", "privacy.epsilon": 8}
    assert Axis(name="a", values=[free, private]).is_budget
    assert Axis(key="privacy.noise_multiplier", values=[1.0, 2.0]).is_budget
    assert not Axis(key="privacy.unit", values=["example", "merchant"]).is_budget
    assert not Axis(name="a", values=[private, {**private, "label": "m", "privacy.unit": "merchant"}]).is_budget
    assert Axis(name="a", values=[private, {**private, "label": "r", "federation.rounds": 2}]).is_budget
    assert not Axis(name="a", values=[private, {**private, "label": "m", "federation.method": "fedmd"}]).is_budget
    assert not Axis(key="federation.rounds", values=[1, 2]).is_budget


def test_an_exclusion_takes_labels_values_and_lists(tables):
    study = Study.parse({**tables, "exclude": [{"method": "fedmd", "epsilon": [8, math.inf]}]})
    assert study.excludes({"method": "fedmd", "unit": "example", "epsilon": "inf"})
    assert not study.excludes({"method": "fedmd", "unit": "example", "epsilon": "1"})
    assert not study.excludes({"method": "fedavg-kd", "unit": "example", "epsilon": "8"})


def change(tables, place, value):
    *parents, last = place
    for parent in parents:
        tables = tables[parent]
    tables[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["nmae"], "x", "study: unknown key nmae"),
        (["name"], "a b", "study: name must be text that matches"),
        (["seeds"], 0, "study: seeds must be at least 1"),
        (["base"], None, "study: base is missing"),
        (["base"], {"federation": {"ruonds": 3}}, "study, base: unknown key federation.ruonds"),
        (["base"], {"file": 3}, "base.file must be the path of an experiment's TOML file"),
        (["base"], "none.toml", "study, base: cannot read experiment none.toml"),
        (["audit"], {"shadows": 5}, "study: audit.shadows must be a multiple of 2"),
        (["audit"], {"seed": 5}, "study: unknown key audit.seed"),
        (["axis"], [], "study: axis: List should have at least 1 item"),
        (["axis", 2], {"values": [1]}, "an axis requires a `name`, or a `key`"),
        (["axis", 2], {"name": "n", "values": [1]}, "axis 'n': 1 requires the axis to have a `key`"),
        (["axis", 2], {"key": "a.b", "values": [[1]]}, "axis 'b': [1] is neither a number nor a text"),
        (["axis", 2], {"key": "a.b", "values": [1, 1.0]}, "axis 'b': two values have the label '1'"),
        (["axis", 2], {"name": "n", "values": [{"a.b": 1}]}, "axis 'n': a table among the values requires a label"),
        (["axis", 2], {"key": "seed", "values": [1]}, "axis 'seed': the results have a column of this name"),
        (
            ["axis", 2],
            {"name": "worst tenth", "key": "federation.rounds", "values": [1]},
            "axis 'worst tenth': the results have a column of this name",
        ),
        (
            ["axis", 2],
            {"name": "gain over fedmd", "key": "federation.rounds", "values": [1]},
            "axis 'gain over fedmd': the results have a column of this name",
        ),
        (["axis", 2], {"name": "cells", "key": "a.b", "values": [1]}, "axis 'cells': the results have a column"),
        (["axis", 2], {"key": "seed", "name": "s", "values": [1]}, "axis 's': seed cannot be varied"),
        (["axis", 2], {"key": "a.b", "name": "auc_interval", "values": [1]}, "axis 'auc_interval': the results have a"),
        (
            ["axis", 2],
            {"name": "n", "values": [{"label": "x", "federation.method": "fedmd"}]},
            "axes 'method' and 'n' both change federation.method: keep one of them",
        ),
        (["axis", 2], {"key": "runtime.threads", "values": [1]}, "axis 'threads': runtime.threads cannot be varied"),
        (["axis", 2, "name"], "unit", "two axes have the name 'unit'"),
        (["axis", 2, "vaules"], [], "unknown key axis.3.vaules"),
        (["exclude"], [{}], "table 1 of exclude is empty"),
        (["exclude"], [{"methd": "x"}], "table 1 of exclude: unknown axis 'methd'; axes: method, unit, epsilon"),
        (["baseline"], ["methd", "fedmd"], "baseline: unknown axis 'methd'; axes: method, unit, epsilon"),
        (["baseline"], ["method", "fd"], "baseline: axis 'method' has no value 'fd'; it has: fedavg-kd, fedmd"),
        (["exclude"], [{"epsilon": 3}], "table 1 of exclude: axis 'epsilon' has no value '3'; it has: 1, 8, inf"),
    ],
)
def test_a_mistake_is_named(tables, place, value, message):
    change(tables, place, value)
    with pytest.raises(ConfigError) as raised:
        Study.parse(tables)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read study .*none\.toml"):
        Study.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        Study.read(tmp_path / "bad.toml")


def test_options_stay_with_the_part_that_they_were_given_to():
    base = Experiment().with_changes({"federation.options": {"proxy_steps": 4}, "federation.label": "mine"})
    same = varied(base, {"federation.method": "fedavg-kd", "federation.rounds": 3})
    assert (same.federation.options, same.federation.label) == ({"proxy_steps": 4}, "mine")
    other = varied(base, {"federation.method": "fedmd"})
    assert (other.federation.options, other.federation.title) == ({}, "fedmd")
    given = varied(base, {"federation.method": "fedmd", "federation.options": {"digest_epochs": 2}})
    assert given.federation.options == {"digest_epochs": 2}


def test_changes_to_single_options_stay_in_their_cell(tables):
    axis = [
        {"name": "method", "values": [{"label": "md", "federation": {"method": "fedmd", "options": {"a": 1}}}]},
        {"key": "federation.options.b", "values": [2, 3]},
    ]
    study = Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1})
    options = [cell.experiment.federation.options for cell in expand(study) if cell.role == "cell"]
    assert options == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]
    assert study.axes[0].choices[0].changes["federation.options"] == {"a": 1}
    with_one = varied(Experiment(), {"federation.method": "fedmd", "federation.options.c": 1})
    assert with_one.federation.options == {"c": 1}
    assert varied(Experiment(), {"federation.method": "fedmd"}).federation.options == {}


@pytest.mark.parametrize("change", [{"privacy.epsilon": math.inf, "privacy.delta": 0.1}, {"privacy.unit": "none"}])
def test_no_privacy_is_the_same_whatever_else_is_said_about_privacy(change):
    base = Experiment().with_changes({"privacy": {"unit": "example", "epsilon": 8, "max_grad_norm": 3.0}})
    assert varied(base, change).privacy == Experiment().privacy


def test_epsilon_and_a_fixed_noise_replace_each_other():
    base = Experiment().with_changes({"privacy": {"unit": "example", "epsilon": 8, "delta": 1e-3}})
    fixed = varied(base, {"privacy.noise_multiplier": 2.0}).privacy
    assert (fixed.epsilon, fixed.noise_multiplier, fixed.delta) == (None, 2.0, 1e-3)
    target = varied(varied(base, {"privacy.noise_multiplier": 2.0}), {"privacy.epsilon": 1}).privacy
    assert (target.epsilon, target.noise_multiplier) == (1.0, None)


UNITS = [
    {"label": "example", "privacy": {"unit": "example", "rows": 10, "training": {"optimizer": "sgd"}}},
    {"label": "vote", "privacy": {"unit": "vote", "answers": 7, "training": {"learning_rate": 0.5}}},
]


def test_units_of_an_axis_bring_keys_of_their_own_and_share_the_budget(tables):
    axis = [{"name": "unit", "values": UNITS}, {"key": "privacy.epsilon", "values": [1, math.inf]}]
    study = Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1})
    example, _, vote, no_privacy = (cell.experiment.privacy for cell in expand(study) if cell.role == "cell")
    assert (example.unit, example.epsilon, example.rows, example.training.optimizer) == ("example", 1.0, 10, "sgd")
    assert (vote.unit, vote.epsilon, vote.answers, vote.training.learning_rate) == ("vote", 1.0, 7, 0.5)
    assert no_privacy == Experiment().privacy
    assert study.budget_axis == "epsilon"


def test_a_key_that_an_axis_gives_to_a_unit_without_it_is_refused_and_not_dropped(tables):
    axis = [
        {"key": "privacy.unit", "values": ["example", "vote"]},
        {"name": "size", "values": [{"label": "small", "privacy.epsilon": 1.0, "privacy.rows": 10}]},
    ]
    study = Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1})
    with pytest.raises(ConfigError, match=r"unit=vote, size=small.*rows belongs to unit example or group, not to vote"):
        expand(study)


def test_what_the_base_sets_for_its_unit_goes_with_that_unit():
    base = Experiment().with_changes({"privacy": {"unit": "example", "epsilon": 8, "rows": 10, "delta": 1e-3}})
    other = varied(base, {"privacy.unit": "merchant"}).privacy
    assert (other.unit, other.epsilon, other.delta) == ("merchant", 8.0, 1e-3)


def test_a_table_in_a_table_of_the_base_changes_the_keys_that_it_has_and_leaves_the_others(tables, tmp_path):
    (tmp_path / "mine.toml").write_text("[training.merchants]\nbatch_size = 7\nlearning_rate = 0.1\n", encoding="utf-8")
    base = {"file": "mine.toml", "training": {"merchants": {"learning_rate": 0.5}}}
    merchants = Study.parse({**tables, "base": base}, folder=tmp_path).base.training.merchants
    assert (merchants.batch_size, merchants.learning_rate) == (7, 0.5)


def test_no_column_of_the_results_can_be_an_axis(finished):
    from fed_distill.sweeps.collect import combinations_table, results_table

    results = results_table(finished.study, finished.cells, finished.places)
    tables = [results, combinations_table(finished.study, results)]
    own = {name for table in tables for name in table.columns if "." not in name and not name.endswith("_interval")}
    assert own - {axis.name for axis in finished.study.axes} == set(COLUMNS)
