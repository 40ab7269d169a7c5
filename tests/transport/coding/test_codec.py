"""Messages of a federation with chains: what they hold, how small they are, and that nothing else is read."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill.config import TransportConfig
from fed_distill.errors import ConfigError, TrainingError, UplinkRejected
from fed_distill.models.weights import PartialWeights, update_of, updated
from fed_distill.payloads.base import Context
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from fed_distill.transport.arrays import read_array
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.records import (
    check_uplink,
    encode_downlink,
    encode_uplink,
    serialized_bytes,
    to_array_record,
)

PROXY = (200, 4)
RANDOMNESS = (0, "arm", "Nord", 1)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASE = {"table": drawn(3000, 32, seed=1), "bias": drawn(32, seed=2), "steps": torch.tensor(3)}
ROWS = torch.arange(0, 3000, 3)
UPDATE = StudentUpdate(
    {"table": 0.01 * drawn(1000, 32, seed=3), "bias": torch.full((32,), 0.01)},
    {"table": ROWS},
    {"table": ROWS % 7},
)
LABELS = drawn(*PROXY, seed=4).softmax(dim=1)
VOTES = Votes(torch.zeros(200, dtype=torch.int64))
UPLINK = Uplink("Nord", 5, (UPDATE, SoftLabels(LABELS), VOTES), metrics={"loss": 1.0})
ALL = (StudentUpdate, SoftLabels, Votes)
DOWN = (StudentWeights, SoftLabels)
SELECTED = (SelectedSoftLabels,)
CONTEXT = Context(BASE, *PROXY)


def codec(**tables):
    return Codec.of(TransportConfig(**tables))


def over_the_wire(content):
    sent = recorddict_to_proto(content)
    return recorddict_from_proto(type(sent).FromString(sent.SerializeToString()))


def uploaded(coding, uplink=UPLINK, kinds=ALL, base=BASE):
    content, _ = coding.encode_uplink(uplink, base, RANDOMNESS)
    return coding.decode_uplink(over_the_wire(content), kinds, base, PROXY)


def test_without_stages_messages_are_what_they_were_byte_for_byte():
    plain = codec()
    content, kept = plain.encode_uplink(UPLINK, BASE, RANDOMNESS)
    same = recorddict_to_proto(encode_uplink(UPLINK)).SerializeToString()
    assert recorddict_to_proto(content).SerializeToString() == same
    assert not plain.keeps
    assert kept.tensors() == {}
    down = Downlink(1, (StudentWeights(BASE), SoftLabels(LABELS)), scalars={"a": 1.0})
    same = recorddict_to_proto(encode_downlink(down)).SerializeToString()
    assert recorddict_to_proto(plain.encode_downlink(down, RANDOMNESS)).SerializeToString() == same
    assert torch.equal(uploaded(plain).need(StudentUpdate).arrays["table"], UPDATE.arrays["table"])


def test_a_coded_uplink_fits_the_round_and_keeps_all_that_is_not_coded():
    got = uploaded(codec(weights=["int8"], soft_labels=["int8"]))
    check_uplink(got, CONTEXT)
    assert (got.merchant, got.examples, got.metrics) == ("Nord", 5, {"loss": 1.0})
    assert torch.equal(got.need(Votes).classes, VOTES.classes)
    assert torch.equal(got.need(StudentUpdate).rows["table"], ROWS)
    assert torch.equal(got.need(StudentUpdate).counts["table"], ROWS % 7)
    bound = UPDATE.arrays["table"].abs().amax(dim=1, keepdim=True) / 127 * (1 + 2**-7)
    lost = (got.need(StudentUpdate).arrays["table"] - UPDATE.arrays["table"]).abs()
    assert bool((lost <= bound + 1e-6).all())
    assert float((got.need(SoftLabels).probabilities - LABELS).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("tables", "most"),
    [
        ({"weights": ["float16"]}, 66_500),
        ({"weights": ["int8"]}, 36_500),
        ({"weights": ["int4"]}, 20_500),
        ({"weights": ["sign"]}, 8_500),
        ({"weights": [{"stage": "top-k", "share": 0.01}, "int8"]}, 2_200),
    ],
)
def test_bytes_on_the_wire_are_those_of_the_chain(tables, most):
    """1,000 rows of 32: 128,000 bytes as float32, and 8,000 for rows and counts; what coding leaves of it."""
    alone = Uplink("Nord", 5, (UPDATE,))
    content, _ = codec(**tables).encode_uplink(alone, BASE, RANDOMNESS)
    assert serialized_bytes(encode_uplink(alone)) > 136_000
    assert most - 1_500 < serialized_bytes(content) < most


def test_soft_labels_of_four_classes_take_a_byte_and_a_quarter():
    alone = Uplink("Nord", 5, (SoftLabels(LABELS),))
    coding = codec(soft_labels=[{"stage": "top-k", "classes": 1}, "int8"])
    content, _ = coding.encode_uplink(alone, {}, RANDOMNESS)
    assert serialized_bytes(content) < 200 * 1.25 + 350
    got = uploaded(coding, alone, base={})
    assert torch.equal(got.need(SoftLabels).probabilities.argmax(dim=1), LABELS.argmax(dim=1))
    check_uplink(got, CONTEXT)


def test_soft_labels_of_some_proxy_examples_are_coded_in_their_order():
    answered = torch.arange(200) % 3 == 0
    some = Uplink("Nord", 5, (SelectedSoftLabels(LABELS[answered], answered),))
    got = uploaded(codec(soft_labels=["int8"]), some, SELECTED, {})
    check_uplink(got, CONTEXT)
    assert float((got.need(SelectedSoftLabels).probabilities - LABELS[answered]).abs().max()) < 0.01


def test_soft_labels_of_an_expert_are_coded_and_its_expertise_is_sent_as_it_is():
    answered = torch.arange(200) % 2 == 0
    sent = ExpertSoftLabels(LABELS[answered], answered, torch.arange(100, dtype=torch.uint8))
    got = uploaded(codec(soft_labels=["int4"]), Uplink("Nord", 5, (sent,)), (ExpertSoftLabels,), {})
    check_uplink(got, CONTEXT)
    got = got.need(ExpertSoftLabels)
    assert torch.equal(got.levels, sent.levels)
    assert torch.equal(got.answered, answered)
    assert 0.01 < float((got.probabilities - LABELS[answered]).abs().max()) < 0.1


def test_an_expert_takes_three_bytes_an_answer_and_a_bit_a_proxy_example():
    """A fifth of 24,000 proxy pairs of four classes: 4,800 times 2 bytes of soft labels and 1 of expertise."""
    proxy, answers = 24_000, 4_800
    expertise = torch.arange(proxy).flip(0) / proxy
    sent = ExpertSoftLabels.most_expert(torch.full((proxy, 4), 0.25), expertise, answers)
    content, _ = codec(soft_labels=["int4"]).encode_uplink(Uplink("Nord", 5, (sent,)), {}, RANDOMNESS)
    assert 0 < serialized_bytes(content) - (3 * answers + proxy // 8) < 800


def test_a_downlink_is_coded_for_all_and_the_servers_own_weights_stay_exact():
    coding = codec(downlink_weights=["int8"])
    content = coding.encode_downlink(
        Downlink(2, (StudentWeights(BASE), SoftLabels(LABELS)), scalars={"a": 1.0}),
        RANDOMNESS,
    )
    assert serialized_bytes(content) < 0.4 * serialized_bytes(
        encode_downlink(Downlink(2, (StudentWeights(BASE), SoftLabels(LABELS))))
    )
    down = coding.decode_downlink(over_the_wire(content), DOWN)
    assert (down.round, down.scalars) == (2, {"a": 1.0})
    assert torch.equal(down.need(SoftLabels).probabilities, LABELS)
    assert torch.equal(down.weights["steps"], BASE["steps"])
    bound = BASE["table"].abs().amax(dim=1, keepdim=True) / 127 * (1 + 2**-7)
    assert bool(((down.weights["table"] - BASE["table"]).abs() <= bound + 1e-6).all())
    assert not torch.equal(down.weights["table"], BASE["table"])
    trained = {name: value + 1 for name, value in down.weights.items()}
    update = StudentUpdate.of(update_of(PartialWeights(trained), down.weights))
    got = uploaded(coding, Uplink("Nord", 5, (update,)))
    torch.testing.assert_close(updated(BASE, got.need(StudentUpdate))["table"], BASE["table"] + 1)


def test_a_downlink_without_weights_needs_no_coding():
    coding = codec(downlink_weights=["float16"], soft_labels=["int8"])
    down = Downlink(1, (SoftLabels(LABELS),))
    got = coding.decode_downlink(over_the_wire(coding.encode_downlink(down, RANDOMNESS)), DOWN)
    assert got.kinds == {SoftLabels}
    assert got.weights == {}


def test_a_coded_consensus_is_the_same_for_all_and_of_the_shape_that_is_announced():
    coding = codec(downlink_soft_labels=[{"stage": "top-k", "classes": 2}, "int8"])
    down = Downlink(2, (StudentWeights(BASE), SoftLabels(LABELS)))
    content = coding.encode_downlink(down, RANDOMNESS)
    saved = serialized_bytes(encode_downlink(down)) - serialized_bytes(content)
    assert saved > 200 * (4 * 4 - 2.5) - 200  # less the names of the record
    got = coding.decode_downlink(over_the_wire(content), DOWN)
    assert torch.equal(got.weights["table"], BASE["table"])
    assert got.need(SoftLabels).probabilities.shape == (200, 4)
    top = LABELS.topk(2, dim=1)
    assert float((got.need(SoftLabels).probabilities.gather(1, top.indices) - top.values).abs().max()) < 0.01
    torch.testing.assert_close(got.need(SoftLabels).probabilities.sum(dim=1), torch.ones(200))
    for forged in ([200, 5], [201, 4], [-200, -4], [200], [10**9, 10**9]):
        content["down.shapes"] = ConfigRecord({"soft_labels": forged})
        with pytest.raises(TrainingError, match="the compressed downlink cannot be read"):
            coding.decode_downlink(content, DOWN)
    with pytest.raises(TrainingError, match="run the same experiment at both"):
        coding.decode_downlink(encode_downlink(down), DOWN)


def test_a_cache_sends_what_the_server_does_not_have():
    coding, alone = codec(soft_label_cache=0.0), Uplink("Nord", 5, (SoftLabels(LABELS),))
    first, kept = coding.encode_uplink(alone, {}, RANDOMNESS)
    got = coding.decode_uplink(over_the_wire(first), ALL, {}, PROXY)
    assert torch.equal(got.need(SoftLabels).probabilities, LABELS)
    changed = LABELS.clone()
    changed[7] = torch.tensor([0.25, 0.25, 0.5, 0.0])
    second, kept = coding.encode_uplink(Uplink("Nord", 5, (SoftLabels(changed),)), {}, RANDOMNESS, kept)
    assert torch.equal(kept.soft_labels, changed)
    assert serialized_bytes(first) - serialized_bytes(second) > 199 * 16 - 20
    server = {"Nord": got.need(SoftLabels).probabilities}
    got = coding.decode_uplink(over_the_wire(second), ALL, {}, PROXY, server.get)
    assert torch.equal(got.need(SoftLabels).probabilities, changed)
    for known in ({}, {"Nord": server["Nord"][:-1]}):
        with pytest.raises(UplinkRejected, match=r"merchant Nord: .* omits soft labels that were never sent"):
            coding.decode_uplink(over_the_wire(second), ALL, {}, PROXY, known.get)


def test_a_cache_is_for_soft_labels_of_all_proxy_examples():
    answered = torch.arange(200) % 3 == 0
    some = Uplink("Nord", 5, (SelectedSoftLabels(LABELS[answered], answered),))
    coding = codec(soft_label_cache=0.0)
    with pytest.raises(UplinkRejected, match=r"merchant Nord: .*soft_label_cache is for .* the whole proxy set"):
        coding.encode_uplink(some, {}, RANDOMNESS)
    forged, _ = codec(soft_labels=["int8"]).encode_uplink(some, {}, RANDOMNESS)
    with pytest.raises(UplinkRejected, match="but soft_label_cache requires all"):
        coding.decode_uplink(forged, SELECTED, {}, PROXY)


def test_soft_labels_that_are_not_finite_never_leave():
    broken = Uplink("Nord", 5, (SoftLabels(torch.full(PROXY, float("nan"))),))
    with pytest.raises(UplinkRejected, match="merchant Nord: its soft labels are not finite"):
        codec(soft_labels=["int8"]).encode_uplink(broken, {}, RANDOMNESS)


def test_what_arrives_and_what_is_still_owed_are_the_sum_of_all_updates_whichever_rows_a_round_sends():
    """As for error feedback in Karimireddy et al. 2019, algorithm 2: what is lost of a row waits for its next round."""
    coding, kept = codec(weights=["sign"]), None
    wanted, arrived = torch.zeros(5, 8), torch.zeros(5, 8)
    base = {"table": torch.zeros(5, 8)}
    for number, rows in enumerate(([0, 1, 2], [2, 3], [4], [0, 3])):
        places = torch.tensor(rows)
        change = drawn(len(rows), 8, seed=10 + number)
        update = StudentUpdate({"table": change}, {"table": places}, {"table": torch.ones_like(places)})
        content, kept = coding.encode_uplink(Uplink("Nord", 5, (update,)), base, (0, "arm", "Nord", number), kept)
        sent = coding.decode_uplink(over_the_wire(content), (StudentUpdate,), base, None).need(StudentUpdate)
        wanted[places] += change
        arrived[places] += sent.arrays["table"]
        owed = torch.zeros(5, 8)
        owed[kept.residual.rows["table"]] = kept.residual.arrays["table"]
        assert bool(owed.any())
        torch.testing.assert_close(arrived + owed, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_coded_downlink_has_the_types_of_the_student(dtype):
    """Else a site, which compares them with the student's, refuses it."""
    coding, weights = codec(downlink_weights=["int8"]), {name: value.to(dtype) for name, value in BASE.items()}
    weights["steps"] = BASE["steps"]
    sent = coding.encode_downlink(Downlink(1, (StudentWeights(weights),)), RANDOMNESS)
    got = coding.decode_downlink(over_the_wire(sent), DOWN).weights
    assert {name: value.dtype for name, value in got.items()} == {
        "table": dtype, "bias": dtype, "steps": torch.int64,
    }  # fmt: skip


