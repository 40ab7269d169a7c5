"""Several teachers as one: averages and weights against scipy, scikit-learn and numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from fed_distill import seeds
from fed_distill.data.examples import Examples
from fed_distill.distill.ensemble import combined, confidence, domains_of, similarity
from fed_distill.errors import DataError


def drawn(teachers, count=7, classes=4, seed=0):
    return torch.randn(teachers, count, classes, generator=seeds.torch_stream(seed)).softmax(dim=-1)


def examples(texts, merchants=None):
    count = len(texts)
    merchants = merchants or ("shop",) * count
    return Examples(tuple(texts), None, np.zeros(count, dtype=np.int64), np.arange(count), tuple(merchants))


def test_without_weights_everybody_counts_the_same():
    probabilities = torch.tensor([[[0.2, 0.8], [1.0, 0.0]], [[0.6, 0.4], [0.0, 1.0]]])
    torch.testing.assert_close(combined(probabilities), torch.tensor([[0.4, 0.6], [0.5, 0.5]]))


def test_weights_are_of_an_example_and_need_not_sum_to_one():
    probabilities = torch.tensor([[[0.2, 0.8], [1.0, 0.0]], [[0.6, 0.4], [0.0, 1.0]]])
    found = combined(probabilities, torch.tensor([[3.0, 0.0], [1.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.7], [0.0, 1.0]]))


@given(st.integers(1, 5), st.integers(0, 9))
def test_a_combination_is_a_weighted_average_of_probabilities(teachers, seed):
    probabilities = drawn(teachers, seed=seed)
    weights = torch.rand(teachers, 7, generator=seeds.torch_stream(seed, "weights")) + 1e-3
    expected = [np.average(probabilities[:, row].numpy(), axis=0, weights=weights[:, row].numpy()) for row in range(7)]
    torch.testing.assert_close(combined(probabilities, weights), torch.from_numpy(np.stack(expected)).float())
    torch.testing.assert_close(combined(probabilities, weights).sum(dim=1), torch.ones(7))


def test_confidence_is_the_inverse_of_the_entropy():
    probabilities = drawn(3)
    expected = 1.0 / entropy(probabilities.numpy(), axis=2)
    torch.testing.assert_close(confidence(probabilities), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


def test_a_certain_teacher_outweighs_an_ignorant_one_by_a_hundred():
    probabilities = torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[0.25, 0.25, 0.25, 0.25]]])
    weights = confidence(probabilities)
    assert float(weights[0] / weights[1]) == pytest.approx(100.0, rel=1e-4)


def test_similarity_is_the_cosine_with_the_mean_of_what_a_teacher_learned_from():
    # words of one character are one feature each: a, b and c are orthogonal
    found = similarity(examples(["a", "b", "a b"]), [examples(["a"]), examples(["a", "b", "b", "b"])])
    expected = torch.tensor([[1.0, 0.0, 0.5**0.5], [0.1**0.5, 0.9**0.5, (0.1**0.5 + 0.9**0.5) * 0.5**0.5]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_an_example_like_nothing_seen_is_everybodys():
    found = similarity(examples(["c", "a"]), [examples(["a"]), examples(["b"])])
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))


def test_domains_split_the_merchants_each_to_the_smallest_so_far():
    merchants = [*("large",) * 5, *("middle",) * 3, *("small",) * 2, "tiny"]
    public = examples([f"text {row}" for row in range(11)], merchants)
    split = domains_of(public, examples(["x", "y"], ["large", "elsewhere"]), 2, seed=0)
    assert [sorted(set(own.merchants)) for own, _ in split] == [["large", "tiny"], ["middle", "small"]]
    assert sorted(text for own, _ in split for text in own.texts) == sorted(public.texts)
    assert [valid.texts for _, valid in split] == [("x",), ("x", "y")]


def test_a_large_merchant_is_a_domain_of_its_own():
    sizes = {"large": 100, "a": 10, "b": 10, "c": 10}
    merchants = [name for name, size in sizes.items() for _ in range(size)]
    public = examples([f"text {row}" for row in range(130)], merchants)
    assert [len(own) for own, _ in domains_of(public, public, 2, seed=0)] == [100, 30]


def test_one_domain_is_everything():
    public = examples(["a", "b"])
    assert domains_of(public, public, 1, seed=0) == [(public, public)]


def test_more_domains_than_merchants_are_refused():
    public = examples(["a", "b"], ["one", "two"])
    with pytest.raises(DataError, match=r"teacher\.domains = 3 exceeds the number of public merchants, 2"):
        domains_of(public, public, 3, seed=0)
