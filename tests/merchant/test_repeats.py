"""Whatever repeats a release: an equal answer for nothing, or new noise and a new charge, or no answer.

A table of cases, each for both units whose noise merchants add and for sites with and without a secret. Two answers of
a case are compared with each other and with the ledger: no noise may be in both, and whatever left must have been paid.
"""

import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fed_distill.mechanisms.release
import fed_distill.merchant.answers
import fed_distill.privacy.ledger
from fed_distill.data.examples import Examples
from fed_distill.merchant.opening import open_site
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.privacy.dp_sgd import grid
from fed_distill.seeds import Keystream
from fed_distill.transport.requests import PROTOCOL, Refusal

NOISE = 50.0
LOUD = {
    "privacy.noise_multiplier": NOISE,
    "privacy.batch_size": 1000,
    "federation.rounds": 9,
    "training.merchants.optimizer": "sgd",
    "federation.options": {"local_epochs": 1, "proxy_steps": 0},
}
"""One step of all examples, in which noise is all but everything."""
SECRET = "5ec2e7" * 8


class Killed(BaseException):
    """Ends a process as a kill would: nothing catches it."""


@dataclass
class World:
    """What may be different when a merchant is asked once more, and what left it so far."""

    base: SimpleNamespace
    folder: object
    unit: str
    secret: str
    settings: dict
    data: dict
    request: object
    down: object
    name: str = "first"

    @property
    def merchant(self):
        return self.base.names[0]

    def site(self):
        places = {
            "runtime.folder": str(self.folder / "runs"),
            "privacy.ledger": str(self.folder / "ledgers"),
            "privacy.unit": self.unit,
            "name": self.name,
        }
        experiment = self.base.experiment.with_changes({**places, **self.settings})
        site = open_site(experiment, 0, 1, self.base.data, secret=self.secret)
        return self.base.having(site, self.data) if self.data else site

    def ask(self):
        (answer,) = self.site().train(self.request, self.down, {})
        return answer

    def paid(self):
        entries = self.site().protection.ledger("fedavg-kd", 0, self.merchant).entries()
        return [entry.charge for entry in entries if entry.charge.what == "training"]

    def change(self, **settings):
        self.settings = {**self.settings, **{key.replace("__", "."): value for key, value in settings.items()}}

    def own(self, change):
        whole = self.base.data.merchants[self.merchant]
        self.data = {self.merchant: replace(whole, train=change(whole.train))}


def weights(shift):
    def change(world):
        moved = {name: value + shift for name, value in world.down.weights.items()}
        world.down = world.down.having(StudentWeights(moved))

    return change


def asked(**changes):
    return lambda world: setattr(world, "request", replace(world.request, **changes))


def settings(**changes):
    return lambda world: world.change(**changes)


def relabelled(train):
    labels = train.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    return replace(train, labels=labels)


def regrouped(train):
    return replace(train, groups=np.roll(train.groups, 1))  # as many, of the same sizes


def another_row(train):
    return Examples.concatenate([train, train.take([0])])


def put_back(world):
    """The copy of the ledgers that was made before the first request, after one more was charged."""
    first, world.request = world.request, replace(world.request, learning_rate=0.05)
    world.ask()
    world.request = first
    put_back_one(world)


def put_back_one(world):
    """The copy that lacks the first request alone."""
    shutil.rmtree(world.folder / "ledgers")
    shutil.copytree(world.folder / "copy", world.folder / "ledgers")


def after(*changes):
    def all_of_them(world):
        for change in changes:
            change(world)

    return all_of_them


