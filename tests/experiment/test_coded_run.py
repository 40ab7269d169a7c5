"""Whole runs whose messages are coded: fewer bytes, controls as they were, and stopped runs that go on as if not."""

import json
import shutil

import pytest
import torch

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.experiment.preflight import check_settings
from fed_distill.merchant.app import build_app
from fed_distill.methods import METHODS
from fed_distill.methods.base import GlobalState
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.requests import TRAIN

CHAINS = {"weights": [{"stage": "top-k", "share": 0.05}, "int8"], "downlink_weights": ["int8"]}
CODED = {
    "controls": ["fedavg"],
    "federation.rounds": 3,
    "transport": CHAINS,
    "compare": [{"label": "as it is", "transport": {}}],
}


class Stopped(BaseException):
    """Stands for a signal: no code that catches errors may catch it."""


def stopping_after(message):
    """An app that is killed when so many messages have been trained, before the last reply is there."""
    inner, trained = build_app(), []

    def app(request, context):
        reply = inner(request, context)
        trained.append(request.metadata.message_type == TRAIN)
        if sum(trained) == message:
            raise Stopped
        return reply

    return app


def bytes_of(folder, kind="federations"):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {name: row["bytes"] for name, row in summary[kind].items()}


def rounds_of(folder, federation):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [json.loads(line) for line in lines]
    return [{**one, "seconds": 0} for one in rounds if one["federation"] == federation]


@pytest.fixture(scope="module")
def coded(tiny_experiment, simulate, tmp_path_factory):
    """A run with chains, one of its federations without: experiment changes, folder, and messages."""
    experiment = tiny_experiment(tmp_path_factory.mktemp("coded"), CODED)
    return simulate(experiment)


def test_coded_messages_take_a_fraction_of_the_bytes(coded):
    sent = bytes_of(coded[0])
    assert sent["fedavg-kd"]["uplink_per_merchant_round"] * 15 < sent["as it is"]["uplink_per_merchant_round"]
    assert sent["fedavg-kd"]["downlink_per_merchant_round"] * 2.5 < sent["as it is"]["downlink_per_merchant_round"]


def test_what_is_not_coded_is_as_in_a_run_without_chains(coded, tiny_experiment, simulate, tmp_path):
    plain = {"controls": ["fedavg"], "federation.rounds": 3, "federation.label": "as it is"}
    folder, _ = simulate(tiny_experiment(tmp_path, plain))
    for name in ("as it is", "fedavg"):
        assert rounds_of(coded[0], name) == rounds_of(folder, name) != []


def test_the_student_learns_from_coded_updates(coded):
    """With the large steps of three rounds both end near each other, and elsewhere than they began."""
    scores = {name: rounds_of(coded[0], name)[-1]["valid"]["ndcg@10"] for name in ("fedavg-kd", "as it is")}
    losses = [one["train_loss"] for one in rounds_of(coded[0], "fedavg-kd")]
    assert losses[-1] < losses[0]
    assert scores["fedavg-kd"] == pytest.approx(scores["as it is"], abs=0.1)


def test_every_merchant_keeps_what_coding_lost_of_the_newest_two_rounds(coded):
    kept = coded[0] / "checkpoint" / "coding" / "seed-0" / "fedavg-kd"
    assert len(list(kept.iterdir())) == 5
    for merchant in kept.iterdir():
        assert sorted(path.stem for path in merchant.iterdir()) == ["000002", "000003"]
    assert not (kept.parent / "as%20it%20is").exists()


@pytest.mark.parametrize("message", [2, 5])
def test_stopped_while_merchants_train(coded, tiny_experiment, simulate, outcome_of, tmp_path, message):
    """Stopped after a reply of some site's: merchants have kept residuals of a round that is trained again."""
    changes = {**CODED, "compare": [], "controls": []}
    whole, _ = simulate(tiny_experiment(tmp_path / "whole", changes), sites=3)
    experiment = tiny_experiment(tmp_path / "stopped", changes)
    with pytest.raises(Stopped):
        simulate(experiment, app=stopping_after(message), sites=3)
    folder, _ = simulate(experiment.with_changes({"runtime.resume": True}), sites=3)
    assert outcome_of(folder) == outcome_of(whole)


