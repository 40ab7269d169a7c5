"""Hostile and malformed replies, made from an honest one: records, arrays or heads of it are others, gone or more."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

from fed_distill.transport.arrays import read_array
from fed_distill.transport.records import to_bytes
from fed_distill.transport.requests import ANSWER

INTEGERS = st.sampled_from([0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**31 + 1, 2**62, -(2**62)]) | st.integers(
    -(2**63), 2**63 - 1
)
FLOATS = st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 1e30, 3e38]) | st.floats()
TEXTS = (
    st.sampled_from(["", "nobody", "\x1b[2J\x1b[31m", "\u202egnol", "=1+1", "<script>", "../../x", "x" * 5000, "a\nb"])
    | st.text(max_size=20)
)  # fmt: skip
VALUES = (
    INTEGERS | FLOATS | TEXTS | st.booleans() | st.binary(max_size=9)
    | st.lists(INTEGERS, max_size=3) | st.lists(FLOATS, max_size=3) | st.lists(TEXTS, max_size=2)
)  # fmt: skip
NUMBERS = INTEGERS | FLOATS | st.lists(INTEGERS, max_size=3) | st.lists(FLOATS, max_size=3)
NUMPY = ["<f4", "<f8", "<f2", "<i4", "<i8", "|u1", "|b1", ">f4", "<c8", "|O", "<U9", "<M8[s]", "<f16", "|V8"]
DESCRIPTIONS = st.sampled_from(["[('a', '<f4')]", "('<f4', (2,))", "4", "None", *map(repr, NUMPY)])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 8, 4096, 10**6, 2**31, 2**62, 2**64, -1]), max_size=4) | st.just(
    [1] * 40
)
MAGIC = b"\x93NUMPY\x01\x00"


@st.composite
def headers(draw):
    """Bytes that begin like an npy file, one thing of which is another: its form, type, order, shape, or its payload.

    Types without any size may promise ever so many values, of which no byte follows.
    """
    odd = draw(st.sampled_from(["nothing", "nothing", "form", "type", "order", "shape", "payload", "length"]))
    shape = tuple(draw(SHAPES)) if odd == "shape" else (3,)
    kind = draw(DESCRIPTIONS) if odd == "type" else "'<f4'"
    if odd == "nothing":
        kind, shape = draw(st.sampled_from(["'|S0'", "'<U0'", "'|V0'"])), (draw(st.sampled_from([10**6, 3 * 10**7])),)
    order = draw(st.sampled_from(["True", "0", "None"])) if odd == "order" else "False"
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    size = draw(st.sampled_from([0, 9, 65535])) if odd == "length" else len(header)
    magic = (
        draw(st.sampled_from([b"\x93NUMPY\x02\x00", b"\x93NUMPY\x09\x00", b"PK\x03\x04\x00\x00", b""]))
        if odd == "form"
        else MAGIC
    )
    payload = draw(st.binary(max_size=64)) if odd == "payload" else b"" if odd == "nothing" else bytes(12)
    return magic + size.to_bytes(4 if magic[6:7] == b"\x02" else 2, "little") + header + payload


@st.composite
def arrays(draw, before: Array):
    """Another array in the place of an honest one."""
    how = draw(
        st.sampled_from(["value", "flip", "header", "large", "type", "shape", "cut", "more", "scale", "order", "kind"])
    )
    try:
        values = read_array(before)
    except ValueError:  # it has been changed before, and who looks into it may be hurt
        return before
    if how == "header":
        return Array("float32", (1,), "numpy.ndarray", draw(headers()))
    if how == "large":
        return Array(np.zeros((8, *values.shape) if values.size > 9999 else (10**5, *values.shape[1:]), values.dtype))
    if how == "shape":
        return Array(np.zeros(draw(st.lists(st.integers(0, 9), max_size=3)), values.dtype))
    if how == "type":
        kinds = [np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_]
        return Array(values.astype(draw(st.sampled_from(kinds))))
    if how == "kind":
        return Array(before.dtype, before.shape, draw(st.sampled_from(["pickle", "", "torch"])), before.data)
    if how == "order":
        return Array(np.asfortranarray(values[::-1]))
    if how in ("value", "scale"):
        changed = np.array(values)
        with np.errstate(all="ignore"):
            if how == "scale":
                changed = (changed.astype(float) * draw(st.sampled_from([-1, 0, 2, 1000, 10**6]))).astype(values.dtype)
            elif changed.size:
                number = draw(FLOATS if values.dtype.kind == "f" else INTEGERS)
                changed.reshape(-1)[draw(st.integers(0, changed.size - 1))] = np.array(number).astype(values.dtype)
        return Array(changed)
    data = before.data
    if how == "cut":
        data = data[: draw(st.integers(0, len(data) - 1))]
    if how == "more":
        data += draw(st.binary(min_size=1, max_size=64))
    if how == "flip":
        flipped = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            flipped[draw(st.integers(100, len(data) - 1))] ^= draw(st.integers(1, 255))
        data = bytes(flipped)
    return Array(before.dtype, before.shape, before.stype, data)


def change_array(draw, content):
    """One array of the reply is another, is missing, is there under another name, or is one more."""
    record = content[draw(st.sampled_from([name for name, one in content.items() if isinstance(one, ArrayRecord)]))]
    if not record:
        return
    name = draw(st.sampled_from(list(record)))
    how = draw(st.sampled_from(["other"] * 6 + ["gone", "renamed", "more"]))
    array = record[name]
    if how in ("gone", "renamed"):
        del record[name]
    if how in ("renamed", "more"):
        record[draw(TEXTS)] = array
    if how == "other":
        record[name] = draw(arrays(array))


def change_head(draw, content):
    """What a part says of itself is something else."""
    record = content[draw(st.sampled_from([name for name in content if name.endswith("/up")]))]
    key = draw(st.sampled_from(["merchant", "examples", "proxy", "x"]))
    if draw(st.booleans()) and key in record:
        del record[key]
    else:
        record[key] = draw(VALUES | st.sampled_from(others(content)))


def others(content):
    """Merchants that are there or might be."""
    return [record["merchant"] for name, record in content.items() if name.endswith("/up")] + [
        "merchant-1",
        "merchant-7",
    ]


def change_metrics(draw, content):
    """Measurements that nobody can have made."""
    prefix = draw(st.sampled_from(["0/", "1/"]))
    names = st.sampled_from(["loss", "test_right", "test_count"]) | TEXTS
    content[f"{prefix}up.metrics"] = MetricRecord(draw(st.dictionaries(names, NUMBERS, max_size=4)))
    if draw(st.booleans()):
        content[f"{prefix}up.metrics"] = MetricRecord(
            {f"m{number}": 0.0 for number in range(draw(st.integers(90, 110)))}
        )


def change_records(draw, content):
    """A record is missing, under another name, twice, of another kind, or of another part."""
    name = draw(st.sampled_from(list(content)))
    record = content[name]
    how = draw(st.sampled_from(["gone", "renamed", "twice", "kind", "swapped", "several"]))
    prefixes = st.sampled_from(
        ["", "/", "0", "9/", "0/0/", "0//", "0/0/0/0/0/", "x" * 1000 + "/", "refusal/", "\u202e/"]
    )
    if how in ("gone", "renamed"):
        del content[name]
    if how in ("renamed", "twice"):
        content[draw(prefixes) + name.rpartition("/")[2]] = record
    if how == "kind":
        content[name] = draw(st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord({"merchant": "merchant-1"})]))
    if how == "swapped":
        other = draw(st.sampled_from(list(content)))
        content[name], content[other] = content[other], record
    if how == "several":  # a whole part once more
        part = draw(st.sampled_from(["0/", "1/"]))
        again = draw(prefixes)
        for one in [one for one in content if one.startswith(part)]:
            content[again + one.removeprefix(part)] = content[one]


def add_refusal(draw, content):
    """A refusal beside an uplink, or for somebody else."""
    record = {
        "merchant": draw(st.sampled_from(others(content)) | VALUES),
        "reason": draw(VALUES),
        "cause": draw(VALUES),
    }
    content[draw(st.sampled_from(["0/refusal", "5/refusal", "refusal"]))] = ConfigRecord(record)


def add_part(draw, content):
    """A part of an uplink that its method does not send."""
    name = draw(
        st.sampled_from(
            [
                "up.control_variate",
                "up.local_steps",
                "up.prototypes",
                "up.votes",
                "up.answered",
                "up.soft_labels",
                "up.class_means",
            ]
        )
    )
    name = draw(
        st.sampled_from([name, "up.coded", "up.low_rank.update", "up.low_rank.thin", "up.rows", "up.counts", "up.odd"])
    )
    keys = st.sampled_from(
        [
            "soft_labels",
            "steps",
            "means",
            "votes",
            "bits",
            "probabilities",
            "present",
            "weights",
            "bag.table",
            "head.0.bias",
        ]
    )
    sizes = st.lists(st.sampled_from([0, 1, 2, 3, 8, 40]), max_size=3)
    values = draw(st.dictionaries(keys, sizes.map(lambda shape: Array(np.ones(shape, np.float32))), max_size=3))
    content[f"{draw(st.sampled_from(['0/', '1/']))}{name}"] = ArrayRecord(values)


def change_answer(draw, content):
    """It does not say that it answers this very request."""
    content.pop(ANSWER, None)
    if draw(st.booleans()):
        content[ANSWER] = ConfigRecord({"to": draw(VALUES)})


CHANGES = [change_array] * 6 + [change_head, change_metrics, change_records, add_refusal, add_part, change_answer]


@st.composite
def hostile(draw, content: RecordDict):
    """An honest reply after one to three changes, as bytes."""
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3)):
        heads = [record for name, record in content.items() if name.endswith("/up")]
        if len(heads) == 2 and all(isinstance(one, ConfigRecord) and "merchant" in one for one in heads):
            change(draw, content)
    return to_bytes(content)
