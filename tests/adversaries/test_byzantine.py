"""Which merchants are Byzantine follows from the fraction and the seed alone."""

from collections import Counter

import pytest

from fed_distill.adversaries.byzantine import byzantine_merchants
from fed_distill.config import Experiment
from fed_distill.errors import ConfigError

MERCHANTS = [f"m{number:02d}" for number in range(10)]


def attacked(fraction):
    return Experiment.parse({"byzantine": {"fraction": fraction}})


@pytest.mark.parametrize(("fraction", "size"), [(0.0, 0), (0.01, 1), (0.3, 3), (0.94, 9)])
def test_a_fraction_of_the_merchants_is_byzantine_and_at_least_one_if_any(fraction, size):
    found = byzantine_merchants(attacked(fraction), MERCHANTS, 0)
    assert len(found) == size
    assert found <= set(MERCHANTS)


def test_byzantine_merchants_are_the_same_in_whatever_order_merchants_are_named():
    assert byzantine_merchants(attacked(0.3), MERCHANTS, 4) == byzantine_merchants(attacked(0.3), MERCHANTS[::-1], 4)


def test_another_seed_has_other_byzantine_merchants_and_everybody_is_one_about_as_often():
    counts = Counter(name for seed in range(400) for name in byzantine_merchants(attacked(0.3), MERCHANTS, seed))
    assert all(abs(counts[name] - 120) < 5 * (400 * 0.3 * 0.7) ** 0.5 for name in MERCHANTS)


def test_somebody_must_be_honest():
    with pytest.raises(ConfigError, match=r"byzantine\.fraction = 0\.3 leaves no honest merchant of 1"):
        byzantine_merchants(attacked(0.3), ["only"], 0)