def test_feedback_is_kept_only_where_it_is_asked_for():
    for coding, keeps in (
        (codec(weights=["sign"]), True),
        (codec(weights=["sign"], error_feedback=False), False),
        (codec(downlink_weights=["int8"]), False),
    ):
        _, kept = coding.encode_uplink(UPLINK, BASE, RANDOMNESS)
        assert coding.keeps == keeps == ("arrays/table" in kept.tensors())


def replaced(part, value, coding):
    content, _ = coding.encode_uplink(UPLINK, BASE, RANDOMNESS)
    content["up.coded"][part] = Array(value)
    return content


CODED = codec(weights=["int8"], soft_labels=["int8"])
PLAIN_UPLINK = encode_uplink(UPLINK)
LIES = {
    "plain": (CODED, PLAIN_UPLINK, "are not compressed, unlike in the experiment"),
    "coded": (codec(), CODED.encode_uplink(UPLINK, BASE, RANDOMNESS)[0], "are compressed, unlike in the experiment"),
    "floats": (CODED, replaced("weights", np.zeros(9, np.float32), CODED), "float32 of shape .9., not bytes"),
    "matrix": (CODED, replaced("weights", np.zeros((9, 9), np.uint8), CODED), "not bytes"),
    "short": (CODED, replaced("weights", np.zeros(9, np.uint8), CODED), "extra bytes"),
    "long": (CODED, replaced("soft_labels", np.zeros(801, np.uint8), CODED), "it has 1 extra bytes"),
    "few labels": (CODED, replaced("soft_labels", np.zeros(799, np.uint8), CODED), "ends too early"),
    "another part": (CODED, replaced("votes", np.zeros(2, np.uint8), CODED), "votes are compressed, unlike"),
}


