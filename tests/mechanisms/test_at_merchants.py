"""What merchants' own noise cannot do is said before a run."""

import pytest

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.plan import Plan

PRIVATE = {"unit": "example", "epsilon": 1.0}


def check(unit, tables):
    experiment = Experiment.parse({**tables, "privacy": {**PRIVATE, "unit": unit, **tables.get("privacy", {})}})
    mechanism_of(experiment).check(experiment, experiment.federation, (StudentUpdate,))


@pytest.mark.parametrize("unit", ["example", "group"])
@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"privacy": {"rate_scales": {"head.*": 2.0}}},
            "privacy.rate_scales requires privacy.training.optimizer = 'sgd'",
        ),
        (
            {"privacy": {"row_rate_power": 0.5, "training": {"optimizer": "adamw"}}},
            "privacy.row_rate_power requires privacy.training.optimizer = 'sgd'",
        ),
        (
            {"privacy": {"row_rate_power": 0.5, "training": {"optimizer": "sgd"}}, "training": {"submodel": False}},
            "requires training.submodel",
        ),
        ({"training": {"r_drop": 1.0}}, "clips the gradient of one pass over an example"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(unit, tables, message):
    with pytest.raises(ConfigError, match=message):
        check(unit, tables)


def test_they_are_nobody_else_s_concern():
    """A study may vary the unit with all else as it is."""
    harmful = {"training": {"r_drop": 1.0}}
    with pytest.raises(ConfigError):
        check("example", harmful)
    assert check("merchant", harmful) is None


@pytest.mark.parametrize("unit", ["example", "group"])
@pytest.mark.parametrize("promise", [{"epsilon": 4.0}, {"noise_multiplier": 1.0}])
def test_a_plan_without_private_steps_has_nothing_to_protect(unit, promise):
    experiment = Experiment.parse({"privacy": {"unit": unit, "batch_size": 16, **promise}})
    mechanism = mechanism_of(experiment)
    with pytest.raises(ConfigError, match="of which the method plans none"):
        mechanism.price(experiment, Plan(), 100, 3, (StudentUpdate,))
