"""The grid is expanded as written, controls are trained once a seed, and a fingerprint is all that a result needs."""

import math
from copy import deepcopy
from itertools import product
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from fed_distill.config import Experiment
from fed_distill.config.privacy import ExamplePrivacy
from fed_distill.errors import ConfigError
from fed_distill.sweeps.cells import _other_than, distinct, expand, fingerprint_of, only
from fed_distill.sweeps.grid import Study


def test_every_combination_that_is_not_excluded_is_a_cell_of_every_seed(study):
    cells = [cell for cell in expand(study) if cell.role == "cell"]
    wanted = [
        {"method": method, "unit": unit, "epsilon": epsilon}
        for method, unit, epsilon in product(["fedavg-kd", "fedmd"], ["example", "merchant"], ["1", "8", "inf"])
        if (method, unit) != ("fedmd", "merchant")
    ]
    assert [(dict(cell.labels), cell.seed) for cell in cells] == [(one, seed) for seed in range(3) for one in wanted]


def test_a_cell_is_one_federation_on_one_seed_with_its_changes(study):
    for cell in expand(study):
        experiment = cell.experiment
        assert (experiment.seed, experiment.repeats, experiment.compare) == (cell.seed, 1, [])
        if cell.role == "cell":
            epsilon = float(cell.labels["epsilon"])
            private = math.isfinite(epsilon)
            assert experiment.controls == []
            assert experiment.federation.method == cell.labels["method"]
            assert experiment.federation.rounds == 5
            assert experiment.privacy.unit == (cell.labels["unit"] if private else "none")
            assert getattr(experiment.privacy, "epsilon", None) == (epsilon if private else None)


def test_controls_are_trained_once_a_seed_without_privacy_and_named_by_every_cell(study):
    cells = expand(study)
    controls = {cell.seed: cell for cell in cells if cell.role == "controls"}
    assert len([cell for cell in cells if cell.role == "controls"]) == len(controls) == 3
    assert all(cell.controls == controls[cell.seed].fingerprint for cell in cells if cell.role == "cell")
    experiment = controls[0].experiment
    assert experiment.controls == ["student", "server", "local", "pooled"]
    assert (experiment.federation.title, experiment.federation.rounds, experiment.federation.start) == (
        "fedavg",
        5,
        "labels",
    )
    assert experiment.privacy.unit == "none"
    assert not experiment.adaptation.enabled
    assert cells[0].role == "controls"


def test_fedavg_without_a_teacher_has_the_bases_options_of_its_aggregator(tables):
    own = {**tables["base"].get("federation", {}), "aggregator_options": {"weight": "examples-squared"}}
    first, *_ = expand(Study.parse({**tables, "base": {**tables["base"], "federation": own}}))
    assert (first.role, first.experiment.federation.title) == ("controls", "fedavg")
    assert first.experiment.federation.aggregator_options == {"weight": "examples-squared"}


def test_fedavg_without_a_teacher_trains_submodels_if_the_base_averages_them(tables):
    own = {**tables["base"].get("federation", {}), "aggregator": "fedsubavg"}
    axis = [
        {
            "name": "tables",
            "values": [{"label": "whole", "training.submodel": False, "federation.aggregator": "fedavg"}],
        }
    ]
    base = {**tables["base"], "federation": own}
    first, second = expand(Study.parse({**tables, "base": base, "axis": axis, "exclude": [], "seeds": 1}))
    assert (first.role, first.experiment.federation.aggregator) == ("controls", "fedsubavg")
    assert first.experiment.training.submodel and not second.experiment.training.submodel


def test_fedavg_without_a_teacher_aggregates_as_the_base(tables):
    base = {**tables["base"], "federation": {**tables["base"].get("federation", {}), "aggregator": "fedsubavg"}}
    first, *_ = expand(Study.parse({**tables, "base": base}))
    assert (first.role, first.experiment.federation.title) == ("controls", "fedavg")
    assert (first.experiment.federation.aggregator, first.experiment.federation.start) == ("fedsubavg", "labels")


def test_cells_that_change_the_servers_student_have_controls_of_their_own(tables):
    axis = [
        {"key": "training.server.epochs", "values": [1, 2]},
        {"key": "training.merchants.batch_size", "values": [8, 16]},
    ]
    cells = expand(Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1}))
    by_epochs = {(cell.labels["epochs"], cell.controls) for cell in cells if cell.role == "cell"}
    assert len(by_epochs) == 2
    assert len([cell for cell in cells if cell.role == "controls"]) == 2


