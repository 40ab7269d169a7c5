"""What a protected merchant releases is calibrated, paid for before it is made, and no more than was promised."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fed_distill.config.experiment import personal_arm
from fed_distill.errors import TrainingError
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.opening import open_site
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.privacy.accounting import Spend, epsilon
from fed_distill.privacy.ledger import Ledger
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.transport.requests import Refusal

PRIVATE = {"privacy.unit": "example", "privacy.epsilon": 6.0, "privacy.batch_size": 8, "federation.rounds": 9}


@pytest.fixture
def protected(world, tmp_path):
    """A function that opens a site of the tiny marketplace under DP, its state in a folder of this test's."""

    def open_protected(folder="runs", **changes):
        settings = {"runtime.folder": str(tmp_path / folder), **PRIVATE}
        experiment = world.experiment.with_changes({**settings, **changes})
        return open_site(experiment, 0, 1)

    return open_protected


def answers(site, request, down):
    return {answer.merchant: answer for answer in site.train(request, down, {})}


def charges(site, merchant, arm="fedavg-kd"):
    return [entry.charge for entry in site.protection.ledger(arm, 0, merchant).entries()]


def test_all_planned_rounds_together_cost_at_most_the_target_and_nearly_that(world, protected):
    site = protected()
    for number in range(1, 4):
        found = answers(site, world.request(*world.names, rounds=3), world.down(number))
    for merchant in world.names:
        paid = charges(site, merchant)
        assert [(one.what, one.round) for one in paid] == [("size", 0), *(("training", number) for number in (1, 2, 3))]
        spent = epsilon([spend for one in paid for spend in one.spends], paid[0].delta)
        assert 0.98 * 6.0 < spent <= 6.0
        told = found[merchant].examples
        assert paid[0].delta == paid[1].delta == min(told**-1.1, 1e-5)
        assert paid[1].spends[0].sampling_rate == min(1.0, 8 / told)
        assert paid[1].spends[0].steps == -(-told // 8)


def test_a_round_that_was_not_planned_is_refused_and_costs_nothing(world, protected):
    site = protected()
    for number in (1, 2):
        assert not any(
            isinstance(one, Refusal)
            for one in answers(site, world.request(*world.names, rounds=2), world.down(number)).values()
        )
    before = {merchant: charges(site, merchant) for merchant in world.names}
    refused = answers(site, world.request(*world.names, rounds=2), world.down(3))
    assert all(isinstance(one, Refusal) and one.cause == "budget" for one in refused.values())
    assert {merchant: charges(site, merchant) for merchant in world.names} == before


def same(one, other):
    theirs = other.need(StudentUpdate).arrays
    return all(torch.equal(one.need(StudentUpdate).arrays[name], value) for name, value in theirs.items())


def test_an_equal_request_is_answered_equally_and_charged_once(world, protected):
    first, merchant = protected(), world.names[0]
    answer = answers(first, world.request(merchant), world.down())[merchant]
    paid = charges(first, merchant)
    again = answers(protected(), world.request(merchant), world.down())[merchant]
    assert charges(protected(), merchant) == paid
    assert again.examples == answer.examples
    assert same(again, answer)


@pytest.mark.parametrize("change", ["weights", "rate", "optimizer", "data"])
def test_whatever_changes_the_answer_is_charged_anew(world, protected, change):
    merchant = world.names[0]
    request, down = world.request(merchant, rounds=9), world.down()
    answers(protected(), request, down)
    site = protected(**({"training.merchants.optimizer": "sgd"} if change == "optimizer" else {}))
    if change == "weights":
        down = down.having(StudentWeights({name: value + 1e-3 for name, value in down.weights.items()}))
    if change == "rate":
        request = replace(request, learning_rate=0.02)
    if change == "data":
        own = site.holdings.merchants[merchant]
        site = world.having(site, {merchant: replace(own, train=own.train.take(range(1, len(own.train))))})
    answers(site, request, down)
    assert sum(one.what == "training" for one in charges(site, merchant)) == 2


def changes_of(uplink):
    """How far the head moved."""
    moved = uplink.need(StudentUpdate).arrays
    return torch.cat([value.flatten() for name, value in moved.items() if name.startswith("head.")])


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


NOISY = {
    "training.merchants.optimizer": "sgd",
    "privacy.epsilon": None,
    "privacy.noise_multiplier": 50.0,
    "privacy.batch_size": 1000,
    "federation.options": {"local_epochs": 1, "proxy_steps": 0},
}


def test_another_request_for_the_same_round_gets_other_noise(world, protected):
    """Else the difference of the answers would have none, whatever the ledger says."""
    merchant, site = world.names[0], protected(**NOISY)
    first = answers(site, world.request(merchant), world.down())[merchant]
    near = {name: value + 1e-6 for name, value in world.start.items()}
    second = answers(site, world.request(merchant), world.down().having(StudentWeights(near)))[merchant]
    assert abs(correlation(changes_of(first), changes_of(second))) < 0.3
    again = answers(protected(**NOISY), world.request(merchant), world.down())[merchant]
    assert same(again, first)


def test_two_runs_that_share_a_ledger_share_no_noise(world, protected, tmp_path):
    merchant, found = world.names[0], []
    for folder, noise in (("one", 50.0), ("other", 100.0)):
        settings = {**NOISY, "privacy.noise_multiplier": noise, "privacy.ledger": str(tmp_path / "l"), "name": folder}
        found.append(answers(protected(folder, **settings), world.request(merchant), world.down())[merchant])
    assert abs(correlation(*(changes_of(one) for one in found))) < 0.3


@pytest.mark.parametrize("lie", ["nan", "inf", "huge", "rate", "population", "rounds", "round"])
def test_what_no_honest_server_asks_is_refused_before_any_charge(world, protected, lie):
    site, request, down = protected(), world.request(world.names[0]), world.down()
    if lie in ("nan", "inf", "huge"):
        table = world.start["bag.table"].clone()
        table[5] = {"nan": float("nan"), "inf": float("inf"), "huge": 1e30}[lie]
        down = down.having(StudentWeights({**world.start, "bag.table": table}))
    if lie == "rate":
        request = replace(request, learning_rate=float("inf"))
    if lie == "population":
        request = replace(request, population=0)
    if lie == "rounds":
        request = replace(request, rounds=(0,))
    if lie == "round":
        down = replace(down, round=-1)
    with pytest.raises(TrainingError):
        answers(site, request, down)
    assert not charges(site, world.names[0])


def test_what_stays_at_a_merchant_tells_neither_its_size_nor_its_loss(world, protected):
    site = protected(**{"adaptation.personal": True, "privacy.report_scores": False})
    arm = personal_arm("fedavg-kd")
    starts = {"two-tower": world.start}
    request = world.request(*world.names, arm=arm, test=True)
    for answer in site.train(request, world.consensus(1), starts):
        assert (answer.examples, answer.metrics) == (1, {})


def test_the_charge_is_on_disk_before_the_first_private_step(world, protected, monkeypatch):
    site, seen = protected(**{"runtime.trainer": "sequential"}), []

    def fit(trainer, learners, *rest):
        for learner in learners:
            seen.append((learner.name, [one.what for one in charges(site, learner.name)], learner.privacy))
        return iter(())

    monkeypatch.setattr(SequentialTrainer, "fit", fit)
    answers(site, world.request(*world.names), world.down())
    assert [name for name, *_ in seen] == world.names
    for name, paid, privacy in seen:
        assert paid == ["size", "training"]
        assert charges(site, name)[1].spends[0].noise_multiplier == privacy.noise_multiplier


CENTRAL = {
    "merchant": {
        "privacy": {"unit": "merchant", "epsilon": 6.0},
        "federation.options": {"local_epochs": 1, "proxy_steps": 0},
    },
    "vote": {"privacy": {"unit": "vote", "epsilon": 6.0}, "federation.method": "pate", "federation.options": {}},
}


@pytest.mark.parametrize("unit", CENTRAL)
def test_all_rounds_are_charged_before_a_merchant_trains_that_the_server_protects(world, protected, monkeypatch, unit):
    site, seen = protected(**{"runtime.trainer": "sequential", **CENTRAL[unit]}), []
    arm = site.experiment.federation.title

    def fit(trainer, learners, *rest):
        seen.extend((one.name, [paid.what for paid in charges(site, one.name, arm)]) for one in learners)
        return iter(())

    monkeypatch.setattr(SequentialTrainer, "fit", fit)
    request = replace(world.request(*world.names, arm=arm), federation="one")
    assert not answers(site, request, world.down())
    assert seen == [(name, ["all rounds"]) for name in world.names]


@pytest.mark.parametrize("unit", CENTRAL)
def test_a_federation_is_paid_once_by_its_name_and_without_a_name_not_at_all(world, protected, unit):
    site = protected(**{**CENTRAL[unit], "privacy": {"unit": unit, "noise_multiplier": 5.0}})
    merchant = world.names[0]
    arm = site.experiment.federation.title
    for name, number, paid in (("one", 1, 1), ("one", 2, 1), ("another", 1, 2), ("one", 1, 2), ("", 1, 2)):
        request = replace(world.request(merchant, arm=arm, rounds=2), federation=name)
        (answer,) = site.train(request, world.down(number), {})
        assert isinstance(answer, Refusal) == (name == "")
        assert len(charges(site, merchant, arm)) == paid


def test_examples_and_groups_of_equal_number_have_sizes_of_their_own(world, protected):
    """Else a site that is asked for both would tell, almost without noise, that no group has two examples."""
    merchant, told = world.names[0], {}
    own = world.data.merchants[merchant]
    alone = replace(own, train=replace(own.train, groups=np.arange(len(own.train))))
    for unit in ("example", "group"):
        site = world.having(protected(**{"privacy.unit": unit}), {merchant: alone})
        told[unit] = answers(site, world.request(merchant), world.down())[merchant].examples
    assert told["example"] != told["group"]


def test_a_limit_holds_at_the_sites_own_delta_whatever_the_server_asks_for(world, protected, tmp_path):
    """A large delta makes any noise look harmless, and a noised size of 1 would allow it."""
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nmax_epsilon = 8.0\nmax_delta = 0.9\n")
    asked = {"privacy.limits": str(limits), "privacy.epsilon": None, "privacy.noise_multiplier": 0.4}
    asked |= {"privacy.delta": 0.4, "privacy.size_noise": 1e4, "privacy.batch_size": 1000}
    site, merchant = protected(**asked), world.names[0]
    refused = answers(site, world.request(merchant), world.down())[merchant]
    assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert [one.what for one in charges(site, merchant)] == ["size"]


def test_a_size_that_decides_a_refusal_has_been_paid(world, protected):
    site, merchant = protected(**{"privacy.delta": 0.04}), world.names[0]
    (answer,) = answers(site, world.request(merchant), world.down()).values()
    assert isinstance(answer, Refusal)  # of more than 25 examples a delta of 0.04 promises nothing
    assert [one.what for one in charges(site, merchant)] == ["size"]


def test_without_noise_nothing_leaves_a_site_with_rules(world, protected, tmp_path):
    (tmp_path / "limits.toml").write_text("")
    bare = {"privacy.limits": str(tmp_path / "limits.toml"), "privacy.epsilon": None}
    site = protected(**bare, **{"privacy.noise_multiplier": 1e-12})
    assert all(isinstance(one, Refusal) for one in answers(site, world.request(*world.names), world.down()).values())


def test_what_was_kept_without_this_noise_does_not_come_in_from_another_run(world, protected):
    """The attack: the same name and arm, first with a student that is trained without noise and kept, then with noise
    and a rate of 0, so that what is sent is that student's."""
    merchant, proxy = world.names[0], {"compare": [], "federation.method": "fedmd", "federation.options": {}}
    start = {"two-tower": world.start}
    keeping = protected(**{**proxy, "privacy": {"unit": "none"}})
    kept = next(keeping.train(world.request(merchant, arm="fedmd"), world.consensus(1), start))
    later = protected(**{**proxy, "privacy.epsilon": None, "privacy.noise_multiplier": 1e4})
    request = replace(world.request(merchant, arm="fedmd", rounds=2), learning_rate=0.0)
    (answer,) = later.train(request, world.consensus(2), start)
    assert not torch.equal(answer.need(SoftLabels).probabilities, kept.need(SoftLabels).probabilities)


def test_a_secret_is_in_no_representation(world, protected):
    site = replace(protected().protection, secret="5ec2e7" * 10)
    assert "5ec2e7" not in repr(site)


class Stop(BaseException):
    """Ends a process as a kill would: nothing catches it."""


@pytest.mark.parametrize("writes", range(8))
def test_a_kill_at_any_write_never_leaves_a_release_unpaid(world, protected, monkeypatch, writes):
    """Of each attempt the merchant may have released what it had paid for; all attempts end with the same ledger."""
    import fed_distill.privacy.ledger as module

    merchant, rounds = world.names[0], 3
    whole, left, released = module.write_atomic, [writes], set()

    def killed(path, content, **how):
        if left[0] == 0:
            left[0] = -1
            raise Stop
        left[0] -= 1
        whole(path, content, **how)
        if left[0] == 0:  # killed between the charge and the step
            left[0] = -1
            raise Stop

    monkeypatch.setattr(module, "write_atomic", killed)
    for _ in range(3):
        try:
            site = protected()
            for number in range(1, rounds + 1):
                answers(site, world.request(merchant, rounds=rounds), world.down(number))
                released.add(number)
                assert released <= {one.round for one in charges(site, merchant) if one.what == "training"}
        except Stop:
            continue
    paid = charges(protected(), merchant)
    assert [(one.what, one.round) for one in paid] == [("size", 0), ("training", 1), ("training", 2), ("training", 3)]
    assert epsilon([spend for one in paid for spend in one.spends], paid[0].delta) <= 6.0


def test_limits_win_over_what_is_asked_and_the_others_go_on(world, protected, tmp_path):
    poor, careful, closed, *rest = world.names
    limits = tmp_path / "limits.toml"
    limits.write_text(
        "[default]\nmax_epsilon = 20.0\n"
        f'[merchants."{poor}"]\nmax_epsilon = 6.0\n[merchants."{careful}"]\nmin_noise = 50.0\n'
        f'[merchants."{closed}"]\nunits = ["merchant"]\n'
    )
    site = protected(**{"privacy.limits": str(limits)})
    refused = []
    for number in (1, 2, 3):
        found = answers(site, world.request(*world.names, rounds=3), world.down(number))
        refused.append(sorted(name for name, one in found.items() if isinstance(one, Refusal)))
        assert set(rest) <= {name for name, one in found.items() if not isinstance(one, Refusal)}
    assert refused == [sorted([poor, careful, closed])] * 3  # three rounds cost 7.1: the poor train in none
    assert not any(charges(site, name) for name in (poor, careful, closed))


def test_two_runs_against_one_ledger_add_up(world, protected, tmp_path):
    merchant, shared = world.names[0], str(tmp_path / "ledgers")
    for folder in ("one", "other"):
        changes = {"privacy.ledger": shared, "name": folder}
        answers(protected(folder, **changes), world.request(merchant), world.down())
    ledger = Ledger(next(Path(shared).glob("*.jsonl")), merchant)
    paid = [entry.charge for entry in ledger.entries()]
    assert [one.run for one in paid] == ["one", "one", "other", "other"]
    training = [one.spends[0] for one in paid if one.what == "training"]
    both = [*(Spend(20.0, 1.0, 1),) * 2, *training]
    assert ledger.epsilon("example") == pytest.approx(epsilon(both, paid[0].delta))
    assert ledger.epsilon("example") > 6.0


def test_nothing_leaves_beside_what_is_protected(world, protected):
    site = protected(**{"privacy.report_scores": False})
    found = answers(site, world.request(*world.names, test=True), world.down())
    proxy = site.holdings.encoded_proxy(world.student, world.request())
    public = torch.unique(torch.cat([values.flatten() for values in proxy.values()])).long()
    public = torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), public]))
    for merchant, uplink in found.items():
        assert uplink.metrics == {}
        assert all(torch.equal(rows, public) for rows in uplink.need(StudentUpdate).rows.values())
        examples = len(world.data.merchants[merchant].train)
        assert uplink.examples != examples or examples == 1
        assert abs(uplink.examples - examples) < 5 * 20
    assert site.evaluate(world.request(*world.names), world.start) == {}
    counts = [uplink.need(StudentUpdate).counts["bag.table"] for uplink in found.values()]
    assert all(torch.equal(one, counts[0]) for one in counts)


