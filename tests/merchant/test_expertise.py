"""Expertise under privacy: from one noised sum, which is charged before it is used, and from nothing else.

Each check is shown to fail if what it is for is left out.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_distill.mechanisms import release
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant import holdings
from fed_distill.merchant.allowance import run_exposure
from fed_distill.merchant.limits import Limit, Limits, Rules
from fed_distill.merchant.opening import open_site
from fed_distill.merchant.private_statistics import PrivateStatistics
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.privacy.accounting import Spend, epsilon
from fed_distill.privacy.ledger import exposure
from fed_distill.privacy.text_sum import text_sum
from fed_distill.text.similarity import bags, largest_cosine
from fed_distill.transport.requests import Refusal, packed

ARM = "expert-fd"
SECRET = "5ec2e7" * 8
NOISE = 10.0
units = pytest.mark.parametrize("unit", ["example", "group"])


@pytest.fixture
def site_of(world, tmp_path):
    """A function that opens a site with a secret, its ledgers and answers in a folder of this test's."""

    def opened(unit="example", limits=None, own=None, secret=SECRET, **changes):
        settings = {
            "runtime.folder": str(tmp_path / "runs"),
            "privacy.ledger": str(tmp_path / "ledgers"),
            "privacy.unit": unit,
            "privacy.noise_multiplier": 2.0,
            "compare": [{"method": ARM}, {"method": "fedmd"}],
            "federation.rounds": 3,
        }
        experiment = world.experiment.with_changes({**settings, **changes})
        site = open_site(experiment, 0, 1, world.data, limits, secret)
        if own is None:
            return site
        merchant = world.data.merchants[world.names[0]]
        return world.having(site, {world.names[0]: replace(merchant, train=own)})

    return opened


@pytest.fixture
def ask(world):
    """A function that returns the first merchant's answer in a round."""

    def asked(site, number=1, arm=ARM, rounds=1):
        request = world.request(world.names[0], arm=arm, rounds=rounds)
        (answer,) = site.train(request, world.consensus(number), {"two-tower": world.start})
        return answer

    return asked


@pytest.fixture
def charges(world):
    return lambda site, arm=ARM: [entry.charge for entry in site.protection.ledger(arm, 0, world.names[0]).entries()]


