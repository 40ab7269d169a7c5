"""A site trains its merchants the same whoever else is there, keeps what is theirs, and says who failed."""

from dataclasses import replace

import pytest
import torch

from fed_distill.data.examples import MerchantData
from fed_distill.transport.requests import Refusal


@pytest.fixture
def same(distance):
    """A function: are two uplinks the same, but for the order of float summation? A cohort is computed together."""

    def compare(one, other):
        assert (one.merchant, one.examples) == (other.merchant, other.examples)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
        for part in ("rows", "counts"):
            mine, theirs = getattr(one.weights, part), getattr(other.weights, part)
            assert list(mine) == list(theirs)
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        return distance(one.weights.arrays, other.weights.arrays) < 1e-5

    return compare


def trained(site, request, down, starts=None):
    return {answer.merchant: answer for answer in site.train(request, down, starts or {})}


@pytest.mark.parametrize("parts", [2, 3])
def test_uplinks_do_not_depend_on_how_merchants_are_spread_over_sites(world, parts, same):
    alone = trained(world.site(), world.request(*world.names, test=True), world.down())
    spread = {}
    for part in range(parts):
        site = world.site(part, parts)
        spread |= trained(site, world.request(*site.merchants, test=True), world.down())
    assert sorted(spread) == world.names
    assert all(same(alone[name], spread[name]) for name in world.names)


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
    heads = [up.weights.arrays["head.0.weight"] for some in (first, second) for up in some.values()]
    assert not any(torch.equal(one, other) for place, one in enumerate(heads) for other in heads[:place])
    assert all(torch.equal(world.start[name], before[name]) for name in before)


def test_two_merchants_with_the_same_examples_draw_different_batches(world):
    site, (one, other) = world.site(), world.names[:2]
    site = replace(site, merchants={**site.merchants, other: replace(site.merchants[one], name=other)})
    answers = trained(site, world.request(one, other), world.down())
    assert answers[one].examples == answers[other].examples
    heads = [answer.weights.arrays["head.0.weight"] for answer in answers.values()]
    assert not torch.equal(*heads)


def test_examples_are_the_merchants_training_examples(world):
    for name, uplink in trained(world.site(), world.request(*world.names), world.down()).items():
        assert uplink.examples == len(world.data.merchants[name].train)


def test_a_merchant_that_fails_is_a_refusal_and_the_others_go_on(world):
    site = world.site()
    broken = site.merchants[world.names[1]]
    empty = MerchantData(broken.name, broken.train.take([]), broken.valid, broken.test)
    site = replace(site, merchants={**site.merchants, broken.name: empty})
    answers = {answer.merchant: answer for answer in site.train(world.request(*world.names), world.down(), {})}
    assert sorted(answers) == world.names
    assert answers.pop(broken.name) == Refusal(broken.name, f"{broken.name} has no private examples to train on")
    assert not any(isinstance(answer, Refusal) for answer in answers.values())


def test_a_loss_that_is_not_finite_is_a_refusal_that_names_merchant_and_remedy(world):
    request = replace(world.request(world.names[0]), learning_rate=1e30)
    (answer,) = world.site().train(request, world.down(), {})
    assert answer.merchant == world.names[0]
    assert answer.reason.startswith(f"{world.names[0]}: the loss of phase 1 is nan; lower training.learning_rate")


def count_right(student, weights, test):
    """One example at a time."""
    student.load_state_dict(weights)
    right = 0
    for text, pair, label in zip(test.texts, test.pairs, test.labels, strict=True):
        with torch.no_grad():
            right += int(student(student.encode([text], [pair])).logits.argmax()) == label
    return right, len(test)


def test_evaluation_counts_right_answers_and_leaves_out_merchants_without_a_test(world):
    site = world.site()
    some = site.merchants[world.names[0]]
    untested = MerchantData(some.name, some.train, some.valid, some.test.take([]))
    site = replace(site, merchants={**site.merchants, some.name: untested})
    counts = site.evaluate(world.start, world.names, world.request().blueprints["two-tower"])
    assert counts == {
        name: count_right(world.student, world.start, world.data.merchants[name].test) for name in world.names[1:]
    }


def test_own_test_counts_are_those_of_the_trained_student(world):
    name = world.names[0]
    uplink = trained(world.site(), world.request(name, test=True), world.down())[name]
    whole = {key: value.clone() for key, value in world.start.items()}
    for key, value in uplink.weights.arrays.items():
        if key in uplink.weights.rows:
            whole[key][uplink.weights.rows[key]] = value
        else:
            whole[key] = value
    right, count = count_right(world.student, whole, world.data.merchants[name].test)
    assert (uplink.metrics["test_right"], uplink.metrics["test_count"]) == (right, count)


def personal(world, site, name, number, starts):
    request = world.request(name, arm="fedmd")
    return trained(site, request, world.consensus(number), starts)[name].soft_labels


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