def test_coded_soft_labels_are_merged(tiny_experiment, simulate, tmp_path):
    changes = {
        "controls": [],
        "federation": {"method": "fedmd", "rounds": 2, "label": "coded"},
        "transport.soft_labels": [{"stage": "top-k", "classes": 2}, "int8"],
        "compare": [{"label": "as it is", "transport": {}}],
    }
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    sent = {name: one["uplink_per_merchant_round"] for name, one in bytes_of(folder).items()}
    assert sent["as it is"] - sent["coded"] > 40 * (4 * 4 - 2.5) - 60  # 40 proxy examples of four classes, less names
    one, other = (rounds_of(folder, name)[-1] for name in ("coded", "as it is"))
    assert one["rejected"] == other["rejected"] == 0
    assert one["valid"]["ndcg@10"] == pytest.approx(other["valid"]["ndcg@10"], abs=0.1)


CACHED = {
    "controls": [],
    "federation": {"method": "fedmd", "rounds": 3, "label": "cached", "participation": 0.7},
    "transport": {"soft_labels": ["int4"], "soft_label_cache": 0.0},
}


def test_a_cache_of_soft_labels_saves_bytes_and_changes_nothing(tiny_experiment, simulate, tmp_path):
    """Of coarse labels many stay; sampled merchants come back after rounds that they missed."""
    all_sent = {**CACHED, "transport": {"soft_labels": ["int4"]}}
    runs = [
        simulate(tiny_experiment(tmp_path / name, changes))[0] for name, changes in (("c", CACHED), ("a", all_sent))
    ]
    cached, whole = (rounds_of(folder, "cached") for folder in runs)
    assert [one["valid"] for one in cached] == [one["valid"] for one in whole]
    assert all(one["rejected"] == 0 for one in cached)
    assert cached[0]["bytes"]["uplink"] > whole[0]["bytes"]["uplink"]  # what says that all are there
    sizes = [one[2]["bytes"]["uplink"] for one in (cached, whole)]
    assert sizes[0] < sizes[1]


def test_a_stopped_run_with_a_cache_goes_on_as_if_not(tiny_experiment, simulate, outcome_of, tmp_path):
    """Both sides have kept soft labels of a round that is trained again."""
    whole, _ = simulate(tiny_experiment(tmp_path / "whole", CACHED), sites=2)
    experiment = tiny_experiment(tmp_path / "stopped", CACHED)
    with pytest.raises(Stopped):
        simulate(experiment, app=stopping_after(3), sites=2)
    folder, _ = simulate(experiment.with_changes({"runtime.resume": True}), sites=2)
    assert outcome_of(folder) == outcome_of(whole)


def test_a_site_that_lost_what_it_kept_sends_all_again(tiny_experiment, simulate, tmp_path):
    """The server has soft labels that the merchants no longer know of."""
    changes = {**CACHED, "federation": {"method": "fedmd", "rounds": 2, "label": "cached"}}
    folder = tiny_experiment(tmp_path, changes)
    inner, trained = build_app(), []

    def app(request, context):
        trained.append(request.metadata.message_type == TRAIN)
        if sum(trained) == 2:
            shutil.rmtree(next(tmp_path.rglob("checkpoint/coding")))
        return inner(request, context)

    done, _ = simulate(folder, app=app)
    rounds = rounds_of(done, "cached")
    assert [one["rejected"] for one in rounds] == [0, 0]
    assert rounds[1]["bytes"]["uplink"] == rounds[0]["bytes"]["uplink"]


