"""A site's rules at the site: what is forbidden is refused by name, before anything is trained or charged."""

import json
import math
from dataclasses import replace
from datetime import datetime

import pytest
import torch

from fed_distill.config.experiment import personal_arm
from fed_distill.errors import TrainingError
from fed_distill.merchant.limits import OPEN, Limit, Limits, Rules
from fed_distill.merchant.opening import open_site
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.requests import Refusal

PRIVATE = {"privacy": {"unit": "example", "epsilon": 4.0, "batch_size": 16}, "compare": []}
PARTS = ("example", "group", "merchant", "vote")


@pytest.fixture
def limited(world):
    """A function (limits, changes) -> a site with them, at noon."""

    def make(limits, changes=None):
        site = open_site(world.experiment.with_changes(changes or {}), 0, 1, world.data, limits)
        site.protection.clock = lambda: datetime(2026, 1, 1, 12)
        return site

    return make


@pytest.fixture
def ruled(limited):
    """A function (rules, changes) -> a site that allows all but what these forbid, at noon."""
    return lambda rules, changes=None: limited(OPEN.model_copy(update={"rules": rules}), changes)


@pytest.mark.parametrize("changes", [{}, PRIVATE])
@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        (Rules(methods=("fedmd",)), "rule methods: fedmd, not 'fedavg-kd'"),
        (Rules(max_rounds=2), "rule max_rounds: at most 2 in a federation, not 3"),
        (Rules(hours="22:00-06:00"), "rule hours: 22:00-06:00, and the site's time is 12:00"),
    ],
)
def test_what_is_forbidden_is_refused_by_name_and_costs_nothing(world, ruled, changes, rules, rule):
    site, names = ruled(rules, changes), world.names[:2]
    request = world.request(*names, rounds=3)
    cause = "hours" if rule.startswith("rule hours") else "budget"
    expected = [Refusal(name, f"merchant {name}: not allowed by its site, {rule}", cause) for name in names]
    assert list(site.train(request, world.down(), {})) == expected
    assert list(site.join(request)) == expected
    assert not site.protection.ledger("fedavg-kd", 0, names[0]).path.exists()


@pytest.mark.parametrize("arm", ["local", "fedavg", personal_arm("fedavg-kd")])
def test_a_private_experiment_trains_nothing_unprotected_at_a_site_that_does_not_name_it(world, limited, arm):
    """Controls and personal adaptation; what the site was written with allows the experiment's own unit."""
    changes = {**PRIVATE, "controls": ["local", "fedavg"], "adaptation.personal": True}
    name = world.names[0]
    request = world.request(name, arm=arm)
    starts = {"two-tower": world.start}
    for limits in (Limits(), Limits(default=Limit(units=("example",)))):
        (refused,) = limited(limits, changes).train(request, world.down(), starts)
        assert isinstance(refused, Refusal) and refused.cause == "budget"
    assert "its limits allow units example, not 'none'" in refused.reason
    (trained,) = limited(Limits(default=Limit(units=("none", "example"))), changes).train(request, world.down(), starts)
    assert not isinstance(trained, Refusal)


def test_the_experiments_own_arm_is_trained_at_a_closed_site_and_no_score_is_told(world, limited, caplog):
    site = limited(Limits(), PRIVATE)
    with caplog.at_level("INFO"):
        (uplink,) = site.train(world.request(world.names[0], test=True), world.down(), {})
    assert uplink.metrics == {}
    assert "no test scores of fedavg-kd are reported: rule scores" in caplog.text


def test_test_scores_are_told_by_rule_and_nobody_elses_wish(world, ruled, caplog):
    asked = world.request(*world.names[:2], test=True)
    open_, closed = ruled(Rules(scores=True)), ruled(Rules())
    assert set(open_.evaluate(asked, world.start)) == set(world.names[:2])
    with caplog.at_level("INFO"):
        assert closed.evaluate(asked, world.start) == {}
    assert "no test scores of fedavg-kd are reported: rule scores" in caplog.text
    assert (open_.tally.scored, closed.tally.scored) == (2, 0)
    assert (open_.tally.refused["scores"], closed.tally.refused["scores"]) == (0, 2)
    told, kept = (next(iter(site.train(asked, world.down(), {}))).metrics for site in (open_, closed))
    assert "test_right" in told and kept.keys() == {"loss"}
    assert (open_.tally.scored, closed.tally.refused["scores"]) == (3, 3)


