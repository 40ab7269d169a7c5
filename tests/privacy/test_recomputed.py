"""Epsilon recomputed from hand-written ledger lines, against published and closed-form values."""

import json
import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from tests.privacy.recomputed import assert_charged_rightly, mechanisms_of, recomputed

SUBSAMPLED = {"noise_multiplier": 0.7, "sampling_rate": 0.01, "steps": 12}
PUBLISHED = 2.4612381  # of 120 such steps at 1e-5: tensorflow/privacy, compute_dp_sgd_privacy_test.py, PLD accountant


def line(spends, unit="example", delta=1e-5, run="one", **fields):
    charge = {"run": run, "arm": "fedavg", "unit": unit, "delta": delta, "spends": spends, "check": "0" * 64}
    return json.dumps({**charge, **fields})


@pytest.fixture
def write(tmp_path):
    def written(*lines):
        path = tmp_path / "acme.jsonl"
        path.write_text("".join(f"{one}\n" for one in lines), encoding="utf-8")
        return path

    return written


def test_ten_rounds_have_the_published_epsilon_of_all_their_steps(write):
    found = recomputed(write(*[line([SUBSAMPLED])] * 10), "example")
    assert found.least <= PUBLISHED * (1 + 1e-4) and found.most == pytest.approx(PUBLISHED, rel=1e-3)
    assert found.least == pytest.approx(PUBLISHED, rel=0.02)
    assert found.third == pytest.approx(PUBLISHED, abs=0.011)
    assert found.delta == 1e-5


@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_without_sampling_it_is_that_of_one_gaussian_mechanism(write, delta):
    """Whose delta is known (Balle and Wang 2018, theorem 8); 3 / 5^2 + 4 / 10^2 = 0.4^2."""
    path = write(
        line([{"noise_multiplier": 5.0, "sampling_rate": 1.0, "steps": 3}], unit="vote"),
        line([{"noise_multiplier": 10.0, "sampling_rate": 1.0, "steps": 4}], unit="vote"),
    )

    def excess(epsilon, mu=0.4):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta

    exact, found = brentq(excess, 0.0, 10.0), recomputed(path, "vote", delta)
    assert found.least <= exact <= found.most
    assert found.most == pytest.approx(exact, rel=1e-3) and found.least == pytest.approx(exact, rel=0.01)


def test_only_what_is_asked_for_counts_at_the_smallest_of_its_deltas(write):
    path = write(
        line([SUBSAMPLED], delta=1e-6),
        line([SUBSAMPLED, {"noise_multiplier": 20.0, "sampling_rate": 1.0, "steps": 1}]),
        line([SUBSAMPLED], unit="merchant", delta=1e-9),
        line([SUBSAMPLED], run="two", delta=1e-8),
    )
    assert mechanisms_of(path, "example", run="one") == ({(0.7, 0.01): 24, (20.0, 1.0): 1}, [1e-6, 1e-5])
    assert recomputed(path, "example", run="one").delta == 1e-6
    assert recomputed(path, "example", 1e-5).most < recomputed(path, "example").most
    with pytest.raises(ValueError, match="no charge of unit group"):
        recomputed(path, "group")


def test_a_wrong_report_is_found(write):
    path = write(line([{**SUBSAMPLED, "steps": 120}]))
    assert_charged_rightly(PUBLISHED * 1.001, path, "example")
    with pytest.raises(AssertionError, match="undercharges"):
        assert_charged_rightly(PUBLISHED * 0.99, path, "example")
    with pytest.raises(AssertionError, match="overcharges"):
        assert_charged_rightly(PUBLISHED * 1.02, path, "example")
