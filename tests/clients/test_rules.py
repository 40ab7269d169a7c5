"""A site's rules at the site: what is forbidden is refused by name, before anything is trained or charged."""

from datetime import datetime

import pytest

from clients.limits import Limit, Limits, Rules
from clients.site import open_site
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.requests import Refusal

PRIVATE = {"privacy": {"unit": "example", "epsilon": 4.0, "batch_size": 16}}


@pytest.fixture
def ruled(world):
    """A function (rules, changes) -> a site with them, at noon."""

    def make(rules, changes=None):
        site = open_site(world.experiment.with_changes(changes or {}), 0, 1, world.data, Limits(rules=rules))
        site.protection.clock = lambda: datetime(2026, 1, 1, 12)
        return site

    return make


@pytest.mark.parametrize("changes", [{}, PRIVATE])
@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        (Rules(methods=("fedmd",)), "rule methods: fedmd, not 'fedavg-kd'"),
        (Rules(max_rounds=2), "rule max_rounds: 2 in a federation, not 3"),
        (Rules(hours="22:00-06:00"), "rule hours: 22:00-06:00, and it is 12:00 there"),
    ],
)
def test_what_is_forbidden_is_refused_by_name_and_costs_nothing(world, ruled, changes, rules, rule):
    compare = {"compare": []} if changes else {}
    site, names = ruled(rules, {**changes, **compare}), world.names[:2]
    request = world.request(*names, rounds=3)
    cause = "hours" if rule.startswith("rule hours") else "budget"
    expected = [Refusal(name, f"merchant {name}: not allowed by its site, {rule}", cause) for name in names]
    assert list(site.train(request, world.down(), {})) == expected
    assert list(site.join(request)) == expected
    assert not site.protection.ledger("fedavg-kd", 0, names[0]).path.exists()


def test_a_site_may_keep_its_scores_whatever_the_server_wants(world, ruled):
    blueprint, asked = world.request().blueprints["two-tower"], world.request(world.names[0], test=True)
    open_, closed = ruled(Rules()), ruled(Rules(scores=False))
    assert open_.evaluate(world.start, world.names, blueprint)
    assert closed.evaluate(world.start, world.names, blueprint) == {}
    told, kept = (next(iter(site.train(asked, world.down(), {}))).metrics for site in (open_, closed))
    assert "test_right" in told and kept.keys() == {"loss"}


def test_sizes_and_scores_are_told_where_nothing_is_protected_and_all_merchants_allow_that(world):
    limits = Limits(merchants={world.names[0]: Limit(units=("example",))})
    site = open_site(world.experiment, 0, 1, world.data, limits)
    assert not site.protection.tells_sizes(world.names)
    assert site.protection.tells_sizes(world.names[1:])
    scored = site.evaluate(world.start, world.names, world.request().blueprints["two-tower"])
    assert sorted(scored) == sorted(world.names[1:])  # by a student made for it, scores would tell of single examples
    private = open_site(world.experiment.with_changes({**PRIVATE, "compare": []}), 0, 1, world.data, Limits())
    assert not private.protection.tells_sizes(world.names)


def test_rounds_are_counted_too_whatever_is_planned(world, ruled):
    site = ruled(Rules(max_rounds=2))
    (answer,) = site.train(world.request(world.names[0], rounds=1), world.down(3), {})
    assert "rule max_rounds: 2 in a federation, not 3" in answer.reason


def test_an_update_that_is_too_large_stays_at_the_site(world, ruled):
    request, down = world.request(world.names[0]), world.down()
    for most, sent in ((0.001, False), (64.0, True)):
        site = ruled(Rules(max_update_mib=most))
        (uplink,) = site.train(request, down, {})
        answer = site.coded(uplink, Codec(), request, down)
        assert isinstance(answer, Refusal) is not sent
        assert sent or "rule max_update_mib: 0.001 MiB, and this is 0.0" in answer.reason
