"""Whole numbers come back exactly, in about as few bits as their distribution needs, and are not believed unchecked."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.transport.coding.integers import (
    LIMIT,
    read_counts,
    read_fixed,
    read_sorted,
    write_counts,
    write_fixed,
    write_sorted,
)
from fed_distill.transport.coding.stream import Reader, Writer

COUNTS = st.lists(st.integers(0, LIMIT - 1) | st.integers(0, 20), max_size=60)


def written(write, values, *options):
    out = Writer()
    write(out, np.array(values, dtype=np.int64), *options)
    return out.content()


def read_back(read, data, *options):
    source = Reader(data)
    values = read(source, *options).tolist()
    source.finish()
    return values


@given(st.integers(1, 31).flatmap(lambda width: st.tuples(st.just(width), st.lists(st.integers(0, 2**width - 1)))))
def test_fixed_widths_come_back_in_the_bytes_they_need(sent):
    width, values = sent
    data = written(write_fixed, values, width)
    assert len(data) == math.ceil(len(values) * width / 8)
    assert read_back(read_fixed, data, len(values), width) == values


@given(COUNTS)
def test_counts_come_back(values):
    assert read_back(read_counts, written(write_counts, values), len(values)) == values


@given(st.sets(st.integers(0, 10**6), max_size=60))
def test_sorted_numbers_come_back(values):
    values = sorted(values)
    assert read_back(read_sorted, written(write_sorted, values), len(values), 10**6 + 1) == values


def test_a_code_is_as_golomb_and_rice_wrote_it():
    """0, 1 and 5 with one low bit: quotients 0, 0 and 2 are 1 1 001 in unary, low bits are 0 1 1; first bits lowest."""
    assert written(write_counts, [0, 1, 5]) == bytes([1, 1, 0, 0, 0, 0b10011, 0b110])


def test_places_of_a_sparse_update_take_little_more_than_their_entropy():
    share = 0.01
    places = np.flatnonzero(np.random.default_rng(0).random(500_000) < share)
    bits = 8 * len(written(write_sorted, places)) / len(places)
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / share
    assert entropy <= bits < entropy + 0.1


def test_a_single_large_count_does_not_make_the_others_dear():
    values = [0] * 999 + [LIMIT - 1]
    assert len(written(write_counts, values)) < 4 * 1000 + 10
    assert read_back(read_counts, written(write_counts, values), 1000) == values


@pytest.mark.parametrize("values", [[-1], [3, LIMIT]])
def test_numbers_that_do_not_fit_are_refused(values):
    with pytest.raises(ValueError, match="do not fit"):
        written(write_counts, values)


@pytest.mark.parametrize("values", [[2, 1], [1, 1]])
def test_numbers_that_are_not_sorted_and_distinct_are_refused(values):
    with pytest.raises(ValueError, match="do not fit"):
        written(write_sorted, values)


def test_numbers_out_of_range_are_not_read():
    data = written(write_counts, [0, 7])
    assert read_back(read_counts, data, 2, 8) == [0, 7]
    with pytest.raises(ValueError, match="not below 7"):
        read_counts(Reader(data), 2, 7)
    rows = written(write_sorted, [0, 4, 9])
    with pytest.raises(ValueError, match="not below 9"):
        read_sorted(Reader(rows), 3, 9)
    with pytest.raises(ValueError, match="not below 5"):
        read_sorted(Reader(written(write_sorted, [3, 6])), 2, 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (written(write_counts, [1, 2]), "it has 2 integers instead of 3"),
        (b"\x20" + written(write_counts, [1, 2, 3])[1:], "encoded incorrectly"),
        (b"\x00\xff\xff\xff\xff", "encoded incorrectly"),
        (b"\x1f\x01\x00\x00\x00\x07", "ends too early: 12 bytes are expected and 0 remain"),
        (b"\x00", "ends too early"),
    ],
)
def test_other_bytes_are_refused_before_they_take_memory(data, message):
    with pytest.raises(ValueError, match=message):
        read_counts(Reader(data), 3)


@given(st.binary(max_size=40), st.integers(0, 20))
def test_whatever_bytes_say_is_in_range_or_refused(data, count):
    try:
        values = read_sorted(Reader(data), count, 100)
    except ValueError:
        return
    assert len(values) == count
    assert (np.diff(values) > 0).all()
    assert not count or (values[0] >= 0 and values[-1] < 100)


def test_a_reader_gives_what_was_written_and_says_what_is_left():
    out = Writer()
    out.number(513, 2)
    out.array(np.array([1.5, -2.0], dtype=np.float32))
    out.raw(b"end")
    assert out.content()[:6] == b"\x01\x02\x00\x00\xc0\x3f"
    source = Reader(out.content())
    assert source.number(2) == 513
    assert source.array(np.float32, 2).tolist() == [1.5, -2.0]
    with pytest.raises(ValueError, match="it has 3 extra bytes"):
        source.finish()
    with pytest.raises(ValueError, match="ends too early: 4 bytes are expected and 3 remain"):
        source.number(4)
