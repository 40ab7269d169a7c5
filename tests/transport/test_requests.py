"""Requests and blueprints of students come back as they were sent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_distill.errors import TrainingError
from fed_distill.transport.requests import TrainRequest, blueprint_of, built_from, packed, unpacked

REQUEST = TrainRequest(
    arm="fedmd · 日本",
    seed=3,
    merchants=("Müller & Söhne", "b"),
    students=("lstm", "two-tower"),
    blueprints={"lstm": "{}", "two-tower": '{"a": 1}'},
    rounds=(5, 15),
    population=90,
    learning_rate=0.003,
    test=True,
    known=(0, 2),
    proxy=b"\xa0",
)


def over_the_wire(request):
    proto = recorddict_to_proto(RecordDict({"request": request.to_record()}))
    content = recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))
    return TrainRequest.from_record(content.config_records["request"])


def test_a_request_comes_back_as_it_was_sent():
    assert over_the_wire(REQUEST) == REQUEST
    empty = TrainRequest("a", 0, (), (), {}, (), 0)
    assert over_the_wire(empty) == empty


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": "3"},  # another seed to a ledger, and the same to what draws the noise
        {"seed": 3.0},
        {"seed": True},
        {"arm": 3},
        {"population": 2.5},
        {"learning_rate": "0.1"},
        {"test": 1},
        {"merchants": [1, 2]},
        {"merchants": "ab"},
        {"rounds": [5.0, 15.0]},
        {"rounds": [5]},
        {"students": ["lstm"]},
        {"known": [1]},
        {"blueprints": ["{}"]},
        {"proxy": "x"},
    ],
)
def test_a_request_of_other_types_or_lengths_is_refused(wrong):
    record = REQUEST.to_record()
    for name, value in wrong.items():
        record[name] = value
    with pytest.raises(TrainingError, match="the request"):
        TrainRequest.from_record(record)


@pytest.mark.parametrize("name", sorted(set(REQUEST.to_record()) - {"known", "proxy", "federation"}))
def test_a_request_of_which_anything_is_missing_is_refused(name):
    record = REQUEST.to_record()
    del record[name]
    with pytest.raises(TrainingError, match="the request"):
        TrainRequest.from_record(record)


VALUES = (
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
    | st.booleans() | st.lists(st.integers(0, 9), max_size=3) | st.lists(st.text(max_size=3), max_size=3)
)  # fmt: skip


@settings(derandomize=True, database=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([*REQUEST.to_record(), "federation", "odd"]), VALUES, max_size=3))
def test_whatever_a_record_says_it_is_a_request_or_refused(changes):
    record = ConfigRecord({**REQUEST.to_record(), **{name: one for name, one in changes.items() if one is not None}})
    for name in (name for name, one in changes.items() if one is None):
        record.pop(name, None)
    try:
        found = TrainRequest.from_record(record)
    except TrainingError:
        return
    assert TrainRequest.from_record(found.to_record()) == found
    assert len(found.students) == len(found.rounds) == len(found.merchants)


@pytest.mark.parametrize("blueprint", ["", "{", "[]", "3", "null", '{"kind": "lstm"}', '"kind"', "[" * 10**5])
def test_a_blueprint_that_describes_nothing_is_refused(blueprint):
    with pytest.raises(TrainingError, match="an invalid blueprint of a student"):
        built_from(blueprint)


def test_each_merchant_has_its_student_and_its_planned_rounds():
    assert [REQUEST.student_of(merchant) for merchant in REQUEST.merchants] == ["lstm", "two-tower"]
    assert [REQUEST.rounds_of(merchant) for merchant in REQUEST.merchants] == [5, 15]


def test_looking_up_every_merchant_takes_a_few_comparisons_each():
    compared = 0

    class Name(str):
        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    size = 500
    names = [Name(number) for number in range(size)]
    request = TrainRequest("a", 0, tuple(names), ("s",) * size, {}, tuple(range(size)), size, known=(1,) * size)
    for number in range(size):
        asked = Name(number)
        assert (request.student_of(asked), request.rounds_of(asked), request.known_of(asked)) == ("s", number, 1)
    assert compared < 20 * size  # going through all of them would take 375,000


def test_a_part_keeps_each_merchant_with_what_belongs_to_it():
    part = REQUEST.part([1])
    assert (part.merchants, part.students, part.rounds) == (("b",), ("two-tower",), (15,))
    assert part.blueprints == REQUEST.blueprints
    assert (part.known, part.proxy) == ((2,), b"\xa0")
    assert [REQUEST.known_of(merchant) for merchant in REQUEST.merchants] == [0, 2]
    assert replace(REQUEST, known=()).known_of("b") == 0


@given(hnp.arrays(np.bool_, st.integers(0, 40)))
def test_a_choice_comes_back_and_none_of_another_set_is_taken(chosen):
    assert np.array_equal(unpacked(packed(chosen), len(chosen)), chosen)
    with pytest.raises(
        TrainingError, match=f"the server's proxy set differs from this site's of {len(chosen) + 8} examples"
    ):
        unpacked(packed(chosen), len(chosen) + 8)


def test_a_blueprint_builds_an_equal_model_with_other_weights(student):
    built = built_from(blueprint_of(student))
    assert blueprint_of(built) == blueprint_of(student)
    built.load_state_dict(student.state_dict())
    encoded = student.encode(["red shoe"], ["blue kettle"])
    assert torch.equal(built(encoded).logits, student(encoded).logits)
