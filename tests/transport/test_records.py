"""Messages come back as they were sent, take the bytes that are reported, and are not believed unchecked."""

import io
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
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
from tests.payloads.drawn import over_the_wire, same, several

SCALARS = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(allow_nan=False), max_size=3)


@given(st.integers(0, 10**6), several(), SCALARS)
def test_a_downlink_comes_back_with_its_numbers(round, payloads, scalars):
    content = over_the_wire(encode_downlink(Downlink(round, payloads, scalars)))
    got = decode_downlink(content, tuple(map(type, payloads)))
    assert (got.round, got.scalars) == (round, scalars)
    assert len(got.payloads) == len(payloads)
    assert all(same(got.need(type(sent)), sent) for sent in payloads)
    sent = got.get(StudentWeights)
    assert got.weights == {} if sent is None else got.weights is sent.arrays


@given(st.text(max_size=10), st.integers(0, 2**40), several(), SCALARS)
def test_an_uplink_comes_back_with_its_merchant_and_numbers(merchant, examples, payloads, metrics):
    content = over_the_wire(encode_uplink(Uplink(merchant, examples, payloads, metrics)))
    got = decode_uplink(content, tuple(map(type, payloads)))
    assert (got.merchant, got.examples, got.metrics) == (merchant, examples, metrics)
    assert len(got.payloads) == len(payloads)
    assert all(same(got.need(type(sent)), sent) for sent in payloads)


@given(several(), SCALARS)
def test_reported_bytes_are_the_length_of_flowers_serialized_message(payloads, metrics):
    content = encode_uplink(Uplink("a", 3, payloads, metrics))
    assert serialized_bytes(content) == len(recorddict_to_proto(content).SerializeToString())


def test_several_merchants_fit_into_one_message():
    content = RecordDict()
    for number in range(12):
        content.update(prefixed(encode_uplink(Uplink(f"m{number}", number)), f"{number}/"))
    parts = by_prefix(over_the_wire(content))
    assert list(parts) == [f"{number}/" for number in range(12)]
    got = [decode_uplink(part, ()) for part in parts.values()]
    assert [(up.merchant, up.examples) for up in got] == [(f"m{number}", number) for number in range(12)]


CURRENT = {"table": torch.zeros(6, 2), "bias": torch.zeros(3)}
PROXY = (4, 2)
CONTEXT = Context(CURRENT, *PROXY)
ROWS = torch.tensor([0, 2, 5])
UPDATE = StudentUpdate({"table": torch.ones(3, 2), "bias": torch.ones(3)}, {"table": ROWS}, {"table": ROWS})
LABELS, VOTES = SoftLabels(torch.full(PROXY, 0.5)), Votes(torch.tensor([0, 1, 1, 0]))
SELECTED = SelectedSoftLabels(torch.full((2, 2), 0.5), torch.tensor([True, False, False, True]))
MEANS = ClassMeans(torch.tensor([[0.25, 0.75], [0.0, 0.0]]), torch.tensor([True, False]))
USUAL, KINDS = (UPDATE, LABELS, VOTES), (StudentUpdate, SoftLabels, Votes)
METRICS = {"loss": 1.0, "test_right": 3.0, "test_count": 4.0}


def uplink(*payloads, examples=5, metrics=METRICS):
    return Uplink("Nord", examples, payloads or USUAL, metrics)


def test_a_sound_uplink_is_accepted_with_whatever_payloads():
    for sent in (uplink(), uplink(StudentUpdate(dict(CURRENT))), uplink(SELECTED, MEANS), Uplink("Nord", 5)):
        check_uplink(sent, CONTEXT)
    accepted = Uplink("Nord", 5, metrics=METRICS)
    check_uplink(accepted, CONTEXT)
    assert accepted.metrics["loss"] == 1.0