@pytest.mark.parametrize("case", LIES)
def test_what_is_not_coded_as_agreed_is_rejected_with_its_merchant(case):
    coding, content, message = LIES[case]
    with pytest.raises(UplinkRejected, match=f"merchant Nord: its uplink cannot be decoded: .*{message}"):
        coding.decode_uplink(over_the_wire(content), ALL, BASE, PROXY)


def test_answers_of_another_proxy_set_are_rejected_before_they_are_decoded():
    answered = torch.ones(10**6, dtype=torch.bool)
    content = encode_uplink(Uplink("Nord", 5, (SelectedSoftLabels(torch.zeros(0, 4), answered),)), {"soft_labels"})
    content["up.coded"] = to_array_record({"soft_labels": torch.zeros(10, dtype=torch.uint8)})
    with pytest.raises(UplinkRejected, match=r"answered has shape \[1000000\], not \[200\]"):
        CODED.decode_uplink(over_the_wire(content), SELECTED, BASE, PROXY)


def test_an_update_that_is_not_finite_or_of_no_weights_never_leaves():
    broken = PartialWeights({"bias": torch.full((32,), float("inf"))})
    with pytest.raises(UplinkRejected, match="merchant Nord: its update is not finite"):
        CODED.encode_uplink(Uplink("Nord", 5, (StudentUpdate.of(broken),)), BASE, RANDOMNESS)
    with pytest.raises(
        UplinkRejected, match="merchant Nord: its method sends an update, but the downlink has no weights"
    ):
        CODED.encode_uplink(UPLINK, {}, RANDOMNESS)