def test_how_merchants_train_and_how_messages_are_coded_needs_no_controls_of_its_own(tables):
    optimizer = [{"label": "sgd", "training.merchants.optimizer": "sgd", "training.merchants.momentum": 0.5}, "adamw"]
    axis = [
        {"name": "optimizer", "key": "training.merchants.optimizer", "values": optimizer},
        {"name": "coding", "values": [{"label": "none"}, {"label": "sign", "transport.weights": ["sign"]}]},
    ]
    cells = expand(Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1}))
    assert [cell.role for cell in cells] == ["controls", *["cell"] * 4]
    assert cells[0].experiment.training.merchants.optimizer == "adamw"
    assert cells[0].experiment.transport.weights == []


def test_merchants_momentum_needs_no_controls_of_its_own_where_the_server_trains_by_sgd_too(tables):
    momentum = {
        "training.merchants.optimizer": "sgd",
        "training.merchants.momentum": 0.9,
        "training.server.optimizer": "sgd",
    }
    axis = [{"name": "optimizer", "values": [{"label": "adamw"}, {"label": "sgd", **momentum}]}]
    cells = expand(Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1}))
    assert [cell.role for cell in cells] == ["controls", "cell", "controls", "cell"]
    assert (cells[2].experiment.training.merchants.optimizer, cells[2].experiment.training.merchants.momentum) == (
        "adamw",
        0.0,
    )
    assert cells[2].experiment.training.server.optimizer == "sgd"


def test_recommenders_by_purchases_are_controls_of_the_next_basket_alone(tables):
    base = {**tables["base"], "controls": ["server", "repeat"], "data": {"dataset": "shop"}}
    axis = [{"key": "data.task", "values": ["next-basket", "profile"]}]
    cells = expand(Study.parse({**tables, "base": base, "axis": axis, "exclude": [], "seeds": 1}))
    wanted = [cell.experiment.controls for cell in cells if cell.role == "controls"]
    assert wanted == [["server", "repeat"], ["server"]]


def test_the_fedavg_control_has_the_bases_patience(tables):
    base = {**tables["base"], "federation": {"rounds": 5, "patience": 2}}
    controls = expand(Study.parse({**tables, "base": base, "seeds": 1}))[0].experiment
    assert (controls.federation.method, controls.federation.patience) == ("fedavg", 2)


def test_controls_are_not_attacked_and_the_same_for_every_attack(tables):
    attacks = [{"label": "none"}, *({"label": name, "byzantine.attack": name} for name in ("label-flip", "scaled"))]
    base = {**tables["base"], "byzantine.fraction": 0.3}
    axis = [{"name": "attack", "values": attacks}]
    cells = expand(Study.parse({**tables, "base": base, "axis": axis, "exclude": [], "seeds": 1}))
    assert [cell.role for cell in cells] == ["controls", *["cell"] * 3]
    assert cells[0].experiment.byzantine.fraction == 0.0
    assert [cell.experiment.byzantine.attack for cell in cells[1:]] == ["label-flip", "label-flip", "scaled"]


def test_a_base_without_controls_has_none(tables):
    cells = expand(Study.parse({**tables, "base": {"controls": []}}))
    assert all(cell.role == "cell" and cell.controls is None for cell in cells)


def test_without_the_fedavg_control_its_run_has_one_round(tables):
    cells = expand(Study.parse({**tables, "base": {"controls": ["server"]}}))
    assert cells[0].experiment.controls == ["server"]
    assert cells[0].experiment.federation.rounds == 1


def test_attacks_are_for_the_grids_cells_of_the_first_seeds_and_change_no_fingerprint(tables):
    plain = expand(Study.parse(tables))
    cells = expand(Study.parse({**tables, "audit": {"seeds": 2, "shadows": 8}}))
    assert [cell.fingerprint for cell in cells] == [cell.fingerprint for cell in plain]
    assert {(cell.seed, cell.attacks.shadows) for cell in cells if cell.attacks is not None} == {(0, 8), (1, 8)}
    assert all(cell.attacks is None for cell in cells if cell.role == "controls" or cell.seed == 2)


def test_equal_experiments_are_one_run(study):
    cells = expand(study)
    free = [cell for cell in cells if cell.labels.get("epsilon") == "inf" and cell.labels["method"] == "fedavg-kd"]
    assert len(free) == 6
    assert len({cell.fingerprint for cell in free}) == 3
    assert len(distinct(cells)) == len(cells) - 3


def test_a_tiny_study_has_one_seed_of_each_tiny_experiment(study):
    cells = expand(study, tiny=True)
    assert {cell.seed for cell in cells} == {0}
    assert all(cell.experiment.data.max_merchants == 6 for cell in cells)
    assert all(cell.experiment.federation.rounds <= 2 for cell in cells)


