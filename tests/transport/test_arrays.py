"""Arrays off the wire are what numpy wrote, or a ValueError that has cost no memory."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_distill.transport.arrays import layout_of, read_array
from fed_distill.transport.records import check_room, from_array_record, to_array_record

TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"]
ARRAYS = st.sampled_from(TYPES).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3))
)
FIXED = settings(derandomize=True, database=None, max_examples=200)


def npy(header, payload=b"", magic=b"\x93NUMPY\x01\x00", size=None):
    header = header.encode().ljust(117) + b"\n"
    return magic + (len(header) if size is None else size).to_bytes(2, "little") + header + payload


def described(kind="'<f4'", order="False", shape="(3,)"):
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"


def wired(data, stype="numpy.ndarray"):
    return Array("float32", (3,), stype, data)


@FIXED
@given(ARRAYS)
def test_an_array_comes_back_as_numpy_itself_reads_it(value):
    array = Array(np.ascontiguousarray(value).reshape(value.shape))
    got, expected = read_array(array), np.load(io.BytesIO(array.data), allow_pickle=False)
    assert (got.dtype, got.shape, got.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert layout_of(array).nbytes == expected.nbytes
    assert got.flags.writeable
    assert got.base is None or got.base.flags.owndata


TWELVE = bytes(12)
LIES = {
    "strings of no size": npy(described("'|S0'", shape="(3000000000,)")),
    "texts of no size": npy(described("'<U0'", shape="(3000000000,)")),
    "nothings": npy(described("'|V0'", shape="(3000000000,)")),
    "objects": npy(described("'|O'"), TWELVE),
    "records": npy(described("[('a', '<f4')]"), TWELVE),
    "pairs": npy(described("('<f4', (1,))"), TWELVE),
    "dates": npy(described("'<M8[s]'"), TWELVE),
    "complex": npy(described("'<c8'", shape="(1,)"), bytes(8)),
    "long doubles": npy(described("'<f16'", shape="(1,)"), bytes(16)),
    "another byte order": npy(described("'>f4'"), TWELVE),
    "unsigned": npy(described("'<u4'"), TWELVE),
    "columns": npy(described(order="True"), TWELVE),
    "more than is there": npy(described(shape="(3000000000,)"), TWELVE),
    "less than is there": npy(described(shape="(2,)"), TWELVE),
    "a product that overflows": npy(described(shape="(4294967296, 4294967296)")),
    "a negative size": npy(described(shape="(-3,)"), TWELVE),
    "a size that is no number": npy(described(shape="(3.0,)"), TWELVE),
    "a size without end": npy(described(shape=f"({'9' * 99},)"), TWELVE),
    "very many dimensions": npy(described(shape=f"({'1, ' * 9})"), bytes(4)),
    "very many sizes of zero": npy(described(shape=f"(0, {'9999999999, ' * 7})")),
    "deep brackets": npy("(" * 400, TWELVE),
    "code": npy(described(shape="(__import__('os').getpid(),)"), TWELVE),
    "no end of a header": npy(described(), TWELVE, size=65535),
    "no header": npy("", TWELVE, size=0),
    "version 2": npy(described(), TWELVE, magic=b"\x93NUMPY\x02\x00"),
    "a zip": b"PK\x03\x04" + bytes(60),
    "nothing": b"",
    "truth values of two": npy(described("'|b1'"), b"\x01\x02\x00"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_is_not_true_is_refused_at_no_cost(lie):
    array = wired(LIES[lie])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"array|dimension"):
        from_array_record(ArrayRecord({"w": array}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_payload_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="not an npy file"):
        read_array(wired(npy(described(), TWELVE), stype="pickle"))
    assert read_array(wired(npy(described(), TWELVE))).tolist() == [0.0, 0.0, 0.0]


@FIXED
@given(st.binary(max_size=40), st.integers(0, 127), st.integers(1, 255))
def test_whatever_bytes_there_are_they_are_refused_or_what_numpy_reads(tail, place, change):
    data = bytearray(npy(described(), TWELVE) + tail)
    data[place] ^= change
    for one in (bytes(data), bytes(tail)):
        try:
            got = read_array(wired(one))
        except ValueError:
            continue
        expected = np.load(io.BytesIO(one), allow_pickle=False)
        assert (got.dtype, got.shape, got.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_tensors_of_any_stride_travel_in_rows():
    value = torch.arange(6.0).view(2, 3)
    sent = {"turned": value.T, "part": value[:, ::2], "scalar": torch.tensor(3), "none": torch.zeros(0, 4)}
    got = from_array_record(to_array_record(sent))
    assert all(torch.equal(got[name], sent[name]) for name in sent)


def test_there_is_room_for_what_is_due_and_nothing_else():
    record = to_array_record({"w": torch.zeros(4)})
    check_room(record, {"w": 16, "v": 3})
    with pytest.raises(ValueError, match="w has 16 bytes, but at most 15 are allowed"):
        from_array_record(record, {"w": 15})
    with pytest.raises(ValueError, match="'w' is not an expected array"):
        from_array_record(record, {"v": 99})
