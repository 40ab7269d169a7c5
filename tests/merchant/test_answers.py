"""A site whose noise nobody else can draw gives one answer to one request, and never a second one in other words."""

import os
import shutil
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fed_distill.merchant.answers import Answers
from fed_distill.merchant.opening import open_site
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import epsilon
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.transport.requests import Refusal

PRIVATE = {
    "privacy.unit": "example",
    "privacy.noise_multiplier": 1.0,
    "privacy.batch_size": 8,
    "runtime.trainer": "cohort",
    "federation.rounds": 4,
}
SECRET = "s" * 64


@pytest.fixture
def own_site(world, tmp_path):
    """A function that opens a site under DP, its noise depending on a secret unless that is empty."""

    def opened(secret=SECRET, **changes):
        places = {"runtime.folder": str(tmp_path / "runs"), "privacy.ledger": str(tmp_path / "ledgers")}
        experiment = world.experiment.with_changes({**places, **PRIVATE, **changes})
        return open_site(experiment, 0, 1, secret=secret)

    return opened


@pytest.fixture
def ask(world):
    """A function that asks a site, at a rate that makes rounding large: its answers by merchant."""

    def asked(site, *merchants, round=1, rounds=1, rate=1.0):
        request = replace(world.request(*merchants, rounds=rounds), learning_rate=rate)
        return {answer.merchant: answer for answer in site.train(request, world.down(round), {})}

    return asked


@pytest.fixture
def trained(monkeypatch):
    """Who was trained, in order."""
    names, fit = [], CohortTrainer.fit

    def watched(self, learners, *rest):
        names.extend(one.name for one in learners)
        return fit(self, learners, *rest)

    monkeypatch.setattr(CohortTrainer, "fit", watched)
    return names


def same(one, other):
    assert one.examples == other.examples and one.metrics == other.metrics
    mine, theirs = (up.need(StudentUpdate).arrays for up in (one, other))
    assert mine.keys() == theirs.keys()
    return all(torch.equal(theirs[name], value) for name, value in mine.items())


def charged(site, merchant):
    """What the merchant's ledger says of its training: rounds, and digests."""
    entries = [entry.charge for entry in site.protection.ledger("fedavg-kd", 0, merchant).entries()]
    return [(one.round, one.request) for one in entries if one.what == "training"]


def test_an_equal_request_in_other_company_has_the_same_answer_to_the_last_bit(world, own_site, ask):
    merchant = world.names[0]
    together = ask(own_site(), *world.names)
    alone = ask(own_site(), merchant)
    assert same(together[merchant], alone[merchant])
    assert len(charged(own_site(), merchant)) == 1
    trained_again = ask(replace(own_site(), answers=None), merchant)
    assert not same(together[merchant], trained_again[merchant])  # the same noise, summed in another order


def test_an_answer_is_kept_before_it_leaves(world, own_site, trained):
    """Whoever takes the first answer of several and then kills the site has one that the site has, too."""
    request = replace(world.request(*world.names), learning_rate=1.0)
    stream = own_site().train(request, world.down(), {})
    taken = next(stream)
    stream.close()
    trained.clear()
    alone = replace(request.part([world.names.index(taken.merchant)]))
    (again,) = own_site().train(alone, world.down(), {})
    assert same(taken, again) and not trained


def test_the_last_two_rounds_can_be_asked_for_again(world, own_site, ask, trained):
    merchant = world.names[0]
    first = {round: ask(own_site(), merchant, round=round, rounds=3)[merchant] for round in (1, 2, 3)}
    trained.clear()
    for round in (3, 2):
        assert same(first[round], ask(own_site(), merchant, round=round, rounds=3)[merchant])
    assert not trained


def test_deleting_a_runs_state_deletes_no_answer(world, own_site, ask, tmp_path):
    merchant = world.names[0]
    first = ask(own_site(), *world.names)[merchant]
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert same(first, ask(own_site(), merchant)[merchant])


