"""What the ClientApp puts on the wire: names, numbers and plain arrays, and never a merchant's texts."""

import io

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from ray import cloudpickle

import fed_distill.data as data_package
from fed_distill.config.experiment import personal_arm
from fed_distill.data import load
from fed_distill.experiment.grid import InProcessGrid, context_of
from fed_distill.merchant.app import build_app, site_for
from fed_distill.transport.requests import EVALUATE, QUERY_MERCHANTS, TRAIN


@pytest.fixture(scope="module")
def private_texts(tiny_run):
    data = load(tiny_run.experiment.data)
    tables = [
        table for merchant in data.merchants.values() for table in (merchant.train, merchant.valid, merchant.test)
    ]
    return {text for table in tables for text in (*table.texts, *table.pairs)}


def test_no_message_of_a_run_holds_a_text_of_a_merchant(tiny_run, private_texts):
    assert len(private_texts) > 100
    assert {kind for kind, _, _ in tiny_run.wire} == {QUERY_MERCHANTS, TRAIN, EVALUATE}
    wire = b"".join(request + reply for _, request, reply in tiny_run.wire)
    assert len(wire) > 100_000
    for text in private_texts:
        for encoding in ("utf-8", "utf-16-le", "utf-32-le"):
            assert text.encode(encoding) not in wire


def test_every_array_of_a_run_is_npy_without_objects(tiny_run):
    arrays = 0
    for _, request, reply in tiny_run.wire:
        for message in (request, reply):
            for record in recorddict_from_proto(Proto.FromString(message)).array_records.values():
                for array in record.values():
                    value = np.lib.format.read_array(io.BytesIO(array.data), allow_pickle=False)
                    assert value.dtype in (np.float32, np.int32)
                    arrays += 1
    assert arrays > 100


def test_replies_hold_only_the_records_of_an_uplink(tiny_run):
    seen = set()
    for kind, _, reply in tiny_run.wire:
        if kind == TRAIN:
            seen |= {name.partition("/")[2] or name for name in recorddict_from_proto(Proto.FromString(reply))}
    assert seen == {
        "answer",
        "up",
        "up.metrics",
        "up.update",
        "up.rows",
        "up.counts",
        "up.soft_labels",
    }


def test_a_query_is_answered_with_merchants_and_their_numbers_of_examples(tiny_run):
    data = load(tiny_run.experiment.data)
    (answer,) = [reply for kind, _, reply in tiny_run.wire if kind == QUERY_MERCHANTS]
    record = recorddict_from_proto(Proto.FromString(answer))["merchants"]
    assert dict(zip(record["names"], record["examples"], strict=True)) == {
        name: len(merchant.train) for name, merchant in data.merchants.items()
    }


def test_personal_students_never_leave(tiny_run):
    replies: dict[str, list[RecordDict]] = {}
    for kind, request, reply in tiny_run.wire:
        if kind == TRAIN:
            arm = str(recorddict_from_proto(Proto.FromString(request))["request"]["arm"])
            replies.setdefault(arm, []).append(recorddict_from_proto(Proto.FromString(reply)))
    for federation in tiny_run.experiment.federations():
        answers = replies[personal_arm(federation.title)]
        assert answers and not any(answer.array_records for answer in answers)
    kept = tiny_run.result.folder / "checkpoint" / "sites" / "seed-0"
    assert {path.name for path in kept.iterdir()} >= {"fedmd%2Fpersonal", "fedavg-kd%2Bfedsubavg%2Fpersonal"}


def test_a_sites_own_ledger_and_limits_win_over_the_run_config(tiny_experiment, tmp_path):
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nmax_epsilon = 1.0\n", encoding="utf-8")
    run_config = tiny_experiment(tmp_path, {"privacy.ledger": str(tmp_path / "theirs")}).to_run_config()
    context = context_of(2, 1, run_config)
    context.node_config |= {"limits": str(limits), "ledger": str(tmp_path / "own")}
    site = site_for(context)
    assert site.protection.limits.default.max_epsilon == 1.0
    assert site.experiment.privacy.ledger == tmp_path / "own"


@pytest.fixture
def reads(monkeypatch):
    """What data are read from now on."""
    reads = []
    monkeypatch.setattr(data_package, "load", lambda config: reads.append(config) or load(config))
    return reads


def names_at(client_app, experiment, sites):
    """Merchants of each site, as it says itself."""
    grid = InProcessGrid(client_app, experiment.to_run_config(), sites)
    asked = [Message(RecordDict(), node, QUERY_MERCHANTS) for node in grid.get_node_ids()]
    return [set(reply.content["merchants"]["names"]) for reply in grid.send_and_receive(asked)]


def test_the_data_of_a_simulation_are_read_once_for_all_sites_of_a_process(tiny_experiment, tmp_path, reads):
    experiment = tiny_experiment(tmp_path)
    names = names_at(build_app(), experiment, 3)
    assert reads == [experiment.data]
    assert sum(map(len, names)) == len(set.union(*names)) == len(load(experiment.data).merchants)


def test_an_app_that_is_pickled_for_every_message_reads_its_data_once(tiny_experiment, tmp_path, reads):
    """As Ray does it with the app of Flower's simulation engine."""
    experiment, pickled = tiny_experiment(tmp_path), cloudpickle.dumps(build_app())
    first, second = (names_at(cloudpickle.loads(pickled), experiment, 1) for _ in range(2))
    assert first == second
    assert reads == [experiment.data]
    names_at(cloudpickle.loads(cloudpickle.dumps(build_app())), experiment, 1)
    assert len(reads) == 2  # another app has sites of its own