def test_a_message_holds_one_payload_of_a_kind():
    with pytest.raises(ValueError, match="two payloads of one kind: votes, votes"):
        uplink(VOTES, VOTES)
    with pytest.raises(ValueError, match="two payloads of one kind: votes, votes"):
        Downlink(1, (VOTES, VOTES))
    other = Votes(torch.tensor([1, 1, 1, 1]))
    assert uplink().having(other, MEANS).payloads == (UPDATE, LABELS, other, MEANS)
    assert Downlink(1, (LABELS,)).having(UPDATE).payloads == (LABELS, UPDATE)
    assert (uplink().get(Votes), uplink().get(ClassMeans)) == (VOTES, None)
    with pytest.raises(TrainingError, match="the uplink has no class_means, which the method requires"):
        uplink().need(ClassMeans)
    with pytest.raises(TrainingError, match="the downlink has no soft_labels, which the method requires"):
        Downlink(1, (UPDATE,)).need(SoftLabels)


NAN = float("nan")
BAD_UPLINKS = {
    "payload": (uplink(LABELS, Votes(torch.tensor([0, -1, 1, 0]))), "votes must be classes from 0 to 1"),
    "payload of weights": (uplink(StudentUpdate({"door": torch.ones(1)})), "weight 'door' is unknown"),
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
        check_uplink(unfit, CONTEXT)


@pytest.mark.parametrize(
    ("largest", "dtype"), [(0, "int8"), (127, "int8"), (128, "int16"), (2**15 - 1, "int16"), (2**15, "int32")]
)
def test_votes_take_the_fewest_bytes_that_hold_every_class(largest, dtype):
    sent = Uplink("Nord", 1, (Votes(torch.tensor([0, largest])),))
    (array,) = arrays_of(encode_uplink(sent))
    assert array.dtype == dtype
    assert torch.equal(decode_uplink(encode_uplink(sent), (Votes,)).need(Votes).classes, sent.need(Votes).classes)


@pytest.mark.parametrize("votes", [np.array([0.0, np.nan]), np.array([True, False]), np.array([0, 1], np.uint8)])
def test_votes_that_are_no_signed_integers_cannot_be_read(votes):
    content = encode_uplink(Uplink("Nord", 1, (Votes(torch.tensor([0, 1])),)))
    content["up.votes"]["votes"] = Array(votes)
    with pytest.raises(UplinkRejected, match="an uplink could not be read: TypeError: votes are torch"):
        decode_uplink(over_the_wire(content), (Votes,))


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
    content = encode_uplink(uplink(SELECTED))
    content["up"]["proxy"] = size
    content["up.answered"]["bits"] = Array(np.array(bits, None if bits == [1.0] else np.uint8))
    with pytest.raises(UplinkRejected, match=r"an uplink could not be read: ValueError: a mask of .* cannot have"):
        decode_uplink(over_the_wire(content), (SelectedSoftLabels,))


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
    sent = (StudentWeights(CURRENT), SoftLabels(torch.full(PROXY, 0.5)), MEANS, ControlVariate(CURRENT))
    content = RecordDict(dict(encode_downlink(Downlink(1, sent, scalars={"a": 1.0}))))
    content.pop(record, None)
    if change is not None:
        content[record] = change
    with pytest.raises(TrainingError, match="the downlink cannot be read"):
        decode_downlink(over_the_wire(content), (StudentWeights, SoftLabels, ClassMeans, ControlVariate))


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


EVERY = (StudentUpdate, SelectedSoftLabels, Votes, ClassMeans, ControlVariate, LowRankUpdate)
ROOM = room_for(EVERY, CONTEXT)


def low_rank(rank=1, name="table"):
    factors = {name: torch.ones(rank, 3)}, {name: torch.ones(1, 2)}
    return LowRankUpdate(PartialWeights({}, {"table": ROWS}, {"table": ROWS}), *factors)


def in_part(rows, table=None):
    rows = torch.tensor(rows)
    return StudentUpdate({"table": torch.ones(3, 2) if table is None else table}, {"table": rows}, {"table": rows})


def test_there_is_room_for_what_fits_a_round():
    everything = (UPDATE, SELECTED, VOTES, MEANS, ControlVariate({"bias": torch.ones(3)}), low_rank())
    for sent in (uplink(*everything), uplink(low_rank()), uplink(StudentUpdate(dict(CURRENT)))):
        assert decode_uplink(encode_uplink(sent), EVERY, ROOM).kinds == sent.kinds
    assert decode_uplink(encode_uplink(uplink()), KINDS, room_for(KINDS, CONTEXT)).kinds == {*KINDS}


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (StudentUpdate({"bias": torch.ones(4)}), "bias has 16 bytes, but at most 12 are"),
        (in_part(range(7), torch.ones(13)), "table has 52 bytes, but at most 48 are"),
        (StudentUpdate({"door": torch.ones(1)}), "'door' is not an expected array"),
        (in_part(range(7)), "table has 28 bytes, but at most 24 are"),
        (SoftLabels(torch.ones(9, 2, dtype=torch.float64)), "soft_labels has 144 bytes, but at most 64 are"),
        (Votes(torch.zeros(99, dtype=torch.int64)), "votes has 99 bytes, but at most 32 are"),
        (SelectedSoftLabels(torch.ones(2, 2), torch.ones(9, dtype=torch.bool)), "bits has 2 bytes, but at most 1 are"),
        (ClassMeans(torch.full((9, 9), 0.5), MEANS.present), "probabilities has 324 bytes, but at most 32 are"),
        (ControlVariate({"bias": torch.ones(99)}), "bias has 396 bytes, but at most 12 are"),
        (low_rank(rank=99), "table has 1188 bytes, but at most 48 are"),
        (low_rank(name="bias"), "'bias' is not an expected array"),
    ],
)
def test_there_is_none_for_more_whatever_part_it_is_in(sent, what):
    with pytest.raises(UplinkRejected, match=f"an uplink could not be read: ValueError: {what}"):
        decode_uplink(encode_uplink(uplink(sent)), EVERY, ROOM)


