"""Rounds of other lengths have one noise multiplier, cost the target together, and no round is paid for in vain."""

from dataclasses import dataclass, replace

import pytest

from fed_distill.errors import TrainingError
from fed_distill.merchant.allowance import run_exposure
from fed_distill.merchant.limits import Limit, Limits
from fed_distill.merchant.opening import open_site
from fed_distill.methods.fedmd import FedMD
from fed_distill.privacy.accounting import Spend, epsilon, filtered
from fed_distill.privacy.ledger import exposure
from fed_distill.training.plan import Plan
from fed_distill.transport.requests import Refusal

PRIVATE = {"privacy": {"unit": "example", "epsilon": 8.0, "batch_size": 8}, "compare": []}
FIXED = {"privacy.epsilon": None, "privacy.noise_multiplier": 2.0}
PRETRAINED = {"federation.method": "fedmd", "federation.options": {"pretrain_epochs": 20.0}}
EXPERTS = {"federation.method": "expert-fd", "federation.options": {}}
LONGER = f"{__name__}:Longer"


@dataclass(frozen=True)
class Longer(FedMD):
    """A method whose merchants train for as long as the server says."""

    def plan(self, down):
        (private,) = (phase for phase in super().plan(down).phases if phase.data == "private")
        return Plan((replace(private, epochs=down.scalars.get("epochs", private.epochs)),))


@pytest.fixture
def site_of(world, tmp_path):
    """A function (max_epsilon, changes) -> a site that keeps its ledgers."""

    def opened(max_epsilon=None, rounds=5, folder="ledgers", **changes):
        shared = {"privacy.ledger": str(tmp_path / folder), "federation.rounds": rounds}
        experiment = world.experiment.with_changes({**PRIVATE, **shared, **changes})
        return open_site(experiment, 0, 1, world.data, Limits(default=Limit(max_epsilon=max_epsilon)), "5ec2e7" * 8)

    return opened


@pytest.fixture
def ask(world):
    """A function that returns the first merchant's answer in a round."""

    def asked(site, number=1, **scalars):
        federation = site.experiment.federation
        request = world.request(world.names[0], arm=federation.title, rounds=federation.rounds)
        down = replace(world.consensus(number), scalars=scalars)
        (answer,) = site.train(request, down, {"two-tower": world.start})
        return answer

    return asked


@pytest.fixture
def charges(world):
    return lambda site: site.protection.charges(world.names[0])


@pytest.mark.parametrize("method", [PRETRAINED, EXPERTS], ids=["fedmd", "expert-fd"])
@pytest.mark.parametrize("rounds", [2, 5])
def test_all_rounds_have_one_noise_and_cost_the_target(site_of, ask, charges, method, rounds):
    site = site_of(rounds=rounds, **method)
    assert not any(isinstance(ask(site, number), Refusal) for number in range(1, rounds + 1))
    training = [one.spends[0] for one in charges(site) if one.what == "training"]
    first = training[0]
    assert training[1:] == [replace(first, steps=first.steps // 20)] * (rounds - 1)
    paid = [spend for one in charges(site) for spend in one.spends]
    assert 0.995 * 8.0 < epsilon(paid, charges(site)[0].delta) <= 8.0


def cost_of(site, members, steps):
    """By hand: the epsilon of an example over the release of a size and a number of steps."""
    size = Spend(site.experiment.privacy.size_noise, 1.0, 1)
    return filtered([size, Spend(2.0, min(1.0, 8 / members), steps)], 1e-5)


@pytest.fixture
def priced(site_of, ask, world):
    """True cost of fedmd with pretraining for the first merchant, and that of 5 rounds as long as its first."""
    site = site_of(folder="others", **PRETRAINED, **FIXED)
    members, batches = ask(site).examples, -(-ask(site).examples // 8)
    return cost_of(site, members, 24 * batches), cost_of(site, members, 100 * batches)


def test_a_limit_between_the_cost_and_five_first_rounds_covers_all_rounds(site_of, ask, charges, priced):
    true, five_times_the_first = priced
    assert 1.3 * true < five_times_the_first
    site = site_of(1.001 * true, **PRETRAINED, **FIXED)
    assert not any(isinstance(ask(site, number), Refusal) for number in range(1, 6))
    assert exposure(charges(site)) == pytest.approx(true)


def test_a_limit_below_the_cost_refuses_before_the_first_training_is_charged(site_of, ask, charges, priced):
    """With fixed noise the size decides: a federation of very many members would cost less."""
    site = site_of(0.999 * priced[0], **PRETRAINED, **FIXED)
    refused = ask(site)
    assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert [one.what for one in charges(site)] == ["size"]


def test_a_limit_below_a_target_refuses_before_any_charge(site_of, ask, charges):
    site = site_of(7.9, **PRETRAINED)
    refused = ask(site)
    assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert not charges(site)


def test_the_suggested_limit_covers_a_long_first_round_and_not_five(site_of):
    site = site_of(**PRETRAINED, **FIXED)
    costliest = [cost_of(site, size, 24 * -(-size // 8)) for size in (32, 128, 512, 2048, 8192)]
    assert run_exposure(site.experiment, 1, 1) == pytest.approx(max(costliest))


def test_steps_are_steps_in_the_suggested_limit(site_of):
    """Of scaffold with steps, whose epochs have no effect."""
    sgd = {"privacy.training": {"optimizer": "sgd", "momentum": 0.0}}
    scaffold = {"federation.method": "scaffold", "federation.options": {"local_steps": 400}}
    site = site_of(**scaffold, **sgd, **FIXED)
    costliest = [cost_of(site, size, 5 * 400) for size in (32, 128, 512, 2048, 8192)]
    assert run_exposure(site.experiment, 1, 1) == pytest.approx(max(costliest))


@pytest.mark.parametrize("epochs", [0.5, 2.0, 50.0])
def test_a_server_that_makes_a_later_round_longer_is_refused_without_a_charge(site_of, ask, charges, epochs):
    site = site_of(**{"federation.method": LONGER, "federation.options": {}}, **FIXED)
    assert not isinstance(ask(site, 1), Refusal)
    before = charges(site)
    with pytest.raises(TrainingError, match="plans other training on private examples in round 2"):
        ask(site, 2, epochs=epochs)
    assert charges(site) == before
    assert not isinstance(ask(site, 2, epochs=1.0), Refusal)


def test_a_server_that_repeats_the_long_first_round_is_refused_without_a_charge(site_of, ask, charges):
    site = site_of(**PRETRAINED)
    assert not any(isinstance(ask(site, number), Refusal) for number in (1, 2))
    before = charges(site)
    refused = ask(site, 1, other=1.0)
    assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert charges(site) == before


@pytest.mark.parametrize(("number", "rounds"), [(6, 5), (1, 6)])
def test_rounds_that_the_experiment_does_not_have_are_refused_without_a_charge(world, site_of, charges, number, rounds):
    site = site_of(**PRETRAINED)
    request = world.request(world.names[0], arm="fedmd", rounds=rounds)
    (refused,) = site.train(request, world.consensus(number), {"two-tower": world.start})
    assert isinstance(refused, Refusal)
    assert not charges(site)
