"""Soft labels stay probabilities whatever is left out of them, within each stage's bound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_distill.errors import ConfigError
from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.probabilities import (
    Float16Probabilities,
    Int4Probabilities,
    Int8Probabilities,
    LogInt4Probabilities,
    TopKProbabilities,
    normalized,
)
from fed_distill.transport.coding.stream import Reader
from fed_distill.transport.coding.updates import Float16


def probabilities(values):
    """Rows of a softmax."""
    return torch.from_numpy(values).softmax(dim=1)


LABELS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-20, 20, width=32)
).map(probabilities)


@pytest.mark.parametrize(("stage", "bits"), [(Int8Probabilities(), 8), (Int4Probabilities(), 4)])
@given(labels=LABELS)
def test_a_probability_is_off_by_half_a_step(through, stage, bits, labels):
    got, size = through([stage], labels)
    assert float((got - labels).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6
    assert size == math.ceil(labels.numel() * bits / 8)


@pytest.mark.parametrize(("stage", "levels"), [(Int8Probabilities(), 255), (Int4Probabilities(), 15)])
def test_no_probability_arrives_as_0_of_which_there_is_no_logarithm(through, stage, levels):
    """What is below half a step arrives as the middle of that half; the others as the whole steps that they are."""
    got, _ = through([stage], torch.tensor([[0.0, 0.4 / levels, 1 / levels, 1.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.25, 0.25, 1.0, levels]]) / levels)


@given(labels=LABELS)
def test_a_logarithm_is_off_by_a_quarter_where_it_is_above_the_least(through, labels):
    got, size = through([LogInt4Probabilities()], labels)
    off = (got.double().log() - labels.double().clamp_min(math.exp(-7.5)).log()).abs()
    assert float(off.max()) <= 0.25 + 1e-5
    assert size == math.ceil(labels.numel() * 4 / 8)


def test_logarithms_arrive_in_half_nats(through):
    sent = torch.tensor([[1.0, math.exp(-0.6), math.exp(-3.2), math.exp(-7.4), 1e-9, 0.0]])
    got, _ = through([LogInt4Probabilities()], sent)
    torch.testing.assert_close(got.log(), torch.tensor([[0.0, -0.5, -3.0, -7.5, -7.5, -7.5]]))


def test_what_top_k_leaves_over_cannot_be_told_from_logarithms():
    """0.8 would arrive as 1, and nothing would be left for the other classes."""
    with pytest.raises(ConfigError, match="encodes whole arrays"):
        Chain((TopKProbabilities(1), LogInt4Probabilities()))


def test_top_k_keeps_the_most_probable_and_shares_out_the_rest(through):
    labels = torch.tensor([[0.5, 0.05, 0.3, 0.05, 0.1], [0.02, 0.9, 0.02, 0.05, 0.01]])
    got, size = through([TopKProbabilities(2)], labels)
    expected = [[0.5, 0.2 / 3, 0.3, 0.2 / 3, 0.2 / 3], [0.05 / 3, 0.9, 0.05 / 3, 0.05, 0.05 / 3]]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)
    assert size == math.ceil(2 * 2 * 3 / 8) + 2 * 2 * 4


@given(LABELS, st.integers(1, 10))
def test_rows_are_probabilities_again_in_any_chain(through, labels, classes):
    for last in ([], [Float16()], [Int8Probabilities()], [Int4Probabilities()]):
        got = normalized(through([TopKProbabilities(classes), *last], labels)[0])
        assert got.shape == labels.shape
        assert bool((got >= 0).all())
        torch.testing.assert_close(got.sum(dim=1), torch.ones(len(labels)), atol=1e-5, rtol=0)


@given(LABELS)
def test_with_all_classes_kept_nothing_is_lost(through, labels):
    got, size = through([TopKProbabilities(9)], labels)
    assert torch.equal(got, labels)
    assert size == 4 * labels.numel()


def test_the_most_probable_class_is_two_bits_and_a_byte_of_four_classes(through):
    labels = torch.rand(400, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert through([TopKProbabilities(1), Int8Probabilities()], labels)[1] == 400 * 2 // 8 + 400


def test_a_row_that_was_rounded_to_nothing_becomes_even():
    assert normalized(torch.tensor([[0.0, 0.0], [0.5, 1.5]])).tolist() == [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("stages", "data", "message"),
    [
        ((TopKProbabilities(2),), bytes([0b0000]) + bytes(8), "its classes must be distinct"),
        ((TopKProbabilities(2),), bytes([0b1100]) + bytes(8), "and from 0 to 2"),
        ((TopKProbabilities(2),), bytes([0b0001]) + bytes(8), "its classes must be distinct"),
        ((Int8Probabilities(),), bytes(2), "ends too early"),
    ],
)
def test_forged_bytes_are_refused(stages, data, message):
    with pytest.raises(ValueError, match=message):
        Chain(stages).decode((1, 3), Reader(data))


def test_a_half_that_is_0_has_a_logarithm_too(through):
    sent = torch.tensor([[17.5, 0.0, 0.0]]).softmax(dim=1)
    got, size = through([Float16Probabilities()], sent)
    assert size == 6
    assert got[0, 0] == 1.0 and got[0, 1:].tolist() == [2.0**-25] * 2
    least = torch.tensor([[1.0, 2.0**-24, 2.0**-25 * 1.01]])
    assert through([Float16Probabilities()], least)[0].tolist() == [[1.0, 2.0**-24, 2.0**-24]]
