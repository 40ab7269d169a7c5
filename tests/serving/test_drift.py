"""The population stability index against hand-computed values, SciPy and slow twins."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fed_distill.serving.drift import MINIMUM, MINIMUM_REFERENCE, SLOTS, Drift, DriftWindow, SlidingCounts, psi
from fed_distill.serving.reference import Histogram

COUNTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=12)
VALUES = st.lists(st.floats(-5, 5).map(lambda value: round(value, 1)), min_size=1, max_size=80)


def test_the_index_is_the_hand_computed_one():
    # Shares (50.5, 50.5) / 101 and (80.5, 20.5) / 101: 0.29703 * ln(80.5 / 50.5) - 0.29703 * ln(20.5 / 50.5)
    # = 0.29703 * (0.46628 + 0.90155) = 0.40629
    assert psi([50, 50], [80, 20]) == pytest.approx(0.40629, abs=1e-5)
    # An empty bin: (100.5, 0.5) / 101 against (75.5, 25.5) / 101: 0.24752 * (ln(100.5 / 75.5) + ln(25.5 / 0.5))
    # = 0.24752 * (0.28602 + 3.93183) = 1.04402
    assert psi([100, 0], [75, 25]) == pytest.approx(1.04402, abs=1e-4)


@given(COUNTS)
def test_the_index_is_the_sum_of_both_divergences(counts):
    """Jeffreys' divergence by SciPy's Kullback-Leibler divergence, which normalises by itself."""
    expected, actual = (np.array(one) + 0.5 for one in zip(*counts, strict=True))
    right = stats.entropy(actual, expected) + stats.entropy(expected, actual)
    first, second = map(list, zip(*counts, strict=True))
    assert psi(first, second) == pytest.approx(right, abs=1e-12)
    assert psi(second, first) == pytest.approx(psi(first, second), abs=1e-12)


def test_without_a_change_the_index_stays_far_below_its_rule_of_thumb():
    """What the module says of ``MINIMUM`` values in ten bins, by simulation."""
    draw = np.random.default_rng(0)
    found = [psi([100_000] * 10, one) for one in draw.multinomial(MINIMUM, [0.1] * 10, size=4000)]
    assert np.mean(found) == pytest.approx(9 / MINIMUM, rel=0.03)
    assert np.quantile(found, 0.999) == pytest.approx(stats.chi2(9).ppf(0.999) / MINIMUM, rel=0.15)
    small = [
        psi(draw.multinomial(MINIMUM_REFERENCE, [0.1] * 10), draw.multinomial(MINIMUM, [0.1] * 10)) for _ in range(4000)
    ]
    assert np.quantile(small, 0.999) < 0.25


def test_bins_are_deciles():
    histogram = Histogram.of(range(1, 101))
    assert histogram.edges == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert histogram.counts == [10] * 10
    assert histogram.places([-3, 10, 10.5, 90, 91, 1e9]).tolist() == [0, 0, 1, 8, 9, 9]


@given(VALUES, VALUES)
def test_bins_are_those_of_a_slow_twin(reference, values):
    histogram = Histogram.of(reference)
    ordered = sorted(reference)
    deciles = {ordered[-(-len(ordered) * tenth // 10) - 1] for tenth in range(1, 10)}  # the smallest x with F(x) >= q
    assert histogram.edges == sorted(deciles - {ordered[-1]})

    def place(value):
        return sum(edge < value for edge in histogram.edges)

    assert histogram.places(values).tolist() == [place(value) for value in values]
    assert histogram.counts == [[place(one) for one in reference].count(bin) for bin in range(len(histogram.counts))]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=60))
def test_a_window_is_that_of_a_slow_twin(steps):
    """Steps of time and values: a value counts while its tenth of the window is among the last ten."""
    window, seen, now = SlidingCounts(4, 100.0), [], 0
    for step, value in steps:
        now += step
        window.add(np.array([value]), float(now))
        seen.append((now, value))
        right = [value for at, value in seen if now // 10 - at // 10 < SLOTS]
        assert window.total(float(now)).tolist() == [right.count(value) for value in range(4)]
    assert window.total(now + 100.0).sum() == 0


def test_few_values_have_no_index():
    reference = {"length": Histogram.of(range(MINIMUM_REFERENCE)), "constant": Histogram.of([7] * 1000)}
    reference["short"] = Histogram.of(range(MINIMUM_REFERENCE - 1))
    window = DriftWindow(reference, 100.0)
    values = list(range(MINIMUM_REFERENCE)) * 10
    window.add(dict.fromkeys(["length", "constant", "short", "unknown"], values[: MINIMUM - 1]), 0.0)
    assert window.drift(0.0)["length"] == Drift(MINIMUM - 1, None)
    window.add({name: [0] for name in reference}, 1.0)
    found = window.drift(2.0)
    assert found["length"].psi == psi(
        reference["length"].counts, np.bincount(reference["length"].places([*values[: MINIMUM - 1], 0]))
    )
    assert [found[name] for name in ("constant", "short")] == [Drift(MINIMUM, None)] * 2
    assert set(found) == set(reference)


def test_threads_lose_no_value():
    window = DriftWindow({"x": Histogram.of(range(1000))}, 1000.0)

    def add():
        for number in range(500):
            window.add({"x": [number, -number]}, number / 10)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert window.drift(50.0)["x"].values == 8 * 1000