EQUAL, NEW, REFUSED = "equal", "new", "refused"
OTHER_RUN = {"": EQUAL, SECRET: NEW}
"""In a simulation noise is that of the seed; a site never draws it for a second training."""
LOST = {"": EQUAL, SECRET: NEW}
"""A simulation keeps no answers."""
CASES = {
    "nothing": (lambda world: None, EQUAL),
    "another run of equal settings": (lambda world: setattr(world, "name", "second"), OTHER_RUN),
    "the answers lost": (lambda world: shutil.rmtree(world.folder / "ledgers" / "answers", ignore_errors=True), LOST),
    "other weights, a millionth away": (weights(1e-6), NEW),
    "other weights": (weights(1e-2), NEW),
    "another round": (lambda world: setattr(world, "down", replace(world.down, round=2)), NEW),
    "another rate": (asked(learning_rate=0.02), NEW),
    "more rounds planned": (asked(rounds=(4,)), EQUAL),  # of a given noise multiplier nothing depends on them
    "scores wanted": (asked(test=True), NEW),
    "other noise": (settings(privacy__noise_multiplier=NOISE / 2), NEW),
    "a smaller clip": (settings(privacy__max_grad_norm=0.5), NEW),
    "a smaller batch": (settings(privacy__batch_size=8), NEW),
    "other noise on sizes": (settings(privacy__size_noise=5.0), NEW),
    "frozen weights": (settings(privacy__freeze=["head.*"]), NEW),
    "more local epochs": (settings(federation__options={"local_epochs": 2, "proxy_steps": 0}), NEW),
    "proxy steps": (settings(federation__options={"local_epochs": 1, "proxy_steps": 2}), NEW),
    "another optimizer": (settings(training__merchants__optimizer="adamw"), NEW),
    "weight decay": (settings(training__merchants__weight_decay=0.1), NEW),
    "a row more": (lambda world: world.own(another_row), NEW),
    "a row less": (lambda world: world.own(lambda train: train.take(range(1, len(train)))), NEW),
    "another label": (lambda world: world.own(relabelled), NEW),
    "another run of other settings": (
        after(lambda world: setattr(world, "name", "second"), settings(privacy__noise_multiplier=NOISE / 2)),
        NEW,
    ),
    "a ledger older by one charge": (put_back_one, EQUAL),
    "a ledger older by one charge, and another rate": (after(put_back_one, asked(learning_rate=0.02)), NEW),
    "an older ledger": (put_back, REFUSED),
    "no ledger": (lambda world: shutil.rmtree(world.folder / "ledgers"), REFUSED),
    "an older ledger and other weights": (after(put_back, weights(1e-2)), REFUSED),
    "an older ledger and another rate": (after(put_back, asked(learning_rate=0.02)), REFUSED),
}


@pytest.fixture
def make(world, tmp_path):
    def made(unit, secret):
        request = replace(world.request(world.names[0]), federation="")
        one = World(world, tmp_path, unit, secret, LOUD, {}, request, world.down())
        one.ask()  # so that there is a ledger to make a copy of
        shutil.copytree(tmp_path / "ledgers", tmp_path / "copy")
        one.request = replace(one.request, learning_rate=0.03)
        return one

    return made


def update_of(uplink):
    """How far the weights moved that are not in tables, and the rows of tables, by name."""
    return {name: value.flatten() for name, value in uplink.need(StudentUpdate).arrays.items()}


def correlation(one, other):
    shared = [name for name in one if name in other and one[name].shape == other[name].shape]
    assert shared
    pair = torch.stack([torch.cat([each[name] for name in shared]) for each in (one, other)])
    return float(torch.corrcoef(pair)[0, 1])


@pytest.mark.parametrize("secret", ["", SECRET], ids=["simulation", "site"])
@pytest.mark.parametrize("unit", ["example", "group"])
@pytest.mark.parametrize("name", CASES)
def test_a_release_that_is_repeated_is_equal_or_paid_and_new(make, name, unit, secret):
    change, expected = CASES[name]
    expected = expected if isinstance(expected, str) else expected[secret]
    world = make(unit, secret)
    first, paid = world.ask(), len(world.paid())
    change(world)
    second = world.ask()
    if expected == REFUSED:
        assert isinstance(second, Refusal)
        return
    moved = update_of(first), update_of(second)
    if expected == EQUAL:
        assert all(torch.equal(value, moved[1][one]) for one, value in moved[0].items())
        assert len(world.paid()) <= paid + 1  # another run pays again for what it has anyway
        return
    assert len(world.paid()) == paid + 1
    assert abs(correlation(*moved)) < 0.1


@pytest.mark.parametrize("secret", ["", SECRET], ids=["simulation", "site"])
@pytest.mark.parametrize("unit", ["example", "group"])
@pytest.mark.parametrize("instant", ["before the charge", "within the charge", "after the charge", "after the answer"])
def test_a_kill_at_any_instant_leaves_nothing_unpaid_and_no_noise_twice(make, monkeypatch, instant, unit, secret):
    world = make(unit, secret)
    before = len(world.paid())
    ledger, answers = fed_distill.privacy.ledger, fed_distill.merchant.answers
    module = answers if instant == "after the answer" else ledger
    whole, writes = module.write_atomic, []

    def killed(path, content, **how):
        writes.append(path)
        if instant == "before the charge" or (instant == "within the charge" and len(writes) == 2):
            raise Killed
        whole(path, content, **how)
        if instant == "after the answer" or (instant == "after the charge" and len(writes) == 2):
            raise Killed

    if instant == "after the answer" and not secret:
        pytest.skip("a simulation keeps no answers")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, "write_atomic", killed)
        world.ask()
    assert len(world.paid()) == before + (instant != "before the charge")
    again = world.ask()
    assert len(world.paid()) == before + 1
    world.request = replace(world.request, learning_rate=0.04)
    other = world.ask()
    assert len(world.paid()) == before + 2
    assert abs(correlation(update_of(again), update_of(other))) < 0.1


