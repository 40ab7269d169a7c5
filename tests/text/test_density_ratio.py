"""KuLSIF: the closed form is the minimum of its objective, and the ratio is high where own texts are."""

import numpy as np
import pytest
from scipy.optimize import minimize

from fed_distill.text import density_ratio
from fed_distill.text.density_ratio import kulsif
from fed_distill.text.similarity import bags

WORDS = ["red", "blue", "shoe", "boot", "kettle", "phone", "case", "lamp"]


def drawn(count, words, seed):
    draws = np.random.default_rng(seed)
    return bags([" ".join(draws.choice(words, 3)) for _ in range(count)])


def kernel(one, other):
    return np.exp(20.0 * ((one @ other.T).toarray() - 1.0))


def test_the_closed_form_is_the_minimum_over_all_functions_of_the_kernel_at_all_texts():
    own, others = drawn(6, WORDS[:5], 0), drawn(9, WORDS, 1)
    regularization, count, size = 6**-0.9, 6, 9
    points = [kernel(one, two) for one in (own, others) for two in (own, others)]
    gram = np.block([points[:2], points[2:]])

    def objective(weights):
        values = gram @ weights
        fit = 0.5 * (values[count:] ** 2).mean() - values[:count].mean()
        return fit + 0.5 * regularization * weights @ gram @ weights

    def gradient(weights):
        values = gram @ weights
        outer = np.concatenate([np.full(count, -1.0 / count), values[count:] / size])
        return gram @ outer + regularization * gram @ weights

    found = minimize(objective, np.zeros(15), jac=gradient, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    expected = np.maximum((gram @ found.x)[count:], 0.0)
    assert expected.max() > 2 * np.median(expected)
    np.testing.assert_allclose(kulsif(own, others), expected, rtol=1e-3, atol=1e-4)


def test_the_ratio_is_high_where_own_texts_are_and_never_negative():
    others = drawn(60, WORDS, 2)
    ratio = kulsif(drawn(20, WORDS[:3], 3), others)
    alike = kernel(others, drawn(20, WORDS[:3], 3)).max(axis=1) > 0.9
    assert ratio.min() >= 0.0
    assert ratio[alike].min() > np.median(ratio[~alike])


@pytest.mark.parametrize("most", [1, 7, 60])
def test_the_fit_takes_no_more_than_some_of_the_others(monkeypatch, most):
    monkeypatch.setattr(density_ratio, "_OTHERS", most)
    ratio = kulsif(drawn(20, WORDS[:3], 3), drawn(60, WORDS, 2))
    assert ratio.shape == (60,)
    assert np.isfinite(ratio).all()