def test_a_protected_update_is_coded_after_its_noise(tiny_experiment, simulate, tmp_path):
    changes = {
        "controls": [],
        "federation.rounds": 1,
        "transport.weights": ["int8"],
        "privacy": {"unit": "example", "noise_multiplier": 1.0},
        "compare": [{"label": "as it is", "transport": {}}],
    }
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    sent = {name: one["uplink_per_merchant_round"] for name, one in bytes_of(folder).items()}
    assert sent["fedavg-kd"] * 3 < sent["as it is"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["privacy"]["merchants"] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transport.soft_labels": ["int8"]},
            r"\[transport\] compresses soft_labels, but none of its methods sends them",
        ),
        (
            {"federation.method": "fedmd", "federation.options": {}, "federation.transport": {"weights": ["sign"]}},
            "the transport of fedmd compresses weights, but none of its methods sends them",
        ),
        ({"transport.soft_label_cache": 0.1}, "caches soft labels, but no method sends them"),
        (
            {"federation.method": "fedavg", "federation.options": {}, "transport.downlink_soft_labels": ["int4"]},
            r"\[transport\] compresses soft_labels in downlinks, but none .* remove downlink_soft_labels",
        ),
        (
            {"federation.method": "fedmd", "federation.options": {}, "transport.downlink_weights": ["int8"]},
            r"\[transport\] compresses weights in downlinks, but none .* remove downlink_weights",
        ),
        (
            {
                "federation": {"method": "selective-fd"},
                "transport.soft_label_cache": 0.1,
            },
            r"\[transport\] caches soft labels, but a method sends those of some proxy examples only",
        ),
        (
            {"federation": {"method": "expert-fd"}, "transport.soft_label_cache": 0.1},
            r"\[transport\] caches soft labels, but a method sends those of some proxy examples only",
        ),
    ],
)
def test_what_a_chain_or_cache_cannot_do_is_refused(tiny_experiment, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(tiny_experiment(tmp_path, {"controls": [], **changes}))


def test_one_table_may_serve_federations_that_send_different_parts(tiny_experiment, simulate, tmp_path):
    changes = {
        "controls": [],
        "federation.rounds": 1,
        "transport": {"weights": ["sign"], "soft_labels": ["int4"]},
        "compare": [{"method": "fedmd"}],
    }
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    assert all(one["rejected"] == 0 for name in ("fedavg-kd", "fedmd") for one in rounds_of(folder, name))


def test_a_chain_for_one_federation_on_its_terms_may_code_nothing_of_another(tiny_experiment, tmp_path):
    terms = {"downlink_weights": ["int8"], "downlink_soft_labels": ["int4"]}
    changes = {"controls": [], "federation.method": "fedavg", "federation.options": {}, "transport": terms}
    with pytest.raises(ConfigError, match="downlink_soft_labels"):
        check_settings(tiny_experiment(tmp_path, changes))
    beside = [{"method": "fedmd", "aggregator": "fedavg"}]
    assert check_settings(tiny_experiment(tmp_path, {**changes, "compare": beside})) is None


def test_control_variates_are_not_computed_from_coded_updates(tiny_experiment, tmp_path):
    terms = {"federation.method": "scaffold", "federation.options": {}, "training.merchants.optimizer": "sgd"}
    changes = {"controls": [], **terms, "transport": {"weights": ["int8"]}}
    with pytest.raises(ConfigError, match="control variates at both ends from the same update: drop `weights`"):
        check_settings(tiny_experiment(tmp_path, changes))
    assert check_settings(tiny_experiment(tmp_path, {**changes, "transport": {"downlink_weights": ["int8"]}})) is None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_of_every_method_it_is_known_what_its_merchants_are_sent(name):
    """By its declaration, and by its first downlink, in which only what merchants have told before is missing."""
    by_labels = {"cronus", "dsfl", "expert-fd", "fedet", "fedmd", "fedmkt", "selective-fd", "selective-fd-kulsif"}
    by_class = {"fd", "fedproto", "fedtgp"}
    weights, soft_labels = set(METHODS) - by_labels - by_class, by_labels | {"fedavg-kd"}
    expected = [kind for kind, those in ((StudentWeights, weights), (SoftLabels, soft_labels)) if name in those]
    prototypes = {"fedproto": [Prototypes], "fedtgp": [Prototypes]}
    later = {"fd": [ClassMeans], "scaffold": [ControlVariate], **prototypes}.get(name, [])
    method = METHODS.build(name, {"pretrain_epochs": 0.0} if name == "expert-fd" else {})
    assert list(method.receives) == expected + later
    state = GlobalState(0, {"w": torch.ones(2)}, torch.ones(1, 1))
    assert method.broadcast(state).kinds == {*expected}


@pytest.mark.parametrize("method", ["selective-fd", "selective-fd-kulsif"])
def test_labels_by_which_merchants_select_are_not_compressed_on_the_way_to_them(method):
    changes = {"federation": {"method": method}, "transport.downlink_soft_labels": ["int4"]}
    experiment = Experiment().with_changes(changes)
    with pytest.raises(ConfigError, match="must select by identical labels"):
        check_settings(experiment)
    check_settings(experiment.with_changes({"federation": {"method": "expert-fd"}}))
