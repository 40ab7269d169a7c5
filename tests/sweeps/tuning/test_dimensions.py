"""Dimensions of a search space: what a share of each is, and that draws depend on names and numbers only."""

import numpy as np
import pytest

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.sweeps.dimensions import Factors, Range, Values, drawn, keys_of
from fed_distill.sweeps.space import Tuning
from fed_distill.sweeps.variation import Factor, resolved, value_of

RATE, ROUNDS = "training.merchants.learning_rate", "federation.rounds"


def change(dimension, share):
    (value,) = dimension.at(share).changes.values()
    return value


@pytest.mark.parametrize(
    ("given", "share", "expected"),
    [
        ({"low": 1.0, "high": 3.0}, 0.25, 1.5),
        ({"low": 1e-3, "high": 1e-1, "log": True}, 0.5, pytest.approx(1e-2)),
        ({"low": 1, "high": 4}, 0.0, 1),
        ({"low": 1, "high": 4}, 0.999, 4),
        ({"low": 1, "high": 100, "log": True}, 0.5, 7),  # the geometric middle of 0.5 and 100.5
        ({"low": 2, "high": 8, "log": True}, 0.999, 8),
        ({"low": 0.0, "high": 1.0, "step": 0.25}, 0.5, 0.5),  # of five numbers the third
        ({"low": 0.0, "high": 1.0, "step": 0.25}, 0.999, 1.0),
    ],
)
def test_a_share_of_a_range(given, share, expected):
    assert change(Range(key=ROUNDS, **given), share) == expected


def test_a_share_of_values_and_of_factors():
    values = Values(key=ROUNDS, values=[2, 4, 8, 16])
    assert [change(values, share) for share in (0.0, 0.24, 0.25, 0.99)] == [2, 2, 4, 16]
    factors = Factors(key=RATE, factors=[0.5, 2])
    assert [change(factors, share) for share in (0.0, 0.49, 0.5)] == [Factor(0.5), Factor(0.5), Factor(2.0)]
    assert factors.name == "learning_rate" and keys_of(factors) == {RATE}
    assert factors.at(0.0).label == "× 0.5"


def test_a_factor_multiplies_what_the_experiment_has():
    experiment = Experiment().with_changes({RATE: 4e-3, ROUNDS: 3})
    assert resolved(experiment, {RATE: Factor(0.5), ROUNDS: Factor(2.0), "data.seed": 5}) == {
        RATE: 2e-3,
        ROUNDS: 6,
        "data.seed": 5,
    }
    assert resolved(experiment, {ROUNDS: Factor(0.1)}) == {ROUNDS: 1}
    with pytest.raises(ConfigError, match=r"data\.dataset is 'marketplace', which no factor can multiply"):
        resolved(experiment, {"data.dataset": Factor(2.0)})


def test_the_value_of_a_key():
    experiment = Experiment().with_changes({"federation.options": {"proxy_steps": 4}})
    assert value_of(experiment, "federation.options.proxy_steps") == 4
    assert value_of(experiment, "federation.options.local_epochs") is None
    assert value_of(experiment, "federation.round") is None


def test_draws_depend_on_seed_number_and_name_only():
    rate, rounds = Factors(key=RATE, factors=[0.5, 1, 2]), Range(key=ROUNDS, low=1, high=1000)
    alone, together = drawn([rate], 7, 3), drawn([rounds, rate], 7, 3)
    assert together["learning_rate"] == alone["learning_rate"]
    assert drawn([rounds], 7, 3) == {"rounds": together["rounds"]}
    assert len({drawn([rounds], seed, number)["rounds"].label for seed in (1, 2) for number in (1, 2)}) == 4


def test_a_tuning_searches_factors_of_its_base(tables):
    tables["search"] = [{"key": RATE, "factors": [0.5, 2]}]  # of the base's 1e-3
    tuning = Tuning.parse(tables)
    (factors,) = tuning.search
    tried = {one.label: tuning.experiment({"learning_rate": one}) for one in factors.ends()}
    assert {label: one.training.merchants.learning_rate for label, one in tried.items()} == {"× 0.5": 5e-4, "× 2": 2e-3}
    assert tuning.start.data.scored_on == "validation"
    assert tuning.best({"learning_rate": factors.chosen("× 2")}).data.scored_on == "test"


def test_integers_of_a_logarithmic_range_have_the_shares_of_their_intervals():
    given = Range(key=ROUNDS, low=2, high=8, log=True)
    found = [change(given, share) for share in np.linspace(0, 1, 9999, endpoint=False)]
    shares = np.bincount(found, minlength=9)[2:] / len(found)
    whole = np.arange(2, 9)
    expected = np.log((whole + 0.5) / (whole - 0.5)) / np.log(8.5 / 1.5)
    np.testing.assert_allclose(shares, expected, atol=1e-3)