@units
def test_all_rounds_cost_the_target_with_one_charge_for_expertise(site_of, ask, charges, unit):
    site = site_of(unit, **{"privacy.noise_multiplier": None, "privacy.epsilon": 6.0})
    for number in (1, 2, 3):
        assert not isinstance(ask(site, number, rounds=3), Refusal)
    paid = charges(site)
    assert [(one.what, one.round) for one in paid] == [
        ("size", 0),
        ("training", 1),
        ("expertise", 0),
        ("training", 2),
        ("training", 3),
    ]
    assert paid[2].spends == (Spend(NOISE, 1.0, 1),)
    first, *later = [one.spends[0] for one in paid if one.what == "training"]
    assert later == [replace(first, steps=first.steps // 20)] * 2  # of 20 epochs first, then of one
    assert 0.98 * 6.0 < epsilon([spend for one in paid for spend in one.spends], paid[0].delta) <= 6.0


def uncharged(protection, request, merchant, what, *rest):
    if what != "expertise":
        return charge(protection, request, merchant, what, *rest)
    return None


charge = Protection._charge


@pytest.mark.parametrize("left_out", [False, True])
def test_the_charge_is_on_disk_before_the_noise_is_added(site_of, ask, charges, monkeypatch, left_out):
    site, seen = site_of(), []
    if left_out:
        monkeypatch.setattr(Protection, "_charge", uncharged)

    def look(total, deviation, stream):
        seen.append([one.what for one in charges(site)])
        return total

    monkeypatch.setattr(release, "add_noise", look)
    ask(site)
    assert seen == [["size", "training", *([] if left_out else ["expertise"])]]


@pytest.fixture
def released(world, site_of):
    """A function that returns the sum of all but the first examples of a merchant, and the sum with noise."""

    def made(unit="example", left_out=0, arm=ARM, **changes):
        train = world.data.merchants[world.names[0]].train
        own = train.take(range(left_out, len(train)))
        site = site_of(unit, own=own, **changes)
        total = text_sum(bags(own.texts, own.pairs), site.protection.mechanism(arm).groups(own))
        request = world.request(world.names[0], arm=arm)
        return total, site.protection.noised_texts(world.names[0], request, total, 20)

    return made


def has_noise(total, noised, deviation):
    """Of ROWS = 32,768 features, so that five standard errors are 2 % of the deviation, and 3 % of its mean."""
    noise = (noised - total) / deviation
    return abs(float(noise.std()) - 1.0) < 0.02 and abs(float(noise.mean())) < 0.03


@units
@pytest.mark.parametrize("deviation", [1.0, NOISE])
def test_every_feature_has_the_noise_that_is_paid_for(released, unit, deviation):
    assert has_noise(*released(unit, **{"privacy.expertise_noise": deviation}), deviation)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_noise_that_is_left_out_or_halved_is_found(released, monkeypatch, share):
    add = release.add_noise
    monkeypatch.setattr(release, "add_noise", lambda total, deviation, stream: add(total, share * deviation, stream))
    assert not has_noise(*released(), NOISE)


OTHER = {
    "an example less": {"left_out": 1},
    "groups in place of examples": {"unit": "group"},
    "other noise": {"privacy.expertise_noise": 2 * NOISE},
    "another secret": {"secret": 2 * SECRET},
    "another federation": {"arm": "fedmd"},
}


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER)
def test_whatever_is_another_sum_or_release_has_noise_of_its_own(released, other):
    """Or their difference would have less."""
    noises = [noised - total for total, noised in (released(), released(**other))]
    assert abs(float(torch.corrcoef(torch.stack(noises))[0, 1])) < 0.03


@units
def test_an_equal_sum_has_equal_noise_in_every_round_and_is_charged_once(site_of, ask, charges, unit):
    sent = [ask(site_of(unit), number, rounds=2).need(ExpertSoftLabels) for number in (1, 2)]
    assert torch.equal(sent[0].answered, sent[1].answered)
    assert torch.equal(sent[0].levels, sent[1].levels)
    assert not torch.equal(sent[0].probabilities, sent[1].probabilities)
    assert sum(one.what == "expertise" for one in charges(site_of(unit))) == 1


def test_an_equal_request_is_answered_by_the_same_bytes(site_of, ask, charges):
    first, paid = ask(site_of()).need(ExpertSoftLabels), charges(site_of())
    again = ask(site_of()).need(ExpertSoftLabels)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    assert charges(site_of()) == paid


def exact(statistics):
    return statistics.holdings.expertise(statistics.learner.name, statistics.request)


def test_exact_expertise_is_computed_once_a_proxy_set(world, monkeypatch):
    site, calls = world.site(), []
    monkeypatch.setattr(holdings, "largest_cosine", lambda *of: calls.append(of) or largest_cosine(*of))
    merchant, request = world.names[0], world.request(world.names[0])
    first, again = (site.holdings.expertise(merchant, request) for _ in range(2))
    assert torch.equal(first, again) and len(calls) == 1
    train, proxy = world.data.merchants[merchant].train, site.holdings.proxy
    whole = bags(proxy.texts, proxy.pairs) @ bags(train.texts, train.pairs).T
    torch.testing.assert_close(first, torch.from_numpy(whole.toarray().max(axis=1)).float())
    chosen = replace(request, proxy=packed(np.arange(len(proxy)) % 2 == 0))
    torch.testing.assert_close(site.holdings.expertise(merchant, chosen), first[::2])
    site.holdings.expertise(world.names[1], request)
    assert len(calls) == 3


@pytest.mark.parametrize("planted", [False, True])
def test_what_is_answered_depends_on_the_noised_sum_alone(world, site_of, ask, monkeypatch, planted):
    """Two merchants with one sum and size and other texts send the same choice and expertise, unless it is exact."""
    train = world.data.merchants[world.names[0]].train
    places = [place % len(world.data.proxy) for place in range(len(train))]
    copied = replace(world.data.proxy.take(places), labels=train.labels, groups=train.groups)
    draw = torch.randn(2**15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(Protection, "noised_texts", lambda *given: 10.0 * draw)
    monkeypatch.setattr(Protection, "_noised_size", lambda *given: 20)
    if planted:
        monkeypatch.setattr(PrivateStatistics, "expertise", exact)
    one, other = (ask(site_of(own=own)).need(ExpertSoftLabels) for own in (train, copied))
    same = torch.equal(one.answered, other.answered) and torch.equal(one.levels, other.levels)
    assert same is not planted


REFUSING = {
    "units": Limits(default=Limit(max_epsilon=None, units=("group", "none"))),
    "methods": Limits(rules=Rules(methods=("fedmd",)), default=Limit(max_epsilon=None)),
    "min_noise": Limits(default=Limit(max_epsilon=None, min_noise=1.5)),
}


@pytest.mark.parametrize("rule", REFUSING)
def test_a_site_that_does_not_allow_it_pays_and_sends_nothing(site_of, ask, charges, rule):
    noise = {"privacy.expertise_noise": 1.0}
    allowed = ask(site_of(limits=Limits(default=Limit(max_epsilon=None, min_noise=0.5)), secret="aa" * 24, **noise))
    assert not isinstance(allowed, Refusal)
    before = charges(site_of(**noise))
    refused = ask(site_of(limits=REFUSING[rule], **noise))
    assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert charges(site_of(**noise)) == before


def test_the_limit_of_a_generated_site_file_covers_expertise(world, site_of, ask, charges):
    """Whose noise of 0.5 costs more than everything else."""
    loud = {"privacy.noise_multiplier": 50.0, "privacy.expertise_noise": 0.5}
    own = {"federation.method": ARM, "federation.options": {}, "federation.rounds": 1, "compare": []}
    site = site_of(**loud, **own)
    assert not isinstance(ask(site), Refusal)
    assert 8.0 < exposure(charges(site)) <= run_exposure(site.experiment, 1, 1) < 20.0


def test_a_budget_that_covers_training_alone_pays_and_sends_nothing(site_of, ask, charges):
    """Expertise with noise 0.5 costs more than the whole limit, which a federation without it is far below."""
    limits, loud = Limits(default=Limit(max_epsilon=8.0)), {"privacy.noise_multiplier": 50.0}
    assert not isinstance(ask(site_of(limits=limits, **loud), arm="fedmd"), Refusal)
    refused = ask(site_of(limits=limits, **loud, **{"privacy.expertise_noise": 0.5}))
    assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert {one.arm for one in charges(site_of())} == {"fedmd"}