@pytest.mark.parametrize(
    ("rules", "rule"),
    [({"hours": "22:00-06:00"}, "rule hours: 22:00-06:00"), ({"methods": ("fedmd",)}, "rule methods: fedmd")],
)
def test_a_request_for_scores_is_checked_as_one_to_train(world, ruled, caplog, rules, rule):
    site = ruled(Rules(scores=True, **rules))
    with caplog.at_level("INFO"):
        assert site.evaluate(world.request(*world.names), world.start) == {}
    assert rule in caplog.text
    assert site.tally.refused[rule.split()[1].rstrip(":")] == len(world.names)


def test_the_student_that_the_server_trains_alone_is_of_no_method(world, ruled):
    site = ruled(Rules(scores=True, methods=()))
    assert set(site.evaluate(world.request(*world.names, arm="server"), world.start)) == set(world.names)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e7])
def test_weights_that_no_honest_server_sends_are_not_scored(world, ruled, value):
    name = next(iter(world.start))
    weights = {**world.start, name: torch.full_like(world.start[name], value)}
    with pytest.raises(TrainingError, match="values that are not finite, or above"):
        ruled(Rules(scores=True)).evaluate(world.request(*world.names), weights)


@pytest.mark.parametrize("unit", ["none", *PARTS])
def test_scores_are_of_merchants_that_take_part_in_what_the_experiment_promises(world, limited, unit):
    """By a student made for it, scores would tell of single examples."""
    changes = PRIVATE if unit == "example" else {"privacy.unit": unit, "privacy.epsilon": 4.0, "compare": []}
    changes = {"privacy.unit": "none"} if unit == "none" else changes
    others = tuple(one for one in ("none", *PARTS) if one != unit)
    limits = Limits(
        rules=Rules(scores=True),
        default=Limit(units=(unit,)),
        merchants={world.names[0]: Limit(units=others)},
    )
    scored = limited(limits, changes).evaluate(world.request(*world.names), world.start)
    assert sorted(scored) == sorted(world.names[1:])


def test_sizes_are_told_where_nothing_is_protected_and_all_merchants_allow_that(world, limited):
    limits = Limits(default=Limit(units=("none",)), merchants={world.names[0]: Limit(units=("example",))})
    site = limited(limits)
    assert not site.protection.tells_sizes(world.names)
    assert site.protection.tells_sizes(world.names[1:])
    assert not limited(Limits()).protection.tells_sizes(world.names)
    assert not limited(OPEN, PRIVATE).protection.tells_sizes(world.names)


def test_rounds_are_counted_too_whatever_is_planned(world, ruled):
    site = ruled(Rules(max_rounds=2))
    (answer,) = site.train(world.request(world.names[0], rounds=1), world.down(3), {})
    assert "rule max_rounds: at most 2 in a federation, not 3" in answer.reason


def test_an_update_that_is_too_large_stays_at_the_site(world, ruled):
    request, down = world.request(world.names[0]), world.down()
    for most, sent in ((0.001, False), (64.0, True)):
        site = ruled(Rules(max_update_mib=most))
        (uplink,) = site.train(request, down, {})
        answer = site.coded(uplink, Codec(), request, down)
        assert isinstance(answer, Refusal) is not sent
        assert sent or "rule max_update_mib: at most 0.001 MiB, not 0.0" in answer.reason


LARGE = {"kind": "two-tower", "settings": {"classes": 4, "pair": True, "rows": 10**9, "width": 4096}}


def described(request, *blueprints):
    return replace(request, blueprints={"two-tower": json.dumps(blueprints[0])})