def test_seeds_begin_with_the_bases(tables):
    cells = expand(Study.parse({**tables, "base": {"seed": 7}, "seeds": 2}))
    assert sorted({cell.seed for cell in cells}) == [7, 8]


def test_a_wrong_key_names_the_cell(tables):
    tables["axis"][2] = {"key": "privacy.epsilom", "values": [1]}
    with pytest.raises(ConfigError) as raised:
        expand(Study.parse(tables))
    assert "cell method=fedavg-kd, unit=example, epsilom=1: unknown key privacy.epsilom" in str(raised.value)


def test_excluding_everything_is_a_mistake(tables):
    with pytest.raises(ConfigError, match="exclude leaves no cell"):
        expand(Study.parse({**tables, "exclude": [{"method": ["fedavg-kd", "fedmd"]}]}))


def leaves(table, prefix=()):
    for key, value in table.items():
        yield from leaves(value, (*prefix, key)) if isinstance(value, dict) and value else [((*prefix, key), value)]


OTHERS = {
    "teacher.ensemble": [{"seed": 1}],
    "distill.transfer": ["decisions"],
    "distill.weights": {"probabilities": 2.0},
    "distill.assistants": [{"model": "lstm"}],
    "transport.weights": ["int8"],
    "transport.soft_labels": ["int8"],
    "transport.downlink_weights": ["int8"],
    "privacy.unit": "group",
    "privacy.rate_scales": {"head.*": 2.0},
}
"""Of keys whose other values no rule would guess."""


def others(path, value):
    """Other values of a key, some of which may be wrong."""
    if ".".join(path) in OTHERS:
        return [OTHERS[".".join(path)]]
    table = Experiment
    for parent in path[:-1]:
        inner = ExamplePrivacy if parent == "privacy" else table.model_fields[parent].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        table = inner
    else:
        kinds = [table.model_fields[path[-1]].annotation, *get_args(table.model_fields[path[-1]].annotation)]
        named = [name for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]
        if named and not isinstance(value, list):
            return [name for name in named if name != value]
    if isinstance(value, bool):
        return [not value]
    if value == math.inf:
        return [1.0]
    if isinstance(value, (int, float)):
        return [value / 2 or 0.5, value + 1] if isinstance(value, float) else [value + 1, value - 1]
    if isinstance(value, str):
        return [value + "x"]
    return [["x"], ["server"], [{"method": "fedmd"}]] if isinstance(value, list) else [{"x": 1}]


def parsed(tables):
    """The experiment, or None if a value does not fit."""
    try:
        return Experiment.parse(tables)
    except ConfigError:
        return None


def changed(tables, path, value):
    copy = deepcopy(tables)
    *parents, last = path
    inner = copy
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return copy


@pytest.fixture
def full():
    return (
        Experiment()
        .with_changes(
            {
                "data.max_merchants": 9,
                "data.max_examples": 900,
                "training.merchants.clip_norm": 1.0,
                "training.student.epochs": 2.0,
                "controls": ["server", "local"],
                "privacy": {"unit": "example", "epsilon": 3.0, "delta": 1e-3, "training": {"optimizer": "sgd"}},
            }
        )
        .model_dump(mode="json", exclude_none=True)
    )


def test_the_fingerprint_changes_with_every_value_but_name_and_runtime(full):
    seen, fixed = {fingerprint_of(Experiment.parse(full))}, []
    for path, value in leaves(full):
        if path[0] in ("name", "runtime"):
            continue
        experiments = filter(None, (parsed(changed(full, path, other)) for other in others(path, value)))
        experiment = next(experiments, None)
        if experiment is None:
            fixed.append(".".join(path))
            continue
        found = fingerprint_of(experiment)
        assert found not in seen, path
        seen.add(found)
    together = ["training.augmentation.translated", "training.augmentation.back_translation"]
    of_sgd = [f"{table}.momentum" for table in ("teacher", "teacher.masked", "student.masked")]
    of_sgd += [f"training.{table}.momentum" for table in ("merchants", "server")]
    unused = ["distill.decoupled_beta", "distill.list_temperature"]  # of transfers that are not chosen
    unused += ["distill.assistant_weight", "data.proxy_neighbours"]
    unused += [f"data.clicks.{key}" for key in ("bias", "noise", "corrected")]
    unused += [f"training.unlabeled.{key}" for key in ("confidence", "pseudo_labels")]
    assert sorted(fixed) == sorted(["teacher.combine", *unused, *of_sgd, *together])
    pair = Experiment.parse(full).with_changes(dict(zip(together, (0.5, ["there", "back"]), strict=True)))
    assert fingerprint_of(pair) not in seen
    assert len(seen) > 50


