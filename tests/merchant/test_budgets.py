"""Before the first round a site's people are told whether their budgets cover the run; nobody pays for half a one."""

import logging

import pytest

from fed_distill.errors import BudgetExceeded
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.merchant.allowance import run_exposure
from fed_distill.merchant.budgets import tell_budgets
from fed_distill.merchant.limits import Limit, Limits
from fed_distill.merchant.opening import open_site
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import Spend, filtered
from fed_distill.privacy.ledger import exposure
from fed_distill.training.plan import Duration
from fed_distill.training.private_training import PrivateTraining
from fed_distill.transport.requests import Refusal

PRIVATE = {"privacy": {"unit": "example", "epsilon": 8.0, "batch_size": 16}, "compare": [], "federation.rounds": 3}


@pytest.fixture
def site_with(world, tmp_path):
    """A function (max_epsilon, changes) -> a site that keeps its ledgers over runs."""

    def make(max_epsilon, changes=None):
        shared = {"privacy.ledger": str(tmp_path / "ledgers")}
        experiment = world.experiment.with_changes({**PRIVATE, **shared, **(changes or {})})
        return open_site(experiment, 0, 1, world.data, Limits(default=Limit(max_epsilon=max_epsilon)))

    return make


def told(site, merchant, caplog):
    with caplog.at_level(logging.INFO, "fed_distill.merchant.budgets"):
        caplog.clear()
        tell_budgets(site.protection, [merchant])
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_who_cannot_pay_for_all_rounds_pays_for_none(world, site_with):
    """A limit of 4 in a run of epsilon 8 used to pay for a size and then to refuse every round."""
    site, merchant = site_with(4.0), world.names[0]
    for number in (1, 2, 3):
        (refused,) = site.train(world.request(merchant, rounds=3), world.down(number), {})
        assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert not site.protection.charges(merchant)


def test_who_can_pay_for_all_rounds_trains_in_all(world, site_with):
    site, merchant = site_with(20.0), world.names[0]
    for number in (1, 2, 3):
        (uplink,) = site.train(world.request(merchant, rounds=3), world.down(number), {})
        assert not isinstance(uplink, Refusal)
    spent = exposure(site.protection.charges(merchant))
    assert 8.0 <= spent <= 20.0
    assert spent <= run_exposure(site.experiment, 1, 1)


def test_a_second_run_that_is_not_covered_costs_nothing(world, site_with):
    merchant = world.names[0]
    first = site_with(12.0)
    for number in (1, 2, 3):
        (uplink,) = first.train(world.request(merchant, rounds=3), world.down(number), {})
        assert not isinstance(uplink, Refusal)
    paid = first.protection.charges(merchant)
    second = site_with(12.0, {"name": "second"})
    (refused,) = second.train(world.request(merchant, rounds=3), world.down(1), {})
    assert isinstance(refused, Refusal)
    assert second.protection.charges(merchant) == paid


@pytest.mark.parametrize(
    "price", [{"epsilon": 8.0}, {"epsilon": 1.0}, {"noise_multiplier": 1.0}, {"noise_multiplier": 0.5}]
)
def test_who_could_pay_at_some_size_is_not_refused_before_the_size_is_charged(world, site_with, monkeypatch, price):
    """Against all sizes, from one member to a million: none is cheaper than what the refusal looked at."""
    free = {"epsilon": None, "noise_multiplier": None}
    changes = {f"privacy.{key}": value for key, value in {**free, **price}.items()}
    site, merchant, looked_at = site_with(8.0, changes), world.names[0], []

    def look(protection, request, name, once, prices):
        looked_at.append([whole for whole, _ in prices])
        raise BudgetExceeded("looked")

    monkeypatch.setattr("fed_distill.mechanisms.release.Protection._check_whole", look)
    list(site.train(world.request(merchant, rounds=3), world.down(), {}))
    size = Spend(site.experiment.privacy.size_noise, 1.0, 1)
    least = min(filtered([size, whole], 1e-5) for whole in looked_at[0])
    training = PrivateTraining(3 * ((Duration(epochs=1.0),),))
    for members in (1, 10, 100, 10_000, 1_000_000):
        whole, delta = mechanism_of(site.experiment).price(site.experiment, training, members, 3, (StudentUpdate,))
        assert least <= filtered([size, whole], min(delta, 1e-5)) + 1e-6


@pytest.mark.parametrize(
    ("share", "level", "words"),
    [
        (0.5, "WARNING", "may not cover this run"),
        (1.01, "WARNING", "may exhaust the budget"),
        (5.0, "INFO", "covers this run"),
    ],
)
def test_it_is_told_before_anything_is_paid(world, site_with, caplog, share, level, words):
    merchant = world.names[0]
    site = site_with(share * run_exposure(site_with(1.0).experiment, 1, 1))
    ((found, message),) = told(site, merchant, caplog)
    assert found == level and words in message and merchant in message
    assert not site.protection.charges(merchant)


def test_a_run_that_goes_on_is_not_counted_twice(world, site_with, caplog):
    merchant = world.names[0]
    site = site_with(1.01 * run_exposure(site_with(1.0).experiment, 1, 1))
    list(site.train(world.request(merchant, rounds=3), world.down(1), {}))
    ((_, message),) = told(site, merchant, caplog)
    assert "may exhaust" in message
    ((_, other),) = told(site_with(12.0, {"name": "second"}), merchant, caplog)
    assert "may not cover" in other


def test_nothing_is_told_without_limits_or_privacy(world, site_with, caplog):
    assert not told(site_with(None), world.names[0], caplog)
    assert not told(site_with(1.0, {"privacy": {"unit": "none"}}), world.names[0], caplog)
