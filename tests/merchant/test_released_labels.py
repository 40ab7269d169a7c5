"""What a site sends of its labels: charged draws with their texts, and under no other privacy unit anything at all."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fed_distill.config.privacy import table_of_unit
from fed_distill.errors import ConfigError
from fed_distill.mechanisms import MECHANISMS
from fed_distill.merchant import labels as of_site
from fed_distill.merchant.limits import Limit, Limits, Rules
from fed_distill.merchant.opening import open_site
from fed_distill.methods.fedavg import FedAvg
from fed_distill.methods.lp_mst import LPMST
from fed_distill.payloads.released_labels import LONGEST, ReleasedLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.votes import Votes
from fed_distill.transport.requests import Refusal

ARM = "lp-mst"
GRABBING = f"{__name__}:Grabbing"
PUBLIC = Rules(texts=True)
ALLOWED = Limits(rules=PUBLIC, default=Limit(units=("label",), max_epsilon=3.0))


class Grabbing(FedAvg):
    """A hostile method that declares an update and reaches for labels. got: what it could lay its hands on."""

    got: ClassVar[list] = []

    def uplink(self, trained, down):
        self.got.append(trained.released_labels())
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


@pytest.fixture(autouse=True)
def nothing_got():
    Grabbing.got.clear()


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
    (stored,) = (tmp_path / "ledgers").rglob("*.safetensors")
    drawn = load_file(stored)
    expected = list(zip(pairs_of(own), drawn["labels"].tolist(), drawn["outputs"].tolist(), strict=True))
    found = zip(pairs_of(first.examples(merchant)), first.labels.tolist(), first.outputs.tolist(), strict=True)
    assert list(found) == sorted(expected)
    assert not np.array_equal(drawn["labels"].numpy(), own.labels)
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


def test_the_order_of_a_table_is_not_in_it(world, site_of, ask, monkeypatch):
    """A table sorted by label would tell its labels: 99 % of them, where randomized ones alone tell 47 %."""
    own, sent = world.data.merchants[world.names[0]], []
    known = {pair: number % 4 for number, pair in enumerate(pairs_of(own.train))}

    def draw(self, merchant, examples, rows, labels, prior, request, spend):
        fixed = [known[pair] for pair in pairs_of(examples.take(rows.numpy()))]
        return of_site.Draw("digest", torch.arange(4).expand(len(rows), 4), torch.tensor(fixed))

    monkeypatch.setattr(of_site.RandomizedLabels, "_draw", draw)
    for order in (np.argsort(own.train.labels), np.argsort(-own.train.labels)):
        table = replace(own, train=own.train.take(order))
        site = site_of(data=replace(world.data, merchants={world.names[0]: table}))
        sent.append(ask(site).need(ReleasedLabels).to_records()["released_labels"])
    assert all(torch.equal(values, sent[1][name]) for name, values in sent[0].items())


def test_equal_texts_are_sent_once(world, site_of, ask):
    own = world.data.merchants[world.names[0]]
    repeated = own.train.take([0, 1, 0, 2, 0])
    site = site_of(data=replace(world.data, merchants={world.names[0]: replace(own, train=repeated)}))
    sent = ask(site)
    assert pairs_of(sent.need(ReleasedLabels).examples("a")) == sorted(pairs_of(own.train.take([0, 1, 2])))
    assert sent.examples == 3


def test_the_log_says_how_many_labels_are_too_large_to_be_sent(world, site_of, ask, caplog, tmp_path):
    own = world.data.merchants[world.names[0]]
    few = own.train.take([0, 1, 2])
    data = replace(world.data, merchants={world.names[0]: replace(own, train=few)})
    assert len(ask(site_of(data=data)).need(ReleasedLabels).labels) == 3
    assert "not sent" not in caplog.text
    overlong = replace(few, texts=("x" * (LONGEST + 1), *few.texts[1:]))
    data = replace(world.data, merchants={world.names[0]: replace(own, train=overlong)})
    site = site_of(data=data, **{"privacy.ledger": str(tmp_path / "other")})
    assert len(ask(site).need(ReleasedLabels).labels) == 2
    assert f"1 of 3 randomized labels are not sent: an example may have {LONGEST} bytes" in caplog.text


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
def test_no_other_unit_lets_any_method_have_labels(site_of, ask, monkeypatch, unit):
    """The declared method is refused whole; one that does not declare them gets none."""
    open_to_all = Limits(rules=PUBLIC, default=Limit(units=tuple(UNITS), max_epsilon=100.0))
    with pytest.raises(ConfigError, match=r"randomized|without noise|adds noise"):
        ask(site_of(open_to_all, privacy=UNITS[unit]))
    monkeypatch.setattr(Grabbing, "sends", (Votes,) if unit == "vote" else (StudentUpdate,))
    answer = ask(site_of(open_to_all, method=GRABBING, privacy=UNITS[unit]), arm=GRABBING)
    assert not Grabbing.got
    assert isinstance(answer, Refusal)


def test_under_unit_label_a_method_gets_what_was_charged_and_may_not_send_it_undeclared(site_of, ask, monkeypatch):
    """That the attempts above are ones that could succeed."""
    answer = ask(site_of(method=GRABBING), arm=GRABBING)
    assert [type(one) for one in Grabbing.got] == [ReleasedLabels]
    assert answer.kinds == {StudentUpdate}
    monkeypatch.setattr(Grabbing, "uplink", LPMST.uplink)
    assert isinstance(ask(site_of(method=GRABBING), number=2, arm=GRABBING), Refusal)


@pytest.mark.parametrize("method", [ARM, GRABBING])
def test_a_site_that_does_not_allow_texts_sends_none_whatever_a_method_declares(world, site_of, ask, method):
    """Declared, it is refused by the rule's name before anything is charged."""
    site = site_of(Limits(default=Limit(units=("label",), max_epsilon=3.0)), method=method)
    answer = ask(site, arm=method)
    assert isinstance(answer, Refusal) and not Grabbing.got
    assert "rule texts: texts of training examples are not sent; texts = true allows it" in answer.reason
    assert site.tally.refused == {"texts": 1}
    if method == ARM:
        assert not site.protection.ledger(method, 0, world.names[0]).path.exists()


def test_without_public_texts_the_server_gets_no_labels(site_of, ask):
    with pytest.raises(ConfigError, match=r"set privacy\.texts_public = true"):
        ask(site_of(**{"privacy.texts_public": False}))


@pytest.mark.parametrize("method", [ARM, GRABBING])
def test_histories_of_customers_are_not_sent_nor_charged_for(world, site_of, ask, method):
    site = replace(site_of(method=method), task=replace(world.data.task, name="recommend"))
    answer = ask(site, arm=method)
    assert isinstance(answer, Refusal) and not Grabbing.got
    assert "rule texts: texts of task 'recommend' are histories of customers, which are not sent" in answer.reason
    if method == ARM:
        assert not site.protection.ledger(method, 0, world.names[0]).path.exists()