def test_the_fingerprint_does_not_know_keys_at_their_defaults(full, monkeypatch):
    """What a study has run stays known to a version with one key more."""
    before = fingerprint_of(Experiment.parse(full))
    more = {"training": {"rate_of_tomorrow": 0.5}, "tomorrow": {"enabled": False, "options": {}}}
    dump = Experiment.model_dump

    def with_more(self, **options):
        tables = dump(self, **options)
        return {**tables, **more, "training": {**tables["training"], **more["training"]}}

    monkeypatch.setattr(Experiment, "model_dump", with_more)
    assert fingerprint_of(Experiment.parse(full)) == before


def test_an_empty_table_is_not_its_default_if_that_has_something():
    assert _other_than({"a": {"b": 1}, "c": {}}, {"a": {}, "c": {}}) == {"a": {"b": None}}
    assert _other_than({"a": {"b": 1}, "c": {}}, {"a": {"b": 1}, "c": {"d": 2}}) == {"c": {"d": 2}}
    assert _other_than({"a": 1.0}, {"a": None}) == {"a": None}


def test_the_fingerprint_does_not_know_names_places_and_the_order_of_keys(full):
    whole = fingerprint_of(Experiment.parse(full))
    elsewhere = Experiment.parse(full).with_changes(
        {"name": "other", "runtime.folder": "x", "runtime.threads": 3, "runtime.resume": True}
    )
    assert fingerprint_of(elsewhere) == whole

    def turned(table):
        return {key: turned(table[key]) if isinstance(table[key], dict) else table[key] for key in reversed(table)}

    assert list(turned(full)) != list(full)
    assert fingerprint_of(Experiment.parse(turned(full))) == whole
    options = [Experiment().with_changes({"federation.options": one}) for one in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert fingerprint_of(options[0]) == fingerprint_of(options[1])


def test_only_some_cells_are_those_with_a_named_label_of_every_named_axis_and_their_controls(study):
    cells = expand(study)
    some = only(study, cells, ["method=fedavg-kd", "epsilon=1", "epsilon = inf"])
    assert [cell for cell in some if cell.role == "cell"] == [
        cell for cell in cells
        if cell.labels.get("method") == "fedavg-kd" and cell.labels["epsilon"] in ("1", "inf")
    ]  # fmt: skip
    assert [cell for cell in some if cell.role == "controls"] == [cell for cell in cells if cell.role == "controls"]
    assert only(study, cells, []) == cells


def test_controls_that_no_chosen_cell_is_compared_with_are_left_out(tables):
    axis = [{"key": "training.server.epochs", "values": [1, 2]}]
    one = Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1})
    assert [cell.role for cell in expand(one)] == ["controls", "cell"] * 2
    chosen = only(one, expand(one), ["epochs=2"])
    assert [cell.role for cell in chosen] == ["controls", "cell"]
    assert chosen[0].experiment.training.server.epochs == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method", "AXIS=LABEL.*'epsilon', 'method', 'unit'.*'method'"),
        ("seed=0", "AXIS=LABEL.*'unit'.*'seed=0'"),
        ("method=pate", "method.*pate.*fedavg-kd.*fedmd"),
    ],
)
def test_an_axis_or_a_label_that_there_is_not_is_named(study, setting, message):
    with pytest.raises(ConfigError, match=message):
        only(study, expand(study), [setting])


def test_only_what_is_excluded_is_an_error(study):
    with pytest.raises(ConfigError, match="--only leaves no cell"):
        only(study, expand(study), ["method=fedmd", "unit=merchant"])


def test_an_axis_that_a_later_one_replaces_is_refused(tables):
    tables["axis"] = [
        {"name": "length", "values": [
            {"label": "short", "federation.rounds": 2}, {"label": "long", "federation.rounds": 20}
        ]},
        {"name": "set", "values": [{"label": "a", "federation.rounds": 5}, {"label": "b", "federation.rounds": 7}]},
    ]  # fmt: skip
    tables["exclude"] = []
    with pytest.raises(ConfigError, match="length=short and length=long are the same experiments"):
        expand(Study.parse(tables))
    tables["axis"][1]["values"][0] = {"label": "a", "data.seed": 5}  # it replaces the first axis in one row only
    assert len({cell.fingerprint for cell in expand(Study.parse(tables)) if cell.seed == 0 and cell.labels}) == 3
