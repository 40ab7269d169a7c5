"""Server and sites agree on the noise of a trusted server, and on what it costs."""

import pytest

from fed_distill.config import FederationConfig
from fed_distill.config.privacy import MerchantPrivacy, VotePrivacy, table_of_unit
from fed_distill.mechanisms.base import Terms
from fed_distill.mechanisms.lookup import mechanism
from fed_distill.mechanisms.merchant import ByMerchant
from fed_distill.mechanisms.vote import ByVote, queried
from fed_distill.privacy.accounting import Spend, epsilon

FEDERATION = FederationConfig(rounds=7, participation=0.25)


def config(unit, **changes):
    return table_of_unit(unit).model_validate({"unit": unit, "epsilon": 4.0, **changes})


def terms(privacy, proxy=1000, federation=FEDERATION):
    return Terms(privacy, federation, 90, proxy)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize("unit", ["merchant", "vote"])
def test_all_rounds_cost_the_target_and_nearly_that(unit, accountant):
    own = {"queries": 200, "answers": 50} if unit == "vote" else {}
    asked = config(unit, accountant=accountant, **own)
    found = mechanism(unit, asked)
    spent = epsilon(found.spends(terms(asked)), found.delta(asked, 90), accountant)
    assert 0.97 * 4.0 < spent <= 4.0


def test_fixed_noise_is_taken_as_it_is():
    asked = MerchantPrivacy(noise_multiplier=1.3)
    assert ByMerchant("merchant", asked).noise_multiplier(terms(asked)) == 1.3
    assert ByMerchant("merchant", asked).spends(terms(asked)) == (Spend(1.3, 0.25, 7),)
    votes = VotePrivacy(noise_multiplier=8.0, consensus=0.5, answers=20, vote_noise_ratio=2.0)
    counting = ByVote("vote", votes).counting(terms(votes, 100))
    assert (counting.threshold, counting.threshold_noise, counting.answer_noise) == (11.0, 16.0, 8.0)
    assert [spend.steps for spend in ByVote("vote", votes).spends(terms(votes, 100))] == [700, 140]


@pytest.mark.parametrize("noise", [{"epsilon": 4.0}, {"epsilon": None, "noise_multiplier": 3.0}])
def test_those_must_agree_who_are_asked_and_not_all_that_there_are(noise):
    """Of 90 merchants 22 are asked at a participation of 0.25: a threshold of 54 votes would be met by noise alone."""
    votes = config("vote", consensus=0.6, answers=20, **noise)
    assert ByVote("vote", votes).counting(terms(votes, 100)).threshold == pytest.approx(0.6 * 22)
    everybody = FEDERATION.model_copy(update={"participation": 1.0})
    assert ByVote("vote", votes).counting(terms(votes, 100, everybody)).threshold == pytest.approx(0.6 * 90)


def test_delta_is_small_however_few_the_merchants():
    found = ByMerchant("merchant")
    assert found.delta(config("merchant"), 8) == 1e-5
    assert found.delta(config("merchant"), 10**6) == pytest.approx(10**-6.6)
    assert found.delta(config("merchant", delta=0.01), 8) == 0.01


def test_no_more_is_asked_than_there_is():
    assert queried(config("vote"), 40) == 40
    assert queried(config("vote", queries=30), 40) == 30
    assert queried(config("vote", queries=50), 40) == 40
