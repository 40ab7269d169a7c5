"""What a site sends of its labels: charged draws with their texts, and under no other privacy unit anything at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fed_distill.config.privacy import table_of_unit
from fed_distill.data.examples import Examples
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import ConfigError
from fed_distill.mechanisms import MECHANISMS
from fed_distill.merchant import labels as of_site
from fed_distill.merchant.drawn_labels import Drawn
from fed_distill.merchant.limits import Limit, Limits, Rules
from fed_distill.merchant.opening import open_site
from fed_distill.methods.lp_mst import LPMST
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.requests import Refusal

ARM = "lp-mst"
GRABBING = f"{__name__}:Grabbing"
PUBLIC = Rules(texts=True)
ALLOWED = Limits(rules=PUBLIC, default=Limit(units=("label",), max_epsilon=3.0))


class Grabbing(LPMST):
    """A hostile method: it claims to send nothing that is private."""

    sends = ()

    def plan(self, down):
        return Plan((Phase(hard_labels(), epochs=1.0),))

    def uplink(self, trained, down):
        sent = trained.released_labels()
        assert isinstance(sent, ReleasedLabels)
        return super().uplink(trained, down)


@pytest.fixture
def site_of(world, tmp_path):
    """A function that opens a site with a secret and ledgers of its own."""

    def opened(limits=ALLOWED, method=ARM, data=None, **changes):
        label = {"privacy.unit": "label", "privacy.epsilon": 1.0, "privacy.texts_public": True}
        settings = {
            "runtime.folder": str(tmp_path / "runs"),
            "privacy.ledger": str(tmp_path / "ledgers"),
            "federation.method": method,
            "federation.options": {},
            "federation.aggregator": "fedavg",
            "federation.rounds": 4,
            "compare": [],
            **(label if "privacy" not in changes else {}),
            **changes,
        }
        return open_site(world.experiment.with_changes(settings), 0, 1, data or world.data, limits, "s" * 32)

    return opened


@pytest.fixture
def ask(world):
    """A function that returns the first merchant's answer in a round."""

    def asked(site, number=1, arm=ARM):
        request = replace(world.request(world.names[0], arm=arm, rounds=4), federation="first")
        (answer,) = site.train(request, world.down(number), {})
        return answer

    return asked


def charges(site, merchant):
    return [entry.charge.what for entry in site.protection.ledger(ARM, 0, merchant).entries()]


def pairs_of(examples):
    return list(zip(examples.texts, examples.pairs, strict=True))


def test_what_is_sent_is_the_charged_draw_with_its_texts_and_the_same_in_all_rounds(world, site_of, ask, tmp_path):
    site, merchant = site_of(), world.names[0]
    first, later = (ask(site, number).need(ReleasedLabels) for number in (1, 2))
    own = world.data.merchants[merchant].train
    assert pairs_of(first.examples(merchant)) == pairs_of(own)
    (stored,) = (tmp_path / "ledgers").rglob("*.safetensors")
    drawn = load_file(stored)
    assert torch.equal(first.labels, drawn["labels"])
    assert torch.equal(first.outputs, drawn["outputs"])
    assert not np.array_equal(first.labels.numpy(), own.labels)
    assert first.to_records().keys() == later.to_records().keys()
    for name, sent in first.to_records()["released_labels"].items():
        assert torch.equal(sent, later.to_records()["released_labels"][name])
    assert charges(site, merchant) == ["labels"]


def test_nothing_of_the_true_labels_is_in_it(world, site_of, ask, tmp_path, monkeypatch):
    """Two merchants with the same texts and other labels send the same, once the draw is made the same."""
    sent = []
    for number in (0, 1):
        own = world.data.merchants[world.names[0]]
        other = replace(own, train=replace(own.train, labels=(own.train.labels + number) % 4))
        site = site_of(data=replace(world.data, merchants={world.names[0]: other}))
        fixed = torch.zeros(len(own.train), dtype=torch.int64)

        def draw(self, merchant, examples, rows, labels, prior, request, spend, fixed=fixed):
            outputs = torch.tensor([[0, 0, 2, 2]] * len(rows))
            return of_site.Draw("digest", outputs, fixed[: len(rows)])

        monkeypatch.setattr(of_site.RandomizedLabels, "_draw", draw)
        sent.append(ask(site))
    (one, other) = (answer.need(ReleasedLabels).to_records()["released_labels"] for answer in sent)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [answer.metrics for answer in sent] == [{}, {}]