def test_a_refusal_tells_the_server_nothing_of_the_data_and_the_log_everything(world, protected, caplog):
    site = protected(**{"privacy.epsilon": 0.01})
    refused = answers(site, world.request(world.names[0]), world.down())[world.names[0]]
    assert refused.reason == (
        f"merchant {world.names[0]}: its privacy budget or its limits do not allow this; see the site's log"
    )
    assert "epsilon" in caplog.text


def test_controls_are_not_protected_and_not_charged(world, protected):
    site = protected(controls=["local"])
    found = answers(site, world.request(*world.names, arm="local"), world.down())
    assert all("loss" in uplink.metrics for uplink in found.values())
    assert site.protection.spent("local", 0, world.names).merchants == 0
    assert isinstance(site.protection, Protection)


def test_what_was_spent_is_the_worst_of_the_merchants(world, protected):
    site = protected()
    answers(site, world.request(*world.names), world.down())
    spent = site.protection.spent("fedavg-kd", 0, world.names)
    each = [site.protection.ledger("fedavg-kd", 0, merchant).epsilon("example") for merchant in world.names]
    assert spent.merchants == len(world.names)
    assert spent.epsilon == pytest.approx(max(each))
    noises = [charges(site, merchant)[1].spends[0].noise_multiplier for merchant in world.names]
    assert (spent.noise_least, spent.noise_most) == (min(noises), max(noises))
