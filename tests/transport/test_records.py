"""Messages come back as they were sent, take the bytes that are reported, and are not believed unchecked."""

import io
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.records import (
    by_merchant,
    by_prefix,
    check_uplink,
    decode_downlink,
    decode_uplink,
    encode_downlink,
    encode_uplink,
    prefixed,
    room_for,
    serialized_bytes,
)

DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_])
TENSORS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
NAMES = st.text(min_size=1, max_size=8)
WEIGHTS = st.dictionaries(NAMES, TENSORS.map(lambda value: torch.from_numpy(np.array(value))), max_size=3)
SCALARS = st.dictionaries(NAMES, st.floats(allow_nan=False), max_size=3)
VOTES = st.none() | hnp.arrays(np.int64, 3, elements=st.integers(0, 2**40)).map(torch.from_numpy)
LABELS = st.none() | hnp.arrays(np.float32, (3, 2), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)
ANSWERED = st.none() | hnp.arrays(np.bool_, st.integers(0, 40)).map(torch.from_numpy)
MEANS = st.none() | st.builds(
    ClassMeans,
    hnp.arrays(np.float32, (2, 2), elements=st.floats(0, 1, width=32)).map(torch.from_numpy),
    hnp.arrays(np.bool_, 2).map(torch.from_numpy),
)
UPDATES = st.none() | st.builds(LowRankUpdate, WEIGHTS.map(PartialWeights), WEIGHTS, WEIGHTS)


def over_the_wire(content):
    """As another process would get it: serialized to bytes and parsed again."""
    sent = recorddict_to_proto(content)
    return recorddict_from_proto(type(sent).FromString(sent.SerializeToString()))