def test_a_torn_write_leaves_no_answer_and_nothing_behind(world, own_site, ask, monkeypatch, tmp_path):
    merchant, replaced = world.names[0], os.replace

    def killed(source, target):
        if str(target).endswith(".uplink"):
            raise KeyboardInterrupt
        replaced(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(Path, "unlink", lambda *given, **named: None)  # a killed process cleans up nothing
        with pytest.raises(KeyboardInterrupt):
            ask(own_site(), merchant)
    assert not list(tmp_path.rglob("*.uplink")) and list(tmp_path.rglob(".*.uplink.*.tmp"))
    ask(own_site(), merchant)
    assert len(charged(own_site(), merchant)) == 1
    (kept,) = tmp_path.rglob("*.uplink")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not list(tmp_path.rglob(".*.uplink.*.tmp"))


def test_two_runs_that_share_a_ledger_have_answers_of_their_own(world, own_site, ask, trained):
    """Of equal settings they have other noise: a second training may sum in another order."""
    merchant = world.names[0]
    first = ask(own_site(), merchant)[merchant]
    other = ask(own_site(name="other"), merchant)[merchant]
    assert not same(first, other) and len(charged(own_site(), merchant)) == 2
    assert trained == [merchant, merchant]
    assert same(first, ask(own_site(), merchant)[merchant])
    assert same(other, ask(own_site(name="other"), merchant)[merchant])


def test_the_noise_of_a_size_depends_on_nothing_but_the_size(world, own_site, ask):
    """Whoever asks twice gets the same number, and no average of several."""
    merchant = world.names[0]
    told = {
        ask(own_site(**changes), merchant)[merchant].examples
        for changes in ({}, {"name": "other"}, {"privacy.max_grad_norm": 0.5})
    }
    assert len(told) == 1
    own = world.data.merchants[merchant]
    fewer = replace(own, train=own.train.take(range(1, len(own.train))))
    assert ask(world.having(own_site(), {merchant: fewer}), merchant)[merchant].examples not in told


def test_without_a_secret_nothing_is_kept(world, own_site, ask, tmp_path):
    ask(own_site(""), *world.names)
    assert not list(tmp_path.rglob("*.uplink"))


def test_an_answer_that_is_kept_is_not_trained_again(world, own_site, ask, trained):
    first = ask(own_site(), *world.names)
    assert trained == world.names
    trained.clear()
    again = ask(own_site(), *world.names)
    assert not trained
    assert all(same(first[name], again[name]) for name in world.names)
    ask(own_site(), *world.names, round=2)
    assert trained == world.names


def test_what_may_have_left_and_is_kept_no_longer_is_another_release_with_its_own_noise(world, own_site, ask):
    merchant = world.names[0]
    first = ask(own_site(), merchant, rounds=4)[merchant]
    for round in (2, 3):
        ask(own_site(), merchant, round=round, rounds=4)
    assert [round for round, _ in charged(own_site(), merchant)] == [1, 2, 3]
    again = ask(own_site(), merchant, rounds=4)[merchant]
    paid = charged(own_site(), merchant)
    assert [round for round, _ in paid] == [1, 2, 3, 1]
    assert len(set(paid)) == 4
    assert not same(first, again)
    assert same(again, ask(own_site(), *world.names, rounds=4)[merchant])  # of which the last is kept as well
    ask(own_site(), merchant, round=4, rounds=4)
    third = ask(own_site(), merchant, rounds=4)[merchant]
    assert [round for round, _ in charged(own_site(), merchant)] == [1, 2, 3, 1, 4, 1]
    assert not same(again, third)


def test_asking_for_old_rounds_ends_with_the_budget(world, own_site, ask):
    target = {"privacy.noise_multiplier": None, "privacy.epsilon": 6.0}
    merchant, site = world.names[0], own_site(**target)
    for round in (1, 2, 3):
        ask(site, merchant, round=round, rounds=3)
    refused = ask(site, merchant, round=1, rounds=3)[merchant]
    assert isinstance(refused, Refusal) and refused.cause == "budget"
    entries = [entry.charge for entry in site.protection.ledger("fedavg-kd", 0, merchant).entries()]
    assert epsilon([spend for one in entries for spend in one.spends], entries[0].delta) <= 6.0


def test_who_is_killed_before_the_answer_leaves_trains_it_again_and_pays_once(world, own_site, ask, monkeypatch):
    merchant, would_have_left = world.names[0], []

    def killed(self, asked, answer):
        would_have_left.append(answer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Answers, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            ask(own_site(), merchant)
    again = ask(own_site(), merchant)[merchant]
    assert same(would_have_left[0], again)
    assert len(charged(own_site(), merchant)) == 1


def test_an_answer_that_cannot_be_read_is_a_refusal_and_costs_nothing(world, own_site, ask, tmp_path, caplog):
    merchant = world.names[0]
    ask(own_site(), merchant)
    (kept,) = tmp_path.rglob("*.uplink")
    kept.write_bytes(kept.read_bytes()[:100])
    refused = ask(own_site(), merchant)[merchant]
    assert isinstance(refused, Refusal) and refused.cause == "fault"
    assert str(kept) in caplog.text and str(kept) not in refused.reason
    assert len(charged(own_site(), merchant)) == 1


def test_equal_requests_at_once_are_answered_one_after_another(world, own_site, ask):
    merchant, found = world.names[0], {}

    def one(number, *merchants):
        found[number] = ask(own_site(), *merchants)[merchant]

    threads = [threading.Thread(target=one, args=(0, merchant)), threading.Thread(target=one, args=(1, *world.names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(found[0], found[1])
    assert len(charged(own_site(), merchant)) == 1


def test_a_kept_answer_whose_bits_have_changed_is_not_given(world, own_site, ask, tmp_path):
    """A flipped bit would be another answer with the same noise."""
    site, merchant = own_site(), world.names[0]
    ask(site, merchant)
    (path,) = (tmp_path / "ledgers").rglob("*.uplink")
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert isinstance(ask(own_site(), merchant)[merchant], Refusal)
    path.write_bytes(whole)
    assert not isinstance(ask(own_site(), merchant)[merchant], Refusal)