def test_there_is_none_for_soft_labels_where_nobody_is_asked_for_any():
    alone, only = encode_uplink(uplink(UPDATE)), (StudentUpdate,)
    assert decode_uplink(alone, only, room_for(only, CONTEXT)).kinds == {StudentUpdate}
    with pytest.raises(UplinkRejected, match="'soft_labels' is not an expected array"):
        decode_uplink(encode_uplink(uplink(UPDATE, LABELS)), only, room_for(only, CONTEXT))


def test_a_record_of_no_kind_that_is_declared_is_refused_even_if_it_is_empty():
    content = encode_uplink(uplink(UPDATE))
    content["up.votes"] = ArrayRecord()
    for room in (None, room_for((StudentUpdate,), CONTEXT)):
        with pytest.raises(UplinkRejected, match="'votes' is not an expected record"):
            decode_uplink(over_the_wire(content), (StudentUpdate,), room)


def test_answers_of_some_examples_come_with_which_these_are():
    """A mask without answers, and answers to some without their mask."""
    content = encode_uplink(uplink(SELECTED))
    del content["up.soft_labels"]
    with pytest.raises(UplinkRejected, match="'answered' is not an expected record"):
        decode_uplink(over_the_wire(content), (SelectedSoftLabels,))
    with pytest.raises(UplinkRejected, match="an uplink could not be read: KeyError: 'answered'"):
        decode_uplink(encode_uplink(uplink(LABELS)), (SelectedSoftLabels,))
    with pytest.raises(UplinkRejected, match="'answered' is not an expected record"):
        decode_uplink(encode_uplink(uplink(SELECTED)), (SoftLabels,))


@pytest.mark.parametrize("rows", [np.zeros(3), np.zeros(3, np.int64), np.zeros(3, np.bool_)])
@pytest.mark.parametrize("part", ["rows", "counts"])
def test_row_numbers_are_of_the_type_that_they_travel_in(part, rows):
    content = encode_uplink(uplink())
    content[f"up.{part}"]["table"] = Array(rows)
    with pytest.raises(UplinkRejected, match="row numbers or their counts are torch"):
        decode_uplink(over_the_wire(content), KINDS)


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
    content["up.update"]["bias"] = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data)
    with pytest.raises(UplinkRejected, match="an uplink could not be read"):
        decode_uplink(over_the_wire(content), KINDS)
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
        decode_uplink(content, KINDS)