def same(one, other):
    """Bit for bit, NaN included."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def same_means(one, other):
    if one is None or other is None:
        return one is other
    return same(one.probabilities, other.probabilities) and same(one.present, other.present)


def all_same(one, other):
    if one is None or other is None:
        return one is other
    return list(one) == list(other) and all(same(one[name], other[name]) for name in one)


@given(st.integers(0, 10**6), st.none() | WEIGHTS, LABELS, SCALARS, MEANS, st.none() | WEIGHTS)
def test_a_downlink_comes_back_bit_for_bit(round, weights, soft_labels, scalars, class_means, control_variate):
    sent = Downlink(
        round,
        (StudentWeights(weights), SoftLabels(soft_labels), class_means, ControlVariate(control_variate)),
        scalars=scalars,
    )
    got = decode_downlink(over_the_wire(encode_downlink(sent)))
    assert got.round == round
    assert (got.weights is None) == (weights is None)
    assert weights is None or all_same(got.weights, weights)
    assert same(got.need(SoftLabels).probabilities, soft_labels)
    assert got.scalars == scalars
    assert same_means(got.need(ClassMeans), class_means)
    assert all_same(got.need(ControlVariate).arrays, control_variate)


@given(
    st.text(max_size=10),
    st.integers(0, 2**40),
    st.none() | WEIGHTS,
    st.lists(st.integers(0, 2**31 - 1), max_size=5),
    LABELS,
    SCALARS,
    VOTES,
    ANSWERED,
    MEANS,
    st.none() | WEIGHTS,
    UPDATES,
)
def test_an_uplink_comes_back_bit_for_bit(
    merchant, examples, weights, rows, soft_labels, metrics, votes, answered, class_means, control_variate, update
):
    of_tables = {} if weights is None else {name: torch.tensor(rows, dtype=torch.int64) for name in list(weights)[:1]}
    sent = Uplink(
        merchant,
        examples,
        (
            StudentWeights.of(None if weights is None else PartialWeights(weights, of_tables, of_tables)),
            SelectedSoftLabels(soft_labels, answered),
            Votes(votes),
            class_means,
            ControlVariate(control_variate),
            update,
        ),
        metrics=metrics,
    )
    got = decode_uplink(over_the_wire(encode_uplink(sent)))
    assert (got.merchant, got.examples, got.metrics) == (merchant, examples, metrics)
    assert (got.weights is None) == (weights is None)
    assert weights is None or (
        all_same(got.need(StudentWeights).arrays, weights) and all_same(got.need(StudentWeights).rows, of_tables)
    )
    assert weights is None or all_same(got.need(StudentWeights).counts, of_tables)
    assert same(got.need(SoftLabels).probabilities, soft_labels)
    assert same(got.need(Votes).classes, votes)
    assert same(got.need(SelectedSoftLabels).answered, answered)
    assert same_means(got.need(ClassMeans), class_means)
    assert all_same(got.need(ControlVariate).arrays, control_variate)
    assert got.parts == sent.parts
    if update is not None:
        assert all_same(got.need(LowRankUpdate).plain.arrays, update.plain.arrays)
        assert all_same(got.need(LowRankUpdate).thin, update.thin)
        assert all_same(got.need(LowRankUpdate).wide, update.wide)


def test_rows_of_an_update_come_back():
    sent = low_rank()
    got = decode_uplink(over_the_wire(encode_uplink(Uplink("a", 3, (sent,))))).low_rank_update
    assert all_same(got.plain.rows, sent.plain.rows)
    assert all_same(got.plain.counts, sent.plain.counts)


@given(WEIGHTS, SCALARS)
def test_reported_bytes_are_the_length_of_flowers_serialized_message(weights, metrics):
    content = encode_uplink(Uplink("a", 3, (StudentWeights(weights),), metrics=metrics))
    assert serialized_bytes(content) == len(recorddict_to_proto(content).SerializeToString())


def test_several_merchants_fit_into_one_message():
    content = RecordDict()
    for number in range(12):
        content.update(prefixed(encode_uplink(Uplink(f"m{number}", number)), f"{number}/"))
    parts = by_prefix(over_the_wire(content))
    assert list(parts) == [f"{number}/" for number in range(12)]
    got = [decode_uplink(part) for part in parts.values()]
    assert [(up.merchant, up.examples) for up in got] == [(f"m{number}", number) for number in range(12)]


CURRENT = {"table": torch.zeros(6, 2), "bias": torch.zeros(3)}
PROXY = (4, 2)


def uplink(table=None, rows=(0, 2, 5), bias=None, labels=None, **changes):
    arrays = {"table": torch.ones(3, 2) if table is None else table, "bias": torch.ones(3) if bias is None else bias}
    fields = {
        "merchant": "Nord",
        "examples": 5,
        "weights": PartialWeights(arrays, {"table": torch.tensor(rows)}, {"table": torch.tensor(rows).abs()}),
        "soft_labels": torch.full(PROXY, 0.5) if labels is None else labels,
        "metrics": {"loss": 1.0, "test_right": 3.0, "test_count": 4.0},
        "votes": torch.tensor([0, 1, 1, 0]),
    }
    return Uplink(**{**fields, **changes})


def only(arrays, rows=None):
    return PartialWeights(arrays, {} if rows is None else rows)


def test_a_sound_uplink_is_accepted_with_tables_whole_or_in_part():
    check_uplink(uplink(), CURRENT, PROXY)
    check_uplink(uplink(weights=only(dict(CURRENT))), CURRENT, PROXY)
    check_uplink(uplink(table=torch.ones(0, 2), rows=[]), CURRENT, PROXY)
    accepted = uplink(weights=None, soft_labels=None, votes=None)
    check_uplink(accepted, CURRENT, PROXY)
    assert accepted.metrics["loss"] == 1.0


NAN, INF = float("nan"), float("inf")
SOME = torch.tensor([True, False, False, True])
ONLY_ONE = torch.tensor([True, False])


def means(rows=((0.25, 0.75), (0.0, 0.0)), present=ONLY_ONE):
    return ClassMeans(torch.tensor(rows), present)


def test_answers_to_some_examples_and_class_means_are_accepted():
    check_uplink(uplink(labels=torch.full((2, 2), 0.5), answered=SOME), CURRENT, PROXY)
    check_uplink(uplink(labels=torch.zeros(0, 2), answered=torch.zeros(4, dtype=torch.bool)), CURRENT, PROXY)
    accepted = uplink(class_means=means())
    check_uplink(accepted, CURRENT, PROXY)
    assert accepted.parts == {"weights", "soft_labels", "votes", "class_means"}


def low_rank(thin=None, wide=None, bias=None, rows=(0, 2, 5), names=("table", "table")):
    """An update of rank 1 of some rows of the table, and the bias as it is."""
    rows = torch.tensor(rows)
    plain = PartialWeights({"bias": torch.ones(3) if bias is None else bias}, {"table": rows}, {"table": rows.abs()})
    thin, wide = torch.ones(1, 3) if thin is None else thin, torch.ones(1, 2) if wide is None else wide
    return LowRankUpdate(plain, {names[0]: thin}, {names[1]: wide})


def updated(**changes):
    return uplink(weights=None, low_rank_update=low_rank(**changes))


def test_updates_and_control_variates_are_accepted():
    check_uplink(updated(), CURRENT, PROXY)
    accepted = uplink(control_variate={"bias": torch.ones(3)})
    check_uplink(accepted, CURRENT, PROXY)
    assert accepted.parts == {"weights", "soft_labels", "votes", "control_variate"}


BAD_UPLINKS = {
    "control variate of another shape": (uplink(control_variate={"bias": torch.ones(4)}), r"bias has shape \[4\]"),
    "control variate nan": (uplink(control_variate={"bias": torch.full((3,), NAN)}), "bias has values that are not"),
    "factors of other rows": (updated(thin=torch.ones(1, 4)), r"factors of table have shapes \[1, 4\] and \[1, 2\]"),
    "factors of other ranks": (updated(thin=torch.ones(2, 3)), r"factors of table have shapes \[2, 3\] and \[1, 2\]"),
    "factors of a large product": (
        updated(thin=torch.ones(1, 10**6), wide=torch.ones(1, 10**6), rows=list(range(10**6))),
        "factors of table have shapes",
    ),
    "factors of a vector": (updated(names=("bias", "bias")), "factors are missing, or sent twice"),
    "factors of what is unknown": (updated(names=("door", "door")), "factors of door have shapes"),
    "one factor": (updated(names=("table", "bias")), "factors are missing"),
    "factors in another precision": (
        updated(thin=torch.ones(1, 3, dtype=torch.float64)),
        "factors of table are torch.float64 and torch.float32",
    ),
    "factors nan": (updated(wide=torch.tensor([[1.0, NAN]])), "table has values that are not finite"),
    "update of a row too large": (updated(rows=[0, 2, 6]), "row numbers of table are out of range"),
    "update of another shape": (updated(bias=torch.ones(4)), r"bias has shape \[4\], not \[3\]"),
    "nan": (uplink(bias=torch.tensor([1.0, NAN, 1.0])), "bias has values that are not finite"),
    "infinite": (uplink(table=torch.tensor([[1.0, -INF]] * 3)), "table has values that are not finite"),
    "shape": (uplink(bias=torch.ones(4)), r"bias has shape \[4\], not \[3\]"),
    "table shape": (uplink(table=torch.ones(3, 3)), r"table has shape \[3, 3\], not \[3, 2\]"),
    "fewer rows": (uplink(table=torch.ones(2, 2)), r"table has shape \[2, 2\], not \[3, 2\]"),
    "nothing": (uplink(weights=only({})), "it sent no weight"),
    "extra": (uplink(weights=only({**CURRENT, "door": torch.ones(1)})), "weight 'door' is unknown"),
    "type": (uplink(bias=torch.ones(3, dtype=torch.float64)), "bias is torch.float64, not torch.float32"),
    "row too large": (uplink(rows=[0, 2, 6]), "row numbers of table are out of range or not sorted"),
    "row negative": (uplink(rows=[-1, 2, 5]), "row numbers of table are out of range"),
    "rows unsorted": (uplink(rows=[2, 0, 5]), "row numbers of table are out of range or not sorted"),
    "row twice": (uplink(rows=[0, 2, 2]), "row numbers of table are out of range or not sorted"),
    "too many rows": (uplink(table=torch.ones(7, 2), rows=list(range(7))), "table has rows of the wrong shape"),
    "rows of a matrix": (uplink(rows=[[0, 1, 2]]), r"table has rows of the wrong shape \[1, 3\]"),
    "rows alone": (
        uplink(weights=only(dict(CURRENT), {"door": torch.tensor([0])})),
        "rows of 'door' without its values",
    ),
    "label shape": (uplink(labels=torch.full((2, 4), 0.25)), r"soft labels have shape \[2, 4\], not \[4, 2\]"),
    "label sum": (uplink(labels=torch.full(PROXY, 0.6)), "soft labels do not sum to 1"),
    "label negative": (uplink(labels=torch.tensor([[1.5, -0.5]] * 4)), "soft labels are not finite, or negative"),
    "label nan": (uplink(labels=torch.full(PROXY, NAN)), "soft labels are not finite"),
    "label integers": (uplink(labels=torch.tensor([[1, 0]] * 4)), "no floating-point numbers"),
    "vote shape": (uplink(votes=torch.zeros(3, dtype=torch.int64)), r"votes have shape \[3\], not \[4\]"),
    "votes as probabilities": (uplink(votes=torch.full(PROXY, 0.5)), r"votes have shape \[4, 2\], not \[4\]"),
    "vote type": (uplink(votes=torch.tensor([0.0, 1.0, NAN, 0.0])), "votes are torch.float32, not torch.int64"),
    "vote for no class": (uplink(votes=torch.tensor([0, 1, 2, 0])), "votes name classes outside 0 to 1"),
    "vote negative": (uplink(votes=torch.tensor([0, -1, 1, 0])), "votes name classes outside 0 to 1"),
    "fewer answers than said": (
        uplink(labels=torch.full((1, 2), 0.5), answered=SOME),
        r"soft labels have shape \[1, 2\], not \[2, 2\]",
    ),
    "all answers though few are said": (uplink(answered=SOME), r"soft labels have shape \[4, 2\], not \[2, 2\]"),
    "answered of another proxy set": (uplink(answered=SOME[:3]), r"answered has shape \[3\], not \[4\]"),
    "no answers": (
        uplink(soft_labels=None, answered=SOME),
        "says which proxy examples it answers, without its answers",
    ),
    "means of more classes": (
        uplink(class_means=means(torch.eye(3).tolist())),
        r"class means have shapes \[3, 3\] and \[2\], not \[2, 2\] and \[2\]",
    ),
    "means as counts": (
        uplink(class_means=means(((1, 0), (0, 0)))),
        "class means are of types torch.int64 and torch.bool",
    ),
    "numbers of examples": (
        uplink(class_means=means(present=torch.tensor([7, 0]))),
        "class means are of types torch.float32 and torch.int64",
    ),
    "mean nan": (uplink(class_means=means(((NAN, 0.75), (0.0, 0.0)))), "class means are not finite, or negative"),
    "mean negative": (
        uplink(class_means=means(((1.25, -0.25), (0.0, 0.0)))),
        "class means are not finite, or negative",
    ),
    "mean sum": (uplink(class_means=means(((0.5, 0.75), (0.0, 0.0)))), "class means do not sum to 1"),
    "mean of an absent class": (
        uplink(class_means=means(((0.25, 0.75), (0.5, 0.5)))),
        "or to 0 where it has no examples",
    ),
    "no examples": (uplink(examples=0), "0 training examples"),
    "loss nan": (uplink(metrics={"loss": NAN}), "metric loss is nan"),
    "loss beyond all measure": (uplink(metrics={"loss": 1e300}), r"metric loss is 1e\+300"),
    "part of an example": (
        uplink(metrics={"loss": 1.0, "test_right": 0.1, "test_count": 0.5}),
        "metric test_right is 0.1, not a number of examples",
    ),
    "more right than all": (uplink(metrics={"loss": 1.0, "test_right": 5.0, "test_count": 4.0}), "metric test_right"),
}


@pytest.mark.parametrize("case", BAD_UPLINKS)
def test_an_unfit_uplink_is_rejected_with_merchant_and_part(case):
    unfit, message = BAD_UPLINKS[case]
    with pytest.raises(UplinkRejected, match=f"merchant Nord: .*{message}|merchant Nord: {message}"):
        check_uplink(unfit, CURRENT, PROXY)


def test_soft_labels_in_half_precision_are_accepted():
    labels = torch.full(PROXY, 0.5, dtype=torch.float16)
    check_uplink(uplink(labels=labels), CURRENT, PROXY)
    assert labels.dtype == torch.float16


@pytest.mark.parametrize(
    ("largest", "dtype"), [(0, "int8"), (127, "int8"), (128, "int16"), (2**15 - 1, "int16"), (2**15, "int32")]
)
def test_votes_take_the_fewest_bytes_that_hold_every_class(largest, dtype):
    sent = Uplink("Nord", 1, (Votes(torch.tensor([0, largest])),))
    (array,) = arrays_of(encode_uplink(sent))
    assert array.dtype == dtype
    assert torch.equal(decode_uplink(encode_uplink(sent)).votes, sent.need(Votes).classes)


@pytest.mark.parametrize("votes", [np.array([0.0, np.nan]), np.array([True, False]), np.array([0, 1], np.uint8)])
def test_votes_that_are_no_signed_integers_cannot_be_read(votes):
    content = encode_uplink(Uplink("Nord", 1, (Votes(torch.tensor([0, 1])),)))
    content["up.votes"]["votes"] = Array(votes)
    with pytest.raises(UplinkRejected, match="an uplink could not be read: TypeError: votes are torch"):
        decode_uplink(over_the_wire(content))


def test_which_examples_are_answered_takes_a_bit_each():
    sent = Uplink("Nord", 1, (SelectedSoftLabels(torch.zeros(0, 2), torch.zeros(4001, dtype=torch.bool)),))
    bits = np.frombuffer(encode_uplink(sent)["up.answered"]["bits"].data[-501:], np.uint8)
    assert encode_uplink(sent)["up.answered"]["bits"].shape == (501,)
    assert not bits.any()


@pytest.mark.parametrize(
    ("size", "bits"),
    [(9, [255]), (0, [255]), (-1, []), (2**60, [255, 255]), (8, [[255]]), (2, [1.0])],
)
def test_a_mask_that_its_bytes_do_not_hold_cannot_be_read(size, bits):
    """Unpacking fills up with zeros: a mask of a made-up size would cost memory."""
    content = encode_uplink(Uplink("Nord", 1, (SelectedSoftLabels(torch.zeros(0, 2), SOME),)))
    content["up"]["proxy"] = size
    content["up.answered"]["bits"] = Array(np.array(bits, None if bits == [1.0] else np.uint8))
    with pytest.raises(UplinkRejected, match=r"an uplink could not be read: ValueError: .* are no mask of"):
        decode_uplink(over_the_wire(content))


@pytest.mark.parametrize(
    ("record", "change"),
    [
        ("down", None),
        ("down", ConfigRecord({})),
        ("down", ConfigRecord({"round": "1"})),
        ("down", ConfigRecord({"round": 1.0})),
        ("down", ConfigRecord({"round": True})),
        ("down", ConfigRecord({"round": [1]})),
        ("down.soft_labels", ArrayRecord()),
        ("down.class_means", ArrayRecord()),
        ("down.class_means", ArrayRecord({"odd": Array(np.zeros(3))})),
        ("down.weights", ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", b"nonsense")})),
        ("down.control_variate", ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", b"")})),
        ("down.scalars", MetricRecord({"a": [1.0, 2.0]})),
    ],
)
def test_a_downlink_with_missing_or_odd_records_is_a_training_error(record, change):
    content = RecordDict(
        dict(
            encode_downlink(
                Downlink(1, (StudentWeights(CURRENT), SoftLabels(torch.full(PROXY, 0.5)), means()), scalars={"a": 1.0})
            )
        )
    )
    content.pop(record, None)
    if change is not None:
        content[record] = change
    with pytest.raises(TrainingError, match="a downlink cannot be read"):
        decode_downlink(over_the_wire(content))


def in_parts(*parts):
    return RecordDict({name: ConfigRecord({"merchant": merchant} if merchant else {}) for name, merchant in parts})


@pytest.mark.parametrize(
    ("parts", "found", "others"),
    [
        ([("0/up", "a"), ("1/refusal", "b"), ("1/x", "")], {"a": ["up"], "b": ["refusal", "x"]}, 0),
        ([("0/up", "a"), ("1/up", "a"), ("0/x", "")], {"a": ["up", "x"]}, 1),
        ([("0/up", "a"), ("0/refusal", "b"), ("1/up", "b")], {"a": ["up", "refusal"], "b": ["up"]}, 0),
        ([("0/up", "c"), ("1/up", ""), ("2/x", ""), ("up", "a"), ("", "a")], {}, 5),
        ([("0/1/up", "a"), ("/up", "b"), ("//up", "a")], {"b": ["up", "/up"]}, 1),
    ],
)
def test_the_parts_of_a_reply_are_found_by_merchant_and_the_others_counted(parts, found, others):
    got, unasked = by_merchant(in_parts(*parts), {"a", "b"})
    assert ({merchant: list(part) for merchant, part in got.items()}, unasked) == (found, others)


def test_a_part_that_names_no_merchant_by_a_text_is_nobodys():
    content = RecordDict({"0/up": ConfigRecord({"merchant": ["a"]}), "1/up": ArrayRecord(), "2/up": ConfigRecord({})})
    assert by_merchant(content, {"a"}) == ({}, 3)


ROOM = room_for(CURRENT, PROXY)


def test_there_is_room_for_what_fits_a_round():
    both = uplink(control_variate={"bias": torch.ones(3)}, class_means=means(), answered=SOME, labels=torch.ones(2, 2))
    for sent in (uplink(), both, updated(), uplink(weights=only(dict(CURRENT)))):
        assert decode_uplink(encode_uplink(sent), ROOM).parts == sent.parts


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (uplink(bias=torch.ones(4)), "bias has 16 bytes, and 12 at most"),
        (uplink(table=torch.ones(13), rows=range(7)), "table has 52 bytes, and 48 at most"),
        (uplink(weights=only({"door": torch.ones(1)})), "'door' is not among the arrays"),
        (uplink(rows=range(7)), "table has 28 bytes, and 24 at most"),
        (uplink(labels=torch.ones(9, 2, dtype=torch.float64)), "soft_labels has 144 bytes, and 64 at most"),
        (uplink(votes=torch.zeros(99, dtype=torch.int64)), "votes has 99 bytes, and 32 at most"),
        (uplink(labels=torch.ones(2, 2), answered=torch.ones(9, dtype=torch.bool)), "bits has 2 bytes, and 1 at most"),
        (uplink(class_means=means(((0.5,) * 9,) * 9)), "probabilities has 324 bytes, and 32 at most"),
        (uplink(control_variate={"bias": torch.ones(99)}), "bias has 396 bytes, and 12 at most"),
        (updated(thin=torch.ones(99, 3)), "table has 1188 bytes, and 48 at most"),
        (updated(names=("bias", "bias")), "'bias' is not among the arrays"),
    ],
)
def test_there_is_none_for_more_whatever_part_it_is_in(sent, what):
    with pytest.raises(UplinkRejected, match=f"an uplink could not be read: ValueError: {what}"):
        decode_uplink(encode_uplink(sent), ROOM)


def test_there_is_none_for_soft_labels_where_nobody_is_asked_for_any():
    assert decode_uplink(
        encode_uplink(uplink(labels=None, votes=None, soft_labels=None)), room_for(CURRENT, None)
    ).parts
    with pytest.raises(UplinkRejected, match="'soft_labels' is not among the arrays"):
        decode_uplink(encode_uplink(uplink()), room_for(CURRENT, None))


@pytest.mark.parametrize("rows", [np.zeros(3), np.zeros(3, np.int64), np.zeros(3, np.bool_)])
@pytest.mark.parametrize("part", ["rows", "counts"])
def test_row_numbers_are_of_the_type_that_they_travel_in(part, rows):
    content = encode_uplink(uplink())
    content[f"up.{part}"]["table"] = Array(rows)
    with pytest.raises(UplinkRejected, match="row numbers or their counts are torch"):
        decode_uplink(over_the_wire(content))


def test_factors_of_a_rank_that_saves_nothing_are_refused():
    large = {"table": torch.zeros(40, 30)}
    plain = PartialWeights({})

    def of_rank(rank):
        return uplink(
            weights=None,
            low_rank_update=LowRankUpdate(plain, {"table": torch.ones(rank, 40)}, {"table": torch.ones(rank, 30)}),
        )

    check_uplink(of_rank(17), large, PROXY)  # 17 * (40 + 30) < 40 * 30
    with pytest.raises(UplinkRejected, match="factors of table have rank 18, more than it can"):
        check_uplink(of_rank(18), large, PROXY)


def arrays_of(content):
    return [array for record in content.array_records.values() for array in record.values()]


def test_arrays_travel_as_npy_without_objects():
    down = encode_downlink(Downlink(1, (StudentWeights(CURRENT), SoftLabels(torch.full(PROXY, 0.5)))))
    found = arrays_of(down) + arrays_of(encode_uplink(uplink()))
    assert len(found) == 9
    for array in found:
        assert array.stype == "numpy.ndarray"
        assert array.data.startswith(b"\x93NUMPY")
        assert not np.lib.format.read_array(io.BytesIO(array.data), allow_pickle=False).dtype.hasobject


class Bomb:
    """Unpickling it would show."""

    exploded = False

    @staticmethod
    def explode():
        Bomb.exploded = True

    def __reduce__(self):
        return Bomb.explode, ()


def npy_of_objects():
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [npy_of_objects(), pickle.dumps(Bomb()), b"", b"PK\x03\x04nonsense", b"\x93NUMPY\x01\x00\xff\xff{"]
)
def test_a_payload_that_is_no_plain_array_is_rejected_and_never_unpickled(data):
    content = encode_uplink(uplink())
    content["up.weights"]["bias"] = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data)
    with pytest.raises(UplinkRejected, match="an uplink could not be read"):
        decode_uplink(over_the_wire(content))
    assert not Bomb.exploded


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"up": ConfigRecord({"merchant": "Nord"})}),
        RecordDict({"up": ConfigRecord({"merchant": "Nord", "examples": [1, 2]})}),
        RecordDict({"up": ConfigRecord({"merchant": "Nord", "examples": "many"})}),
        RecordDict(
            {
                "up": ConfigRecord({"merchant": "Nord", "examples": 1}),
                "up.soft_labels": ArrayRecord(),
            }
        ),
        RecordDict({"up": ConfigRecord({"merchant": "Nord", "examples": 1}), "up.votes": ArrayRecord()}),
    ],
)
def test_an_uplink_with_missing_or_odd_records_is_rejected(content):
    with pytest.raises(UplinkRejected, match="an uplink could not be read"):
        decode_uplink(content)
