"""A site trains its merchants the same whoever else is there, keeps what is theirs, and says who failed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_distill.config import TransportConfig
from fed_distill.data.examples import MerchantData
from fed_distill.errors import CheckpointError, ConfigError, TrainingError
from fed_distill.merchant.opening import open_site
from fed_distill.methods.fedmd import FedMD
from fed_distill.models import predict
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.local_steps import LocalSteps
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.votes import Votes
from fed_distill.storage.merchant_store import MerchantStore
from fed_distill.training.cohort import trainer
from fed_distill.training.cohort.training import Cohort
from fed_distill.training.submodel import completed
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.requests import Refusal


@pytest.fixture
def same(distance):
    """A function: are two uplinks the same, but for the order of float summation? A cohort is computed together."""

    def compare(one, other):
        assert (one.merchant, one.examples) == (other.merchant, other.examples)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
        for part in ("rows", "counts"):
            mine, theirs = (getattr(up.need(StudentUpdate), part) for up in (one, other))
            assert list(mine) == list(theirs)
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        return distance(one.need(StudentUpdate).arrays, other.need(StudentUpdate).arrays) < 1e-5

    return compare


def trained(site, request, down, starts=None):
    return {answer.merchant: answer for answer in site.train(request, down, starts or {})}


@pytest.mark.parametrize("parts", [2, 3])
def test_uplinks_do_not_depend_on_how_merchants_are_spread_over_sites(world, parts, same):
    alone = trained(world.site(), world.request(*world.names, test=True), world.down())
    spread = {}
    for part in range(parts):
        site = world.site(part, parts)
        spread |= trained(site, world.request(*site.holdings.merchants, test=True), world.down())
    assert sorted(spread) == world.names
    assert all(same(alone[name], spread[name]) for name in world.names)


def test_all_merchants_of_a_request_train_in_one_cohort(world, monkeypatch):
    """Merchants train together if they share the plan object, see ``CohortTrainer.fit``."""
    sizes = []

    class Counted(Cohort):
        def __init__(self, members, *others):
            sizes.append(len(members))
            super().__init__(members, *others)

    monkeypatch.setattr(trainer, "Cohort", Counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # in this process
    assert len(trained(world.site(), world.request(*world.names), world.down())) == len(world.names)
    assert sizes == [len(world.names)]


def test_uplinks_do_not_depend_on_the_order_or_the_company_of_merchants(world, same):
    site = world.site()
    forward = trained(site, world.request(*world.names), world.down())
    backward = trained(site, world.request(*reversed(world.names)), world.down())
    single = trained(world.site(), world.request(world.names[2]), world.down())
    assert all(same(forward[name], backward[name]) for name in world.names)
    assert same(forward[world.names[2]], single[world.names[2]])


def test_merchants_and_rounds_train_differently_and_leave_the_downlink_alone(world):
    site, before = world.site(), {name: value.clone() for name, value in world.start.items()}
    first, second = (trained(site, world.request(*world.names[:2]), world.down(number)) for number in (1, 2))
    heads = [up.need(StudentUpdate).arrays["head.0.weight"] for some in (first, second) for up in some.values()]
    assert not any(torch.equal(one, other) for place, one in enumerate(heads) for other in heads[:place])
    assert all(torch.equal(world.start[name], before[name]) for name in before)


def test_two_merchants_with_the_same_examples_draw_different_batches(world):
    site, (one, other) = world.site(), world.names[:2]
    site = world.having(site, {**site.holdings.merchants, other: replace(site.holdings.merchants[one], name=other)})
    answers = trained(site, world.request(one, other), world.down())
    assert answers[one].examples == answers[other].examples
    heads = [answer.need(StudentUpdate).arrays["head.0.weight"] for answer in answers.values()]
    assert not torch.equal(*heads)


def test_examples_are_the_merchants_training_examples(world):
    for name, uplink in trained(world.site(), world.request(*world.names), world.down()).items():
        assert uplink.examples == len(world.data.merchants[name].train)


def test_a_merchant_that_fails_is_a_refusal_and_the_others_go_on(world):
    site = world.site()
    broken = site.holdings.merchants[world.names[1]]
    empty = MerchantData(broken.name, broken.train.take([]), broken.valid, broken.test)
    site = world.having(site, {**site.holdings.merchants, broken.name: empty})
    answers = {answer.merchant: answer for answer in site.train(world.request(*world.names), world.down(), {})}
    assert sorted(answers) == world.names
    assert answers.pop(broken.name) == Refusal(broken.name, f"{broken.name} has no private examples to train on")
    assert not any(isinstance(answer, Refusal) for answer in answers.values())


def test_a_loss_that_is_not_finite_is_a_refusal_that_names_merchant_and_remedy(world, monkeypatch):
    monkeypatch.setattr("fed_distill.merchant.request_validation.LARGEST_RATE", math.inf)
    request = replace(world.request(world.names[0]), learning_rate=1e30)
    (answer,) = world.site().train(request, world.down(), {})
    assert answer.merchant == world.names[0]
    assert answer.reason.startswith(
        f"{world.names[0]}: the loss of phase 1 is nan; lower learning_rate or set clip_norm in [training.merchants]"
    )


def test_a_refusal_quotes_no_error_that_may_name_a_path_or_a_row(world, monkeypatch):
    def torn(*_, **__):
        raise CheckpointError("/srv/acme/state/sites/000001.safetensors is torn")

    monkeypatch.setattr("fed_distill.merchant.site.Site._kept", torn)
    (answer,) = world.site().train(world.request(world.names[0]), world.down(), {})
    assert answer.reason == f"merchant {world.names[0]}: CheckpointError; see the site's log"


@pytest.mark.parametrize("rate", [-1.0, 2e4, math.inf, math.nan])
def test_a_rate_with_which_weights_may_overflow_is_refused(world, rate):
    with pytest.raises(TrainingError, match=r"the learning rate must be from 0 to 10000"):
        list(world.site().train(replace(world.request(world.names[0]), learning_rate=rate), world.down(), {}))


def count_right(student, weights, test):
    """One example at a time."""
    student.load_state_dict(weights)
    right = 0
    for text, pair, label in zip(test.texts, test.pairs, test.labels, strict=True):
        with torch.no_grad():
            right += int(student(student.encode([text], [pair])).logits.argmax()) == label
    return right, len(test)


def test_evaluation_counts_right_answers_and_none_of_a_merchant_without_a_test(world):
    site = world.site()
    some = site.holdings.merchants[world.names[0]]
    untested = MerchantData(some.name, some.train, some.valid, some.test.take([]))
    site = world.having(site, {**site.holdings.merchants, some.name: untested})
    counts = site.evaluate(world.request(*world.names), world.start)
    assert counts == {
        some.name: (0, 0),
        **{name: count_right(world.student, world.start, world.data.merchants[name].test) for name in world.names[1:]},
    }


def test_own_test_counts_are_those_of_the_trained_student(world):
    name = world.names[0]
    uplink = trained(world.site(), world.request(name, test=True), world.down())[name]
    whole, sent = {key: value.clone() for key, value in world.start.items()}, uplink.need(StudentUpdate)
    for key, value in sent.arrays.items():
        whole[key][sent.rows.get(key, slice(None))] += value
    right, count = count_right(world.student, whole, world.data.merchants[name].test)
    assert (uplink.metrics["test_right"], uplink.metrics["test_count"]) == (right, count)


def personal(world, site, name, number, starts):
    request = world.request(name, arm="fedmd")
    return trained(site, request, world.consensus(number), starts)[name].need(SoftLabels).probabilities


def test_a_personal_student_goes_on_from_the_store_also_at_a_restarted_site(world):
    name, starts = world.names[0], {"two-tower": world.start}
    site = world.site()
    first = personal(world, site, name, 1, starts)
    second = personal(world, site, name, 2, {})
    again = personal(world, world.site(), name, 2, {})
    assert torch.equal(second, again)
    fresh = personal(world, world.site(), name, 1, starts)
    assert torch.equal(first, fresh)
    assert not torch.equal(first, second)


def test_a_personal_student_without_a_kept_one_starts_from_what_is_sent(world):
    other = {name: value + 0.5 for name, value in world.start.items()}
    one, two = (
        personal(world, world.site(), world.names[place], 1, {"two-tower": start})
        for place, start in ((0, world.start), (1, other))
    )
    assert not torch.equal(one, two)
    assert torch.allclose(one.sum(dim=-1), torch.ones(len(one)))


def test_only_a_method_with_personal_students_keeps_any(world, tmp_path):
    site = world.site()
    trained(site, world.request(world.names[0]), world.down())
    assert not list(tmp_path.rglob("*.safetensors"))
    personal(world, site, world.names[0], 1, {"two-tower": world.start})
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["000001.safetensors"]


@pytest.mark.parametrize("trainer", ["cohort", "sequential"])
def test_class_means_are_those_of_the_trained_student_on_its_own_examples(world, trainer):
    """One example at a time, with the student that the merchant keeps."""
    name, site = world.names[0], world.site()
    site = replace(site, experiment=site.experiment.with_changes({"runtime.trainer": trainer}))
    classes = len(world.data.task.classes)
    before = ClassMeans(torch.eye(classes).roll(1, dims=0), torch.ones(classes, dtype=torch.bool))
    down = Downlink(1, (before,))
    uplink = trained(site, world.request(name, arm="fd"), down, {"two-tower": world.start})[name]
    own = site.holdings.merchants[name].train
    world.student.load_state_dict(site.store.load("fd", 0, name, before=2))
    by_class = {}
    for text, pair, label in zip(own.texts, own.pairs, own.labels, strict=True):
        with torch.no_grad():
            probabilities = world.student(world.student.encode([text], [pair])).logits.softmax(dim=-1)
        by_class.setdefault(int(label), []).append(probabilities[0])
    for label in range(classes):
        rows = by_class.get(label, [])
        assert bool(uplink.need(ClassMeans).present[label]) == bool(rows)
        expected = torch.stack(rows).mean(dim=0) if rows else torch.zeros(classes)
        torch.testing.assert_close(uplink.need(ClassMeans).probabilities[label], expected, atol=1e-5, rtol=1e-4)
    assert uplink.kinds == {ClassMeans}


def test_prototypes_are_those_of_the_trained_student_on_its_own_examples(world):
    """The hidden units of its head, one example at a time, with the student that the merchant keeps."""
    name, site = world.names[0], world.site()
    request = world.request(name, arm="fedproto")
    sent = trained(site, request, Downlink(1), {"two-tower": world.start})[name]
    own = site.holdings.merchants[name].train
    world.student.load_state_dict(site.store.load("fedproto", 0, name, before=2))
    by_class = {}
    for text, pair, label in zip(own.texts, own.pairs, own.labels, strict=True):
        with torch.no_grad():
            units = world.student(world.student.encode([text], [pair]), hidden=True).hidden[-1][0, 0]
        by_class.setdefault(int(label), []).append(units)
    assert sent.kinds == {Prototypes}
    assert sent.need(Prototypes).present.tolist() == [
        label in by_class for label in range(len(world.data.task.classes))
    ]
    for label, rows in by_class.items():
        expected = torch.stack(rows).mean(dim=0)
        torch.testing.assert_close(sent.need(Prototypes).means[label], expected, atol=1e-5, rtol=1e-4)
    later = Downlink(2, (sent.need(Prototypes),))  # goes on from its own student, without new weights
    assert trained(site, request, later)[name].kinds == {Prototypes}


def test_expertise_is_the_closeness_of_the_proxy_set_to_a_merchants_own_examples_and_nobody_elses(world):
    """Beside the same merchant, whose examples are the first ones of the proxy set."""
    name, other = world.names[:2]
    copied = world.data.proxy.take(range(5))
    copied = replace(copied, labels=np.zeros(5, dtype=np.int64))
    site = world.having(
        world.site(), {name: MerchantData(name, copied, copied, copied), other: world.data.merchants[other]}
    )
    uplinks = trained(site, world.request(name, other, arm="expert-fd"), world.consensus(1), {"two-tower": world.start})
    own, else_ = (uplinks[merchant].need(ExpertSoftLabels) for merchant in (name, other))
    most = math.ceil(0.25 * len(world.data.proxy))
    assert len(own.levels) == len(else_.levels) == most
    assert own.answered[:5].all()
    assert (own.levels[:5] == 255).all()
    assert not (else_.levels == 255).any()
    assert torch.equal(own.probabilities, predicted_by(world, site, name)[own.answered])


def predicted_by(world, site, name):
    world.student.load_state_dict(site.store.load("expert-fd", 0, name, before=2))
    return predict(world.student, site.holdings.encoded_proxy(world.student, world.request(name)))


def test_a_merchant_compares_with_the_student_that_it_had_trained_before_also_at_a_restarted_site(world, tmp_path):
    name, site = world.names[0], world.site()
    request = world.request(name, arm="moon")
    first = trained(site, request, world.down(1))[name]
    kept = site.store.load("moon", 0, name, before=2)
    nothing = {key: torch.zeros_like(value) for key, value in world.start.items()}
    moved = completed(first.need(StudentUpdate), nothing)
    for key, value in kept.items():
        torch.testing.assert_close(value, world.start[key] + moved[key], rtol=1e-6, atol=1e-7)
    second, again = (trained(one, request, world.down(2))[name] for one in (site, world.site()))
    new = replace(site, store=MerchantStore(tmp_path / "of a merchant that is new"))
    other = trained(new, request, world.down(2))[name]
    heads = [one.need(StudentUpdate).arrays["head.0.weight"] for one in (second, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("arm", ["fml", "fedkd"])
def test_of_a_pair_the_own_student_stays_and_the_shared_one_leaves(world, arm):
    name, site = world.names[0], world.site()
    own = {key: value + 0.1 for key, value in world.start.items()}
    request = world.request(name, arm=arm, test=True)
    downs = [replace(world.down(number), scalars={"energy": 0.95}) for number in (1, 2)]
    first = trained(site, request, downs[0], {"two-tower": own})[name]
    sent = first.need(StudentUpdate) if arm == "fml" else first.need(LowRankUpdate).multiplied_out()
    assert set(sent.arrays) == set(world.start)
    assert set(sent.rows) == {"bag.table", "bag.importance"}
    kept = site.store.load(arm, 0, name, before=2)
    assert set(kept) == set(own)
    moved = [max(float((kept[key] - start[key]).abs().max()) for key in own) for start in (own, world.start)]
    assert 0.0 < moved[0] < 0.1 < moved[1] + 1e-6  # it goes on from its own start, not from the shared student
    right, count = count_right(world.student, kept, site.holdings.merchants[name].test)
    assert (first.metrics["test_right"], first.metrics["test_count"]) == (right, count)
    trained(site, request, downs[1])
    assert any(not torch.equal(site.store.load(arm, 0, name, before=3)[key], value) for key, value in kept.items())


def test_a_merchant_keeps_its_control_variate_which_the_server_can_compute(world):
    """Without a global one, c_i+ - c_i = (x - y) / (K eta) and, in the second round, minus c."""
    name, site = world.names[0], world.site()
    request = world.request(name, arm="scaffold")
    total, c = {}, {key: torch.full_like(value, 0.01) for key, value in world.start.items()}
    for number, control in ((1, {}), (2, c)):
        down = world.down(number).having(ControlVariate(control)) if control else world.down(number)
        up = trained(site, request, down)[name]
        travelled = up.need(LocalSteps).steps * request.learning_rate
        changed = {key: -value / travelled for key, value in up.need(StudentUpdate).arrays.items()}
        changed = {key: value - control[key] if control else value for key, value in changed.items()}
        total = {key: total.get(key, 0.0) + value for key, value in changed.items()}
        kept = site.store.load("scaffold", 0, name, before=number + 1)
        assert kept.keys() == changed.keys()
        assert all(torch.equal(kept[key], value) for key, value in total.items())
    assert any(value.any() for value in total.values())


@pytest.fixture
def protected(world):
    """The site in an experiment whose federations promise example-level privacy."""
    changes = {"privacy.unit": "example", "privacy.noise_multiplier": 1.0}
    return open_site(world.experiment.with_changes(changes), 0, 1)


@pytest.mark.parametrize("arm", ["fd", "fedproto"])
def test_a_protected_site_trains_no_method_that_sends_means_by_class_whatever_the_server_asks(world, protected, arm):
    with pytest.raises(ConfigError, match=rf"privacy\.unit = 'example' does not cover all payloads of method {arm}"):
        trained(protected, world.request(world.names[0], arm=arm), Downlink(1), {"two-tower": world.start})


@pytest.mark.parametrize(
    "private", [lambda one: one.class_means().probabilities, lambda one: one.prototypes().means], ids=["means", "proto"]
)
def test_a_protected_merchant_computes_no_means_by_class_for_another_part(world, protected, monkeypatch, private):
    monkeypatch.setattr(
        FedMD, "uplink", lambda self, one, down: Uplink(one.merchant, one.examples, (SoftLabels(private(one)),))
    )
    request = world.request(world.names[0], arm="fedmd")
    (answer,) = protected.train(request, world.consensus(1), {"two-tower": world.start})
    assert isinstance(answer, Refusal)
    assert "its training failed" in answer.reason


def test_a_protected_site_sends_expertise_in_its_own_payload_only(world, protected, monkeypatch):
    start = {"two-tower": world.start}
    monkeypatch.setattr(
        FedMD, "uplink", lambda self, one, down: Uplink(one.merchant, 1, (Votes((255 * one.expertise()).long()),))
    )
    (answer,) = protected.train(world.request(world.names[0], arm="fedmd"), world.consensus(1), start)
    assert isinstance(answer, Refusal)
    assert "its training failed" in answer.reason


@pytest.mark.parametrize(("known", "builds_on_the_first"), [(1, True), (0, False)])
def test_soft_labels_are_sent_whole_again_where_the_server_never_got_the_last_ones(world, known, builds_on_the_first):
    """With a tolerance of 1, no answer ever differs by more from the one before: only what the server lacks is sent."""
    (name, *_), site, codec = world.names, world.site(), Codec.of(TransportConfig(soft_label_cache=1.0))
    request, shape = world.request(name, arm="fedmd"), (len(world.data.proxy), len(world.data.task.classes))
    sent = []
    for number, has in ((1, 0), (2, known)):
        asked, down = replace(request, known=(has,)), world.consensus(number)
        uplink = trained(site, asked, down, {"two-tower": world.start})[name]
        sent.append((uplink.need(SoftLabels).probabilities, site.coded(uplink, codec, asked, down)))
    (first, _), (second, content) = sent
    assert not torch.equal(first, second)
    server = {name: first} if known else {}
    got = codec.decode_uplink(content, (SoftLabels,), {}, shape, server.get)
    assert torch.equal(got.need(SoftLabels).probabilities, first if builds_on_the_first else second)