def test_equal_texts_are_sent_once(world, site_of, ask):
    own = world.data.merchants[world.names[0]]
    repeated = own.train.take([0, 1, 0, 2, 0])
    site = site_of(data=replace(world.data, merchants={world.names[0]: replace(own, train=repeated)}))
    sent = ask(site)
    assert pairs_of(sent.need(ReleasedLabels).examples("a")) == pairs_of(own.train.take([0, 1, 2]))
    assert sent.examples == 5


def test_in_two_stages_each_half_is_sent_once_it_was_drawn(world, site_of, ask):
    site, merchant = site_of(**{"privacy.stages": 2}), world.names[0]
    own = set(pairs_of(world.data.merchants[merchant].train))
    early, late = (ask(site, number).need(ReleasedLabels).examples(merchant) for number in (2, 3))
    assert set(pairs_of(early)) < set(pairs_of(late)) == own
    assert charges(site, merchant) == ["labels of half 1", "labels of half 2"]


def test_a_label_that_cannot_be_paid_is_not_sent(world, site_of, ask):
    for default in (Limit(units=("label",), max_epsilon=0.5), Limit()):
        limits = Limits(rules=PUBLIC, default=default)
        refused = ask(site_of(limits))
        assert isinstance(refused, Refusal)
        assert refused.cause == "budget"
        assert not charges(site_of(limits), world.names[0])


UNITS = {
    "none": {"unit": "none"},
    **{
        unit: {"unit": unit, "epsilon": 4.0}
        for unit in MECHANISMS
        if table_of_unit(unit) is not None and unit not in ("none", "label")
    },
}


@pytest.mark.parametrize("unit", UNITS)
def test_no_other_unit_lets_any_method_have_labels(world, site_of, ask, unit):
    """The declared method is refused whole; one that hides what it sends is refused when it reaches for labels."""
    open_to_all = Limits(rules=PUBLIC, default=Limit(units=tuple(UNITS), max_epsilon=100.0))
    with pytest.raises(ConfigError, match=r"randomized|without noise|adds noise"):
        ask(site_of(open_to_all, privacy=UNITS[unit]))
    hostile = site_of(open_to_all, method=GRABBING, privacy=UNITS[unit])
    try:
        answer = ask(hostile, arm=GRABBING)
    except ConfigError:
        return  # units that count updates or votes refuse a method without them
    assert isinstance(answer, Refusal)


def test_a_method_that_does_not_declare_what_it_sends_sends_nothing(site_of, ask):
    answer = ask(site_of(method=GRABBING), arm=GRABBING)
    assert isinstance(answer, Refusal)


@pytest.mark.parametrize("method", [ARM, GRABBING])
def test_a_site_that_does_not_allow_texts_sends_none_whatever_a_method_declares(world, site_of, ask, method):
    """Declared, it is refused by the rule's name before anything is charged."""
    site = site_of(Limits(default=Limit(units=("label",), max_epsilon=3.0)), method=method)
    answer = ask(site, arm=method)
    assert isinstance(answer, Refusal)
    assert "rule texts: texts of training examples are not sent; texts = true allows it" in answer.reason
    assert site.tally.refused == {"texts": 1}
    if method == ARM:
        assert not site.protection.ledger(method, 0, world.names[0]).path.exists()


def test_without_public_texts_the_server_gets_no_labels(site_of, ask):
    with pytest.raises(ConfigError, match=r"set privacy\.texts_public = true"):
        ask(site_of(**{"privacy.texts_public": False}))


def test_histories_of_customers_are_never_sent(world):
    own = Examples(("tent | stove",), None, np.array([1]), np.array([0]), ("a",))
    draws = ((torch.tensor([0]), of_site.Draw("digest", torch.tensor([[0, 1]]), torch.tensor([1]))),)
    histories = replace(world.data.task, name="recommend")
    assert len(Drawn(own, world.data.task, draws).released().labels) == 1
    with pytest.raises(ConfigError, match="'recommend' are histories of customers, which are not sent"):
        Drawn(own, histories, draws).released()
