"""What merchants' own noise cannot do is said before a run."""

import pytest

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError, TrainingError
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import Spend, epsilon
from fed_distill.training.plan import Duration
from fed_distill.training.private_training import PrivateTraining

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
@pytest.mark.parametrize("durations", [(), (Duration(steps=0),)])
def test_a_round_without_private_steps_has_nothing_to_protect(unit, promise, durations):
    experiment = Experiment.parse({"privacy": {"unit": unit, "batch_size": 16, **promise}})
    mechanism = mechanism_of(experiment)
    training = PrivateTraining(((Duration(epochs=1.0),), durations, (Duration(epochs=1.0),)))
    with pytest.raises(ConfigError, match="of which the method plans none in round 2"):
        mechanism.price(experiment, training, 100, 3, (StudentUpdate,))


ROUNDS = PrivateTraining(((Duration(steps=3),), (Duration(epochs=20.0),), (Duration(epochs=1.0),)))
"""Of 100 members in batches of 10: 3, 200 and 10 steps."""


@pytest.mark.parametrize(("taken", "steps"), [(1, 200), (2, 210), (3, 213)])
def test_the_price_is_that_of_the_longest_rounds_that_may_be_taken(taken, steps):
    experiment = Experiment.parse({"privacy": {**PRIVATE, "batch_size": 10}})
    mechanism = mechanism_of(experiment)
    assert [ROUNDS.steps(number, 100, 10) for number in (1, 2, 3)] == [3, 200, 10]
    whole, delta = mechanism.price(experiment, ROUNDS, 100, taken, (StudentUpdate,))
    assert whole == Spend(whole.noise_multiplier, 0.1, steps)
    assert 0.99 < epsilon([mechanism.size_spend(), whole], delta) <= 1.0


@pytest.mark.parametrize(("round", "taken"), [(0, 1), (4, 1), (1, 4)])
def test_a_round_that_the_federation_does_not_have_has_no_price(round, taken):
    with pytest.raises(TrainingError, match="the federation has 3"):
        ROUNDS.check(round, taken)
    assert ROUNDS.check(3, 3) is None
