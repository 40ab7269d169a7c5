"""A cache sends what changed: what arrives is as if all had been sent, in as few bytes as changes are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.probabilities import Int4Probabilities, Int8Probabilities, TopKProbabilities
from fed_distill.transport.coding.soft_labels import read_changed, read_soft_labels, write_changed, write_soft_labels
from fed_distill.transport.coding.stream import Reader
from fed_distill.transport.coding.updates import Float16

CHAINS = {
    "none": Chain(),
    "float16": Chain((Float16(),)),
    "int8": Chain((Int8Probabilities(),)),
    "top-k, int4": Chain((TopKProbabilities(2), Int4Probabilities())),
}


def labels(rows=30, seed=0):
    return (3 * torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))).softmax(dim=1)


def sent(values, chain, known=None, tolerance=0.0):
    """What arrives, and in how many bytes."""
    data = write_changed(values, chain, known, tolerance)
    source = Reader(data)
    got = read_changed(source, tuple(values.shape), chain, known)
    source.finish()
    return got, len(data)


def arrived_without_cache(values, chain):
    return read_soft_labels(Reader(write_soft_labels(values, chain)), tuple(values.shape), chain)


@pytest.mark.parametrize("chain", CHAINS)
@given(changed=st.lists(st.sets(st.integers(0, 29)), min_size=1, max_size=5))
def test_without_tolerance_all_that_arrives_is_what_arrives_without_a_cache(chain, changed):
    values, known = labels(), None
    for number, rows in enumerate(changed, 1):
        values = values.clone()
        values[sorted(rows)] = labels(len(rows), seed=number)
        known, _ = sent(values, CHAINS[chain], known)
        assert torch.equal(known, arrived_without_cache(values, CHAINS[chain]))


def test_bytes_are_those_of_the_rows_that_changed():
    known, size = sent(labels(1000), CHAINS["int8"])
    assert size == 1 + 1000 * 5
    values = labels(1000)
    values[::10] = labels(100, seed=1)
    assert sent(values, CHAINS["int8"], known)[1] < 100 * 5 + 100  # places: about log2(e * 10) bits each
    assert sent(labels(1000), CHAINS["int8"], known)[1] < 20
    assert sent(labels(1000, seed=2), CHAINS["int8"], known)[1] == 1 + 1000 * 5  # all changed: no places


def test_no_probability_is_ever_further_off_than_the_tolerance():
    """Small steps in one direction do not add up unseen: each is compared with what has arrived."""
    start, end = labels(), labels(seed=1)
    known, sizes = None, []
    for step in range(51):
        values = start + (end - start) * step / 50
        known, size = sent(values, CHAINS["none"], known, tolerance=0.05)
        sizes.append(size)
        assert float((known - values).abs().max()) <= 0.05
    assert sum(sizes) < 0.4 * 51 * sizes[0]


LIES = {
    "another kind": (b"\x02", labels(), "flag for complete soft labels is invalid"),
    "nothing is known": (b"\x01\0\0\0\0", None, "were never sent"),
    "known of another proxy set": (b"\x01\0\0\0\0", labels(29), "were never sent"),
    "too many rows": (b"\x01\x1f\0\0\0", labels(), "soft labels of 31 of 30 proxy examples"),
    "no bytes": (b"", labels(), "ends too early"),
}


@pytest.mark.parametrize("case", LIES)
def test_what_no_merchant_writes_is_refused(case):
    data, known, message = LIES[case]
    with pytest.raises(ValueError, match=message):
        read_changed(Reader(data), (30, 5), CHAINS["int8"], known)


@given(st.binary(max_size=200))
def test_whatever_bytes_come_leave_the_shape_or_are_refused(data):
    known = labels()
    try:
        got = read_changed(Reader(b"\x01" + data), (30, 5), CHAINS["top-k, int4"], known)
    except ValueError:
        return
    assert got.shape == known.shape
    torch.testing.assert_close(got.sum(dim=1), torch.ones(30), atol=1e-5, rtol=0)
    assert torch.equal(known, labels())