def test_weights_that_are_coded_for_a_method_without_any_are_rejected():
    coding, alone = codec(weights=["int8"]), Uplink("Nord", 5, (UPDATE,))
    content, _ = coding.encode_uplink(alone, BASE, RANDOMNESS)
    with pytest.raises(UplinkRejected, match="'counts' is not an expected record"):
        coding.decode_uplink(over_the_wire(content), (SoftLabels,), BASE, PROXY)


def test_a_downlink_that_is_not_coded_as_the_site_expects_is_refused():
    down = Downlink(1, (StudentWeights(BASE),))
    coding = codec(downlink_weights=["int8"])
    with pytest.raises(TrainingError, match="run the same experiment at both"):
        coding.decode_downlink(encode_downlink(down), DOWN)
    with pytest.raises(TrainingError, match="run the same experiment at both"):
        codec().decode_downlink(coding.encode_downlink(down, RANDOMNESS), DOWN)


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [10**9, 10**9, 32]},
        {"types": ["float32", "door", "int64"]},
        {"dimensions": [1, 9, 0]},
        {"sizes": [-1]},
    ],
)
def test_a_downlink_of_forged_shapes_is_refused_before_it_takes_memory(change):
    coding = codec(downlink_weights=["int8"])
    content = coding.encode_downlink(Downlink(1, (StudentWeights(BASE),)), RANDOMNESS)
    content["down.shapes"] = ConfigRecord({**content["down.shapes"], **change})
    with pytest.raises(TrainingError, match="the compressed downlink cannot be read"):
        coding.decode_downlink(content, DOWN)


