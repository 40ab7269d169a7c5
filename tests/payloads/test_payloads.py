"""What every kind of payload must do: travel, fit into its room, be scaled and measured, and say what it reveals."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.methods import METHODS
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import CountsRows, Payload
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.local_steps import LocalSteps
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.partial import like_updates
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.released_labels import MOST_BYTES, MOST_EXAMPLES, ReleasedLabels
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.records import (
    check_uplink,
    decode_downlink,
    decode_uplink,
    encode_downlink,
    encode_uplink,
    room_for,
)
from tests.payloads.drawn import ANY, CLASSES, CONTEXT, HONEST, KINDS, PROXY, over_the_wire, same, several

each_kind = pytest.mark.parametrize("kind", KINDS)
FROM_MERCHANTS = tuple(kind for kind in KINDS if kind is not StudentWeights)
each_uplink = pytest.mark.parametrize("kind", FROM_MERCHANTS)


def test_every_kind_of_the_library_is_looked_at_here():
    assert len(KINDS) >= 8
    assert all(issubclass(kind, Payload) for kind in KINDS)
    assert set(KINDS) == set(HONEST) == set(ANY) == set(LARGEST)
    assert set(FROM_MERCHANTS) == set(TIMES_TWO) == set(NORMS)


@each_kind
@settings(max_examples=40)
@given(data=st.data())
def test_an_honest_payload_is_accepted_and_comes_back_from_either_side(kind, data):
    sent = data.draw(HONEST[kind])
    sent.check_shape(CONTEXT)
    examples = len(sent.labels) if kind is ReleasedLabels else 3
    content = over_the_wire(encode_uplink(Uplink("Nord", examples, (sent,))))
    got = decode_uplink(content, (kind,), room_for((kind,), CONTEXT))
    assert got.kinds == {kind}
    assert same(got.need(kind), sent)
    if kind in FROM_MERCHANTS:
        sent.validate(CONTEXT)
        check_uplink(got, CONTEXT)
    down = decode_downlink(over_the_wire(encode_downlink(Downlink(1, (sent,)))), (kind,))
    assert down.kinds == {kind}
    assert same(down.need(kind), sent)


@settings(max_examples=200)
@given(several())
def test_payloads_of_any_content_come_back_bit_for_bit_beside_each_other(sent):
    kinds = tuple(map(type, sent))
    up = decode_uplink(over_the_wire(encode_uplink(Uplink("Nord", 3, sent))), kinds[::-1])
    down = decode_downlink(over_the_wire(encode_downlink(Downlink(1, sent))), kinds[::-1])
    assert up.kinds == down.kinds == {*kinds}
    assert all(same(got.need(type(one)), one) for got in (up, down) for one in sent)


@each_kind
@settings(max_examples=20)
@given(data=st.data())
def test_the_records_that_travel_are_those_that_are_declared(kind, data):
    records = data.draw(HONEST[kind]).to_records()
    assert kind.records[0] in records
    assert set(records) <= set(kind.records) == set(kind.room(CONTEXT))


@each_kind
def test_a_kind_that_is_not_declared_is_refused(kind):
    others = tuple(other for other in KINDS if other.records[0] != kind.records[0])
    up, down = encode_uplink(Uplink("Nord", 3, (LARGEST[kind],))), encode_downlink(Downlink(1, (LARGEST[kind],)))
    odd = "is not an expected record"
    with pytest.raises(UplinkRejected, match=f"could not be read: ValueError: .* {odd}"):
        decode_uplink(over_the_wire(up), others)
    with pytest.raises(TrainingError, match=f"the downlink cannot be read: ValueError: .* {odd}"):
        decode_downlink(over_the_wire(down), others)


ALL_ROWS = {"table": torch.arange(6)}
IN_FULL = dict(CONTEXT.weights)
LARGEST = {
    StudentUpdate: StudentUpdate(like_updates(IN_FULL), ALL_ROWS, ALL_ROWS),
    StudentWeights: StudentWeights(IN_FULL),
    SoftLabels: SoftLabels(torch.ones(PROXY, CLASSES, dtype=torch.float64)),
    SelectedSoftLabels: SelectedSoftLabels(
        torch.ones(PROXY, CLASSES, dtype=torch.float64), torch.ones(PROXY, dtype=torch.bool)
    ),
    DensitySelectedSoftLabels: DensitySelectedSoftLabels(
        torch.ones(PROXY, CLASSES, dtype=torch.float64), torch.ones(PROXY, dtype=torch.bool)
    ),
    ExpertSoftLabels: ExpertSoftLabels(
        torch.ones(PROXY, CLASSES, dtype=torch.float64),
        torch.ones(PROXY, dtype=torch.bool),
        torch.full((PROXY,), 255, dtype=torch.uint8),
    ),
    Votes: Votes(torch.full((PROXY,), 2**40)),
    ClassMeans: ClassMeans(torch.ones(CLASSES, CLASSES, dtype=torch.float64), torch.ones(CLASSES, dtype=torch.bool)),
    ControlVariate: ControlVariate(IN_FULL),
    LocalSteps: LocalSteps.of(2**31),
    Prototypes: Prototypes(torch.ones(CLASSES, 6), torch.ones(CLASSES, dtype=torch.bool)),
    ReleasedLabels: ReleasedLabels(
        torch.full((MOST_BYTES,), 65, dtype=torch.uint8),
        *(torch.full(shape, 2**30, dtype=torch.int32) for shape in ((2 * MOST_EXAMPLES,), (MOST_EXAMPLES, 2))),
        *(torch.zeros(shape, dtype=torch.int8) for shape in ((MOST_EXAMPLES,), (MOST_EXAMPLES, CLASSES))),
    ),
    LowRankUpdate: LowRankUpdate(
        PartialWeights(like_updates(IN_FULL), ALL_ROWS, ALL_ROWS),
        {"table": torch.ones(4, 6), "half": torch.ones(2, 2)},
        {"table": torch.ones(6, 4), "half": torch.ones(2, 2)},
    ),
}
"""One of each kind that fills its room to the last byte."""


@each_kind
def test_there_is_room_for_the_largest_payload_to_the_last_byte(kind):
    content = over_the_wire(encode_uplink(Uplink("Nord", 3, (LARGEST[kind],))))
    room = room_for((kind,), CONTEXT)
    assert same(decode_uplink(content, (kind,), room).need(kind), LARGEST[kind])
    for record, sizes in room.items():
        for name in content[record]:
            less = {**room, record: {**sizes, name: sizes[name] - 1}}
            with pytest.raises(
                UplinkRejected, match=f"{name} has {sizes[name]} bytes, but at most {sizes[name] - 1} are"
            ):
                decode_uplink(content, (kind,), less)


@each_kind
def test_there_is_no_room_for_other_arrays_beside_a_payload(kind):
    content = encode_uplink(Uplink("Nord", 3, (LARGEST[kind],)))
    for record in room_for((kind,), CONTEXT):
        array = next(iter(content[record].values()))
        content[record]["door"] = array
        with pytest.raises(UplinkRejected, match="'door' is not an expected array"):
            decode_uplink(over_the_wire(content), (kind,), room_for((kind,), CONTEXT))
        del content[record]["door"]


def rows(*values, of=torch.float32):
    return torch.tensor(values, dtype=of)


SOME = torch.arange(PROXY) < 2
TABLE, LAST = CONTEXT.weights["table"], {"table": rows(1, 4, of=torch.int64)}
SHARES, SQUARED = rows((0.2, 0.3, 0.5), (0.25, 0.25, 0.5)), rows((0.04, 0.09, 0.25), (0.0625, 0.0625, 0.25))
SHARPER = SQUARED / SQUARED.sum(dim=1, keepdim=True)
PRESENT = torch.tensor([True, False, True])


def means(two):
    return ClassMeans(torch.stack([two[0], torch.zeros(3), two[1]]), PRESENT)


THREE = torch.tensor([[0, 1, 2], [0, 1, 2]], dtype=torch.int8)
RELEASED = ReleasedLabels(
    torch.tensor([*b"tentshoes"], dtype=torch.uint8),
    *(torch.tensor(one, dtype=torch.int8) for one in ([4, 5], [[0, 1], [1, 1]], [2, 1], [[0, 0, 2], [-1, 1, 2]])),
)
TIMES_TWO = {
    StudentUpdate: (
        StudentUpdate({"table": rows((1, 2, 3, 4), (0, -1, 0, 0))}, LAST, LAST),
        StudentUpdate({"table": rows((2, 4, 6, 8), (0, -2, 0, 0))}, LAST, LAST),
    ),
    SoftLabels: (SoftLabels(SHARES), SoftLabels(SHARPER)),
    SelectedSoftLabels: (SelectedSoftLabels(SHARES, SOME), SelectedSoftLabels(SHARPER, SOME)),
    DensitySelectedSoftLabels: (DensitySelectedSoftLabels(SHARES, SOME), DensitySelectedSoftLabels(SHARPER, SOME)),
    ExpertSoftLabels: (
        ExpertSoftLabels(SHARES, SOME, rows(200, 7, of=torch.uint8)),
        ExpertSoftLabels(SHARPER, SOME, rows(255, 14, of=torch.uint8)),
    ),
    Votes: (Votes(rows(0, 1, 2, of=torch.int64)), Votes(rows(0, 1, 2, of=torch.int64))),
    ClassMeans: (means(SHARES), means(SHARPER)),
    ControlVariate: (
        ControlVariate({"bias": rows(1, -2, 3)}),
        ControlVariate({"bias": rows(2, -4, 6)}),
    ),
    Prototypes: (
        Prototypes(rows((1, -2), (0, 0), (3, 9e5)), PRESENT),
        Prototypes(rows((2, -4), (0, 0), (6, 1e6)), PRESENT),  # at most a million
    ),
    ReleasedLabels: (RELEASED, RELEASED),  # randomized labels have no size
    LocalSteps: (LocalSteps.of(3), LocalSteps.of(3)),  # it divides an update, which is doubled
    LowRankUpdate: (
        LowRankUpdate(
            PartialWeights({"bias": rows(1, 2, 3)}, LAST, LAST), {"table": rows((1, 2))}, {"table": rows((3, 4))}
        ),
        LowRankUpdate(
            PartialWeights({"bias": rows(2, 4, 6)}, LAST, LAST), {"table": rows((2, 4))}, {"table": rows((3, 4))}
        ),
    ),
}
"""A payload of each kind, and what twice as much of it is: updates doubled, probabilities squared and summing to 1,
expertise doubled where it can be."""


def close(one, other):
    one, other = one.to_records(), other.to_records()
    return all(torch.allclose(value, other[record][name]) for record in one for name, value in one[record].items())


@each_uplink
def test_twice_as_much_is_what_it_is_by_hand(kind):
    sent, doubled = TIMES_TWO[kind]
    got = sent.scaled(2.0, CONTEXT)
    assert type(got) is kind
    assert close(got, doubled)


@each_uplink
@settings(max_examples=20)
@given(data=st.data())
def test_a_payload_times_one_is_itself_and_times_minus_one_still_fits_the_round(kind, data):
    sent = data.draw(HONEST[kind])
    sent.scaled(-1.0, CONTEXT).validate(CONTEXT)
    for (record, one), other in zip(
        sent.to_records().items(), sent.scaled(1.0, CONTEXT).to_records().values(), strict=True
    ):
        assert list(one) == list(other), record
        assert all(torch.allclose(value, other[name], rtol=0.01, atol=0.01) for name, value in one.items())


def test_the_opposite_of_a_randomized_label_is_the_other_of_two_outputs():
    assert RELEASED.scaled(-1.0, CONTEXT).labels.tolist() == [0, 2]
    three = ReleasedLabels(*(getattr(RELEASED, name) for name in ("text", "lengths", "places", "labels")), THREE)
    assert three.scaled(-3.0, CONTEXT).labels.tolist() == [0, 1]


def test_votes_have_a_sign_and_no_size():
    votes = Votes(rows(0, 1, 2, 2, of=torch.int64))
    assert same(votes.scaled(0.1, CONTEXT), votes)
    assert votes.scaled(-5.0, CONTEXT).classes.tolist() == [2, 1, 0, 0]


def test_whole_weights_are_what_only_a_server_sends():
    sent = StudentWeights(IN_FULL)
    sent.check_shape(CONTEXT)
    for refused in (lambda: sent.validate(CONTEXT), lambda: sent.scaled(2.0, CONTEXT)):
        with pytest.raises(ValueError, match="only the server sends whole weights: a merchant must send a StudentUpd"):
            refused()


NORMS = {
    StudentUpdate: 31.0**0.5,  # 1 + 4 + 9 + 16 + 1
    SoftLabels: 0.0,
    SelectedSoftLabels: 0.0,
    DensitySelectedSoftLabels: 0.0,
    ExpertSoftLabels: 0.0,
    Votes: 0.0,
    ClassMeans: 0.0,
    ControlVariate: 14.0**0.5,  # 1 + 4 + 9
    LocalSteps: 0.0,
    Prototypes: 0.0,
    ReleasedLabels: 0.0,
    LowRankUpdate: (14 + 5 * 25) ** 0.5,  # 1 + 4 + 9, and (1 + 4) (9 + 16) of the product
}


@each_uplink
def test_how_far_a_payload_moves_the_student_is_what_it_is_by_hand(kind):
    sent, doubled = TIMES_TWO[kind]
    assert sent.norm() == pytest.approx(NORMS[kind])
    assert doubled.norm() == pytest.approx(2.0 * NORMS[kind])


def test_only_payloads_of_the_same_structure_are_merged():
    whole, part = StudentUpdate(like_updates(CONTEXT.weights)), StudentUpdate({"table": TABLE[[1, 4]]}, LAST, LAST)
    assert whole.structure() != part.structure() != StudentUpdate({"table": TABLE}).structure()
    assert part.structure() == StudentUpdate({"table": TABLE[[2, 3]]}, LAST, LAST).structure()
    update, plain = (
        TIMES_TWO[LowRankUpdate][0],
        PartialWeights({"bias": torch.ones(3), "table": TABLE[[1, 4]]}, LAST, LAST),
    )
    assert update.structure() == LowRankUpdate(plain).structure()  # whether factors are fewer numbers is no difference
    assert update.structure() != LowRankUpdate(PartialWeights(plain.arrays)).structure()
    narrow, wide = (Prototypes(torch.ones(3, width), PRESENT) for width in (2, 4))
    assert narrow.structure() != wide.structure()
    assert SoftLabels(SHARES).structure() == SoftLabels(SHARPER).structure()


@each_kind
@settings(max_examples=20)
@given(data=st.data())
def test_a_payload_that_counts_rows_gets_other_counts_and_nothing_else(kind, data):
    sent = data.draw(HONEST[kind])
    if not isinstance(sent, CountsRows):
        assert not kind.tells_rows
        return
    halved = {name: counts / 2 for name, counts in sent.counts.items()}
    changed = sent.with_counts(halved)
    assert type(changed) is kind
    assert same(dict(changed.counts), halved)
    assert same(changed.with_counts(sent.counts), sent)


def test_names_are_unique_and_records_shared_only_by_kinds_that_stand_for_each_other():
    names = Counter(kind.name for kind in KINDS)
    assert set(names.values()) == {1}
    records = Counter(record for kind in KINDS for record in kind.records)
    assert [record for record, times in sorted(records.items()) if times > 1] == ["answered", "soft_labels"]


@pytest.mark.parametrize("name", METHODS)
def test_no_method_declares_two_kinds_with_a_record_in_common(name):
    method = METHODS.resolve(name)
    for kinds in (method.sends, method.receives):
        assert len({kind.name for kind in kinds}) == len(kinds)
        records = [record for kind in kinds for record in kind.records]
        assert len({*records}) == len(records)


@each_kind
def test_a_kind_says_what_it_reveals_and_why_training_covers_it_if_it_does(kind):
    assert kind.disclosure.strip()
    assert kind.covered is None or kind.covered.strip()
    assert kind.name.isidentifier()
    # what is computed from private examples after training is not covered, and whole weights no merchant sends
    uncovered = (ClassMeans, DensitySelectedSoftLabels, ExpertSoftLabels, Prototypes, ReleasedLabels, StudentWeights)
    assert (kind.covered is None) == (kind in uncovered)
