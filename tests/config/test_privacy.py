"""One table a privacy unit: it has the keys of that unit, and whoever writes another's is told whose it is."""

import pytest

from fed_distill.config import Experiment
from fed_distill.config.privacy import UNITS, OwnPrivacy, PrivacyConfig, ProtectedConfig
from fed_distill.errors import ConfigError
from fed_distill.mechanisms import MECHANISMS

OWN_KEYS = {unit: table.model_fields.keys() - ProtectedConfig.model_fields.keys() for unit, table in UNITS.items()}
KEYS = sorted({key for keys in OWN_KEYS.values() for key in keys})


def parsed(unit, **keys):
    promise = {} if unit == "none" else {"epsilon": 1.0}
    return Experiment.parse({"privacy": {"unit": unit, **promise, **keys}})


def test_every_built_in_unit_has_a_table():
    assert UNITS.keys() == MECHANISMS.keys()
    assert all(type(parsed(unit).privacy) is table for unit, table in UNITS.items())
    assert type(parsed("mine:Own").privacy) is OwnPrivacy
    assert PrivacyConfig.model_fields.keys() == NO_UNIT


NO_UNIT = UNITS["none"].model_fields.keys()


@pytest.mark.parametrize("unit", UNITS)
def test_a_table_has_the_keys_of_its_unit_and_no_other(unit):
    default = {key: next(t for t in UNITS.values() if key in t.model_fields).model_fields[key] for key in KEYS}
    for key in KEYS:
        value = default[key].get_default(call_default_factory=True)
        given = {key: 3 if value is None and key != "freeze" else ["x"] if value is None else value}
        if key == "adaptive_quantile":
            given = {key: 0.5}
        owners = [one for one, keys in OWN_KEYS.items() if key in keys]
        if unit in owners:
            assert getattr(parsed(unit, **given).privacy, key) == given[key]
            continue
        with pytest.raises(ConfigError) as found:
            parsed(unit, **given)
        told = str(found.value)
        assert told.startswith(f"experiment: privacy: {key} ") and all(one in told for one in owners)


@pytest.mark.parametrize(
    ("unit", "key", "message"),
    [
        (
            "none",
            "batch_size",
            "batch_size requires a unit: set privacy.unit to example or group, or remove batch_size",
        ),
        (
            "vote",
            "max_update_norm",
            "max_update_norm belongs to unit merchant, not to vote: remove it, or change privacy.unit",
        ),
        (
            "merchant",
            "rows",
            "rows belongs to unit example or group, not to merchant: remove it, or change privacy.unit",
        ),
        ("m:Own", "rows", "rows belongs to unit example or group: set options of a custom unit in privacy.options"),
        ("example", "options", "unknown key privacy.options"),
        ("example", "rowz", "unknown key privacy.rowz; did you mean privacy.rows?"),
    ],
)
def test_a_key_of_another_unit_is_refused_by_its_name(unit, key, message):
    with pytest.raises(ConfigError) as found:
        parsed(unit, **{key: 1})
    assert str(found.value).removeprefix("experiment: ").removeprefix("privacy: ") == message


def test_a_unit_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"privacy: unknown privacy unit 'exmaple'; did you mean example\?"):
        parsed("exmaple", max_grad_norm=1.0)
    with pytest.raises(ConfigError, match=r"privacy\.unit must be a string"):
        Experiment.parse({"privacy": {"unit": 3, "epsilon": 1.0}})


def test_another_unit_takes_over_what_both_have_and_nothing_else():
    before = parsed("group", max_grad_norm=3.0, group="pair", delta=1e-3, training={"optimizer": "sgd"})
    other = before.with_changes({"privacy.unit": "example"}).privacy
    assert (other.epsilon, other.delta, other.max_grad_norm, other.training.optimizer) == (1.0, 1e-3, 3.0, "sgd")
    whole = before.with_changes({"privacy.unit": "merchant", "privacy.max_update_norm": 0.5}).privacy
    assert (whole.epsilon, whole.delta, whole.max_update_norm) == (1.0, 1e-3, 0.5)
    assert before.with_changes({"privacy.unit": "none"}) == Experiment()


def test_options_of_one_own_unit_are_not_those_of_another():
    before = parsed("mine:Own", options={"strength": 2})
    assert before.with_changes({"privacy.epsilon": 2.0}).privacy.options == {"strength": 2}
    assert before.with_changes({"privacy.unit": "mine:Other"}).privacy.options == {}


@pytest.mark.parametrize("unit", [*UNITS, "mine:Own"])
def test_every_unit_survives_toml(unit):
    experiment = parsed(unit)
    assert Experiment.from_run_config(experiment.to_run_config()) == experiment