@pytest.mark.parametrize("changes", [{}, PRIVATE])
def test_steps_on_the_proxy_set_are_work_too(world, ruled, changes):
    """25 of them, and beside them a few on private examples: one epoch of some 20 in batches of 16."""
    asked = {**changes, "federation.options": {"local_epochs": 1.0, "proxy_steps": 25}}
    request, down = world.request(world.names[0]), world.down()
    (refused,) = ruled(Rules(max_steps=25), asked).train(request, down, {})
    assert isinstance(refused, Refusal) and "rule max_steps" in refused.reason
    (trained,) = ruled(Rules(max_steps=40), asked).train(request, down, {})
    assert not isinstance(trained, Refusal)


@pytest.mark.parametrize("changes", [{}, PRIVATE])
def test_a_request_for_too_much_work_is_refused_by_name_before_it_is_trained(world, ruled, changes):
    """30 epochs of a merchant with some 20 examples, in batches of 16: more than 20 steps, whatever its noised size."""
    asked = {**changes, "federation.options": {"local_epochs": 30.0, "proxy_steps": 1}}
    name = world.names[0]
    site = ruled(Rules(max_steps=20), asked)
    (refused,) = site.train(world.request(name), world.down(), {})
    assert isinstance(refused, Refusal) and "rule max_steps: at most 20 per merchant and round, not " in refused.reason
    paid = [entry.charge.what for entry in site.protection.ledger("fedavg-kd", 0, name).entries()] if changes else []
    assert paid in ([], ["size"])
    (trained,) = ruled(Rules(max_steps=5000), asked).train(world.request(name), world.down(), {})
    assert not isinstance(trained, Refusal)


def test_a_student_that_is_too_large_is_refused_before_it_is_made(world, ruled):
    """16 TB: making it would end the process."""
    request = described(world.request(world.names[0]), LARGE)
    (refused,) = ruled(Rules(max_model_mib=256.0)).train(request, world.down(), {})
    assert "rule max_model_mib: at most 256 MiB, but a student has 1.56e+07 MiB" in refused.reason
    nested = {"kind": "fed_distill.models.pair:Pair", "settings": {"shared": LARGE, "own": LARGE}}
    (refused,) = ruled(Rules(max_model_mib=256.0)).train(described(request, nested), world.down(), {})
    assert "rule max_model_mib" in refused.reason


@pytest.mark.parametrize("field", Rules.model_fields)
def test_every_rule_of_a_site_is_closed_or_open_by_intent(field):
    """What bounds work is bounded for a site that says nothing of it, and for no simulation."""
    bounds = {"max_model_mib", "max_steps", "max_seconds", "max_memory_gib"}
    assert (getattr(Rules(), field) not in (None, False, ())) == (field in bounds)
    assert getattr(OPEN.rules, field) in (None, (), True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda request: replace(request, arm="other"), "the request is for 'other', which is not an arm of"),
        (lambda request: replace(request, merchants=("nobody",)), "merchant 'nobody', which is not at this site"),
        (lambda request: replace(request, students=("lstm",)), "a student 'lstm', but has no blueprint for it"),
        (lambda request: replace(request, blueprints={"two-tower": "{"}), "an invalid blueprint of a student"),
        (
            lambda request: described(request, {"kind": "os:system", "settings": {}}),
            "student of the request cannot be built",
        ),
        (
            lambda request: described(request, {**LARGE, "settings": {"rows": 16}}),
            "student of the request cannot be built",
        ),
    ],
)
def test_a_request_that_does_not_fit_together_is_told_so(world, limited, change, told):
    with pytest.raises(TrainingError, match=told):
        list(limited(Limits()).train(change(world.request(world.names[0])), world.down(), {}))


def test_a_merchant_that_is_named_twice_and_weights_of_another_student_are_told(world, limited):
    site, name = limited(OPEN), world.names[0]
    with pytest.raises(TrainingError, match="names a merchant twice"):
        list(site.train(world.request(name, name), world.down(), {}))
    down = world.down()
    for weights, told in (
        ({**down.weights, "more": torch.zeros(1)}, "only one of them has 'more'"),
        ({key: value.double() for key, value in down.weights.items()}, "its student requires"),
        ({key: value[:1] for key, value in down.weights.items()}, "its student requires"),
    ):
        with pytest.raises(TrainingError, match=told):
            list(site.train(world.request(name), down.having(StudentWeights(weights)), {}))
