"""Class means: over a merchant's examples of each class, and over the merchants that have the class."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.aggregation.class_means import RunningClassMeans
from fed_distill.errors import UplinkRejected
from fed_distill.payloads.class_means import ClassMeans

ONE = ClassMeans(torch.tensor([[0.8, 0.2], [0.0, 0.0]]), torch.tensor([True, False]))
OTHER = ClassMeans(torch.tensor([[0.6, 0.4], [0.3, 0.7]]), torch.tensor([True, True]))


def test_means_are_over_the_examples_of_each_label():
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    means = ClassMeans.over(probabilities, torch.tensor([0, 0, 2]))
    torch.testing.assert_close(means.probabilities, torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 0.0], [0.2, 0.2, 0.6]]))
    assert means.present.tolist() == [True, False, True]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 10**6))
def test_means_are_those_of_a_loop_over_classes(labels, seed):
    probabilities = torch.rand(len(labels), 4, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)
    means = ClassMeans.over(probabilities, torch.tensor(labels))
    for label in range(4):
        rows = [row for row, own in zip(probabilities, labels, strict=True) if own == label]
        assert bool(means.present[label]) == bool(rows)
        torch.testing.assert_close(means.probabilities[label], sum(rows) / len(rows) if rows else torch.zeros(4))


def test_merchants_count_the_same_in_each_class_that_they_have():
    running = RunningClassMeans(2)
    running.add(ONE)
    running.add(OTHER)
    mean = running.mean()
    torch.testing.assert_close(mean.probabilities, torch.tensor([[0.7, 0.3], [0.3, 0.7]], dtype=torch.float64))
    assert mean.present.tolist() == [True, True]


def test_a_class_that_nobody_has_this_time_is_as_it_was_before():
    running = RunningClassMeans(2)
    running.add(ONE)
    assert running.mean().present.tolist() == [True, False]
    mean = running.mean(before=OTHER)
    torch.testing.assert_close(mean.probabilities.float(), torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
    assert mean.present.tolist() == [True, True]


def test_a_mean_of_nobody_is_refused():
    with pytest.raises(UplinkRejected, match="no merchant sent class means"):
        RunningClassMeans(2).mean()