def test_a_downlink_of_which_a_part_only_is_there_takes_no_memory_for_the_rest():
    """A bit says that a weight is absent, however large it is announced to be."""
    content = encode_downlink(Downlink(1))
    shapes = {"names": ["w"], "types": ["float32"], "dimensions": [2], "sizes": [2**30, 2**10]}
    content["down.shapes"] = ConfigRecord(shapes)
    content["down.coded"] = to_array_record({"weights": torch.zeros(1, dtype=torch.uint8)})
    with pytest.raises(TrainingError, match="it has only a part of the announced weights"):
        codec(downlink_weights=["int8"]).decode_downlink(content, DOWN)


def test_coded_soft_labels_of_another_proxy_set_or_other_classes_are_refused_before_they_take_memory():
    """Of ever so many classes top-k names one in a few bits, and the others share what is left."""
    coding = codec(downlink_soft_labels=[{"stage": "top-k", "classes": 1}, "int4"])
    content = coding.encode_downlink(Downlink(1, (SoftLabels(LABELS),)), RANDOMNESS)
    assert coding.decode_downlink(content, DOWN, PROXY).need(SoftLabels).probabilities.shape == PROXY
    content["down.shapes"] = ConfigRecord({"soft_labels": [200, 2**30]})
    with pytest.raises(TrainingError, match=r"its soft labels have shape \[200, 1073741824\], not \[200, 4\]"):
        coding.decode_downlink(content, DOWN, PROXY)


