"""In a simulation Byzantine merchants alone deviate, in federations and not in controls; at a real site nobody does."""

import pytest
import torch

from fed_distill.adversaries.byzantine import byzantine_merchants
from fed_distill.merchant.opening import open_site
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.submodel import completed


def trained(site, request, down, starts=None):
    return {answer.merchant: answer for answer in site.train(request, down, starts or {})}


@pytest.fixture
def attacked(world):
    """A function: a site whose merchants attack, some of its attack's options, and which are Byzantine on seed 0."""

    def make(attack, part=0, parts=1, **options):
        table = {"fraction": 0.4, "attack": attack, "options": options}
        experiment = world.experiment.with_changes({"byzantine": table, "controls": ["local"]})
        return open_site(experiment, part, parts), byzantine_merchants(experiment, world.names, 0)

    return make


def update(uplink, start):
    nothing = {name: torch.zeros_like(value) for name, value in start.items()}
    whole = completed(uplink.need(StudentUpdate), nothing)
    return torch.cat([whole[name].flatten() for name in start])


def test_sign_flippers_send_the_opposite_and_the_honest_what_they_would(world, attacked):
    site, deviating = attacked("sign-flip", scale=2.0)
    honest = trained(world.site(), world.request(*world.names), world.down())
    found = trained(site, world.request(*world.names), world.down())
    assert len(deviating) == 2
    for name in world.names:
        factor = -2.0 if name in deviating else 1.0
        torch.testing.assert_close(
            update(found[name], world.start), factor * update(honest[name], world.start), rtol=1e-4, atol=1e-6
        )


def test_label_flippers_train_on_reversed_labels_which_stay_as_they_were_at_the_merchant(world, attacked):
    site, deviating = attacked("label-flip")
    before = {name: data.train.labels.copy() for name, data in site.holdings.merchants.items()}
    honest = trained(world.site(), world.request(*world.names), world.down())
    found = trained(site, world.request(*world.names), world.down())
    moved = {
        name: not torch.allclose(update(found[name], world.start), update(honest[name], world.start), atol=1e-5)
        for name in world.names
    }
    assert moved == {name: name in deviating for name in world.names}
    assert all((data.train.labels == before[name]).all() for name, data in site.holdings.merchants.items())


def test_soft_labels_are_flipped_and_what_a_byzantine_merchant_keeps_is_what_it_trained(world, attacked):
    site, deviating = attacked("sign-flip")
    request, starts = world.request(*world.names, arm="fedmd"), {"two-tower": world.start}
    honest_site = world.site()
    honest = trained(honest_site, request, world.consensus(1), starts)
    found = trained(site, request, world.consensus(1), starts)
    for name in world.names:
        if name in deviating:
            assert torch.equal(
                found[name].need(SoftLabels).probabilities.argmin(dim=-1),
                honest[name].need(SoftLabels).probabilities.argmax(dim=-1),
            )
        else:
            torch.testing.assert_close(
                found[name].need(SoftLabels).probabilities,
                honest[name].need(SoftLabels).probabilities,
                rtol=1e-4,
                atol=1e-6,
            )
        kept, would = (one.store.load("fedmd", 0, name, before=2) for one in (site, honest_site))
        assert all(torch.allclose(kept[key], value, atol=1e-5) for key, value in would.items())


def test_who_is_byzantine_does_not_depend_on_the_sites(world, attacked):
    alone, _ = attacked("sign-flip")
    whole = trained(alone, world.request(*world.names), world.down())
    for part in range(2):
        site, _ = attacked("sign-flip", part, 2)
        for name, answer in trained(site, world.request(*site.holdings.merchants), world.down()).items():
            torch.testing.assert_close(
                update(answer, world.start), update(whole[name], world.start), rtol=1e-4, atol=1e-5
            )


def test_controls_are_not_attacked(world, attacked):
    site, _ = attacked("scaled")
    clean = open_site(world.experiment.with_changes({"controls": ["local"]}), 0, 1)
    request = world.request(*world.names, arm="local")
    found, honest = (trained(one, request, world.down()) for one in (site, clean))
    for name in world.names:
        torch.testing.assert_close(
            update(found[name], world.start), update(honest[name], world.start), rtol=1e-4, atol=1e-5
        )