@pytest.mark.parametrize("secret", ["", SECRET], ids=["simulation", "site"])
def test_an_answer_at_another_price_is_another_release(make, secret):
    """How many rounds are planned decides how much noise a target epsilon asks for: were it the same noise times
    another number, two answers would give the update away."""
    world = make("example", secret)
    world.name = "target"
    world.change(privacy__noise_multiplier=None, privacy__epsilon=0.5)
    first, paid = world.ask(), world.paid()
    world.name, world.request = "target-of-more-rounds", replace(world.request, rounds=(9,))
    second = world.ask()
    assert world.paid()[-1].spends[0].noise_multiplier > 2.0 * paid[-1].spends[0].noise_multiplier
    assert len(world.paid()) == len(paid) + 1
    assert abs(correlation(update_of(first), update_of(second))) < 0.1


def test_an_answer_in_another_protocol_is_another_release(make, monkeypatch):
    """What travels is computed otherwise: of the same noise the difference of both would be of rounding alone."""
    world = make("example", SECRET)
    first, paid = world.ask(), len(world.paid())
    monkeypatch.setattr(fed_distill.mechanisms.digests, "PROTOCOL", PROTOCOL - 1)
    second = world.ask()
    assert len(world.paid()) == paid + 1
    assert abs(correlation(update_of(first), update_of(second))) < 0.1


@pytest.mark.parametrize("unit", ["example", "group"])
def test_other_groups_are_another_release(make, unit):
    world = make(unit, SECRET)
    first, paid = world.ask(), len(world.paid())
    world.own(regrouped)
    second = world.ask()
    changed = unit == "group"
    assert len(world.paid()) == paid + changed
    assert (abs(correlation(update_of(first), update_of(second))) < 0.1) == changed


def shouted(examples):
    """Other texts, which a student encodes alike."""
    texts, pairs = (tuple(text.upper() for text in side) for side in (examples.texts, examples.pairs))
    assert texts != examples.texts
    return replace(examples, texts=texts, pairs=pairs)


@pytest.mark.parametrize("whose", ["the proxy set", "the merchant"])
def test_other_texts_of_an_equal_encoding_are_another_release(make, whose):
    """How close a merchant is to the proxy set (``expert-fd``) is computed from the texts, not from the encoding."""
    world = make("example", SECRET)
    first, paid, site = world.ask(), len(world.paid()), world.site()
    if whose == "the merchant":
        world.own(shouted)
        second = world.ask()
    else:
        student, before = site.holdings.student(world.request.global_blueprint), site.holdings.proxy
        encoded = student.encode(before.texts, before.pairs)
        site.holdings.proxy = shouted(before)
        again = student.encode(site.holdings.proxy.texts, site.holdings.proxy.pairs)
        assert all(torch.equal(values, again[name]) for name, values in encoded.items())
        (second,) = site.train(world.request, world.down, {})
    assert len(world.paid()) == paid + 1
    assert abs(correlation(update_of(first), update_of(second))) < 0.1


@pytest.mark.parametrize("unit", ["example", "group"])
def test_who_knows_the_seed_takes_the_noise_off_a_simulation_and_not_off_a_site(make, unit):
    """The attack: all that a request has is known, so is the ledger, and the noise is drawn again from the run's seed.
    It finds the noise of a simulation, as its report says, and of a site that has a secret nothing."""
    found = {}
    for secret in ("", SECRET):
        world = make(unit, secret)
        start, answer = world.down.weights, world.ask()
        digest = world.paid()[-1].request
        moved = update_of(answer)
        trained = [name for name, value in world.base.student.named_parameters() if name in moved]
        rows = answer.need(StudentUpdate).rows
        sizes = {name: len(moved[name]) for name in trained}
        names = (0, "fedavg-kd", world.merchant, 1, digest, "noise", 0)
        drawn = Keystream(*names).normal(sum(size - _padding(rows, name, start) for name, size in sizes.items()))
        guessed = torch.cat([_unpadded(moved, rows, name, start) for name in trained])
        found[secret] = float(torch.corrcoef(torch.stack([guessed.double(), drawn]))[0, 1])
        shutil.rmtree(world.folder / "copy")
        shutil.rmtree(world.folder / "ledgers")
        shutil.rmtree(world.folder / "ledgers.newest")
    assert abs(found[""]) > 0.99
    assert abs(found[SECRET]) < 0.1


def _padding(rows, name, start):
    return start[name].shape[1:].numel() if name in rows else 0


def _unpadded(moved, rows, name, start):
    return moved[name][_padding(rows, name, start) :]


def test_the_grid_is_finer_than_what_is_compared(world):
    assert grid(NOISE) < NOISE / 1000