CODINGS = {
    "int8": codec(weights=["int8"], soft_labels=["int8"]),
    "sparse": codec(weights=[{"stage": "top-k", "share": 0.1}, "int4"], soft_labels=[{"stage": "top-k"}, "int4"]),
    "signs of factors": codec(weights=[{"stage": "svd", "rank": 2}, "sign"], soft_labels=["float16"]),
    "sparse signs": codec(weights=[{"stage": "top-k", "share": 0.5}, "sign"], soft_label_cache=0.0),
}


@pytest.mark.parametrize("name", CODINGS)
def test_coded_bytes_of_which_any_are_others_are_refused_or_fit_the_round(name):
    coding = CODINGS[name]
    honest, _ = coding.encode_uplink(UPLINK, BASE, RANDOMNESS)
    room = coding.room_for(ALL, CONTEXT)
    assert coding.decode_uplink(honest, ALL, BASE, PROXY, room=room).kinds == UPLINK.kinds

    @settings(derandomize=True, database=None, max_examples=60)
    @given(st.sampled_from(["weights", "soft_labels"]), st.data())
    def check(part, data):
        content, sent = RecordDict(dict(honest)), bytearray(read_array(honest["up.coded"][part]).tobytes())
        near = st.integers(0, 60) | st.integers(0, len(sent) - 1)  # numbers of rows and the like come first
        for _ in range(data.draw(st.integers(1, 4))):
            sent[data.draw(near)] = data.draw(st.integers(0, 255))
        sent = sent[: data.draw(st.just(len(sent)) | st.integers(0, len(sent)))]
        changed = {**honest["up.coded"], part: Array(np.frombuffer(bytes(sent), np.uint8))}
        content["up.coded"] = ArrayRecord(changed)
        try:
            got = coding.decode_uplink(content, ALL, BASE, PROXY, room=room)
        except UplinkRejected as error:
            assert "merchant Nord: its uplink cannot be decoded" in str(error)
            return
        arrays = got.need(StudentUpdate).arrays
        assert all(value.shape[1:] == BASE[key].shape[1:] for key, value in arrays.items())
        assert all(len(value) <= len(BASE[key]) for key, value in arrays.items() if value.dim())
        assert got.need(SoftLabels).probabilities.shape == PROXY

    check()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"weights": ["zip"]}, "unknown weight stage 'zip'"),
        ({"soft_labels": ["sign"]}, "unknown soft-label stage 'sign'"),
        ({"weights": [{"stage": "top-k", "classes": 2}]}, "'top-k' has no option 'classes'; it has: share"),
        ({"weights": ["int8", "top-k"]}, "put it last"),
    ],
)
def test_stages_that_there_are_not_are_named(tables, message):
    with pytest.raises(ConfigError, match=message):
        codec(**tables)
