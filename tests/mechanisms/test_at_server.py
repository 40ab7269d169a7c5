"""The noise that the server adds is on what is merged, each release's is its own, and the seed does not tell it."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from safetensors.torch import load_file

from fed_distill import seeds
from fed_distill.aggregation.votes import counted_plainly
from fed_distill.config import FederationConfig
from fed_distill.config.privacy import MerchantPrivacy, VotePrivacy
from fed_distill.coordinator import rounds
from fed_distill.coordinator.released import RELEASED, Released
from fed_distill.errors import CheckpointError
from fed_distill.experiment import comparison
from fed_distill.experiment.identities import Identities
from fed_distill.mechanisms.base import NoiseSource, Terms
from fed_distill.mechanisms.merchant import ByMerchant
from fed_distill.mechanisms.vote import ByVote
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.store import read_summary
from fed_distill.seeds import Keystream
from fed_distill.transport.messages import Uplink
from fed_distill.transport.requests import JOIN, TRAIN

MERCHANT = {"privacy.unit": "merchant", "privacy.noise_multiplier": 0.5, "federation.aggregator": "fedavg"}
VOTE = {
    "privacy.unit": "vote",
    "privacy.noise_multiplier": 2.0,
    "federation.method": "pate",
    "federation.options": {},
    "federation.aggregator": "fedavg",
}
QUIET = {"controls": [], "adaptation.enabled": False}
SECRET = "5e4be4" * 10
SOURCE = NoiseSource((SECRET, "arm", "federation"), reproducible=False)
SIMULATED = NoiseSource((0, "arm", "federation"), reproducible=True)


def others(source):
    """The same but for one thing."""
    secret, arm, federation = source.name
    return {
        "secret": replace(source, name=(f"{secret}x", arm, federation)),
        "arm": replace(source, name=(secret, "another arm", federation)),
        "federation": replace(source, name=(secret, arm, "another federation")),
    }


@pytest.fixture
def mean_of(student):
    """A function (noise source, other settings) -> the aggregator of unit merchant; only the head is trained."""

    def made(source=SOURCE, **changes):
        settings = {"noise_multiplier": 2.0, "max_update_norm": 0.5, "freeze": ["bag.*"], **changes}
        privacy = MerchantPrivacy(**settings)
        terms = Terms(privacy, FederationConfig(participation=0.5), 40, 100)
        return ByMerchant("merchant", privacy).aggregator(terms, student, source)

    return made


@pytest.fixture
def released(student):
    """A function (aggregator, shift, merchant) -> how far its next mean of one update moves the head."""
    current = {name: value.clone() for name, value in student.state_dict().items()}

    def moved(mean, shift=1.0, merchant="a"):
        sent = PartialWeights({"head.0.bias": torch.full_like(current["head.0.bias"], shift)})
        after = mean.average(current, [Uplink(merchant, 1, (StudentUpdate.of(sent),))])
        assert all(torch.equal(after[name], value) for name, value in current.items() if name.startswith("bag."))
        return torch.cat([(after[name] - current[name]).flatten() for name in sorted(current) if "head." in name])

    return moved


def correlation(one, other):
    return abs(float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1]))


def test_what_is_frozen_is_neither_moved_nor_noised(mean_of, released):
    change = released(mean_of())
    assert float(change.std()) == pytest.approx(2.0 * 0.5 / 20, rel=0.2)


@pytest.mark.parametrize("source", [SOURCE, SIMULATED], ids=["secret", "simulation"])
def test_an_equal_sum_has_an_equal_release_and_anything_else_other_noise(mean_of, released, source):
    first = released(mean_of(source))
    assert torch.equal(released(mean_of(source)), first)
    twice = mean_of(source)
    released(twice)
    later = {
        "another round": released(twice),
        "another norm": released(mean_of(source, max_update_norm=0.25)),
        "other noise": released(mean_of(source, noise_multiplier=1.0)),
        "another merchant": released(mean_of(source), merchant="b"),
        **{name: released(mean_of(other)) for name, other in others(source).items()},
    }
    if not source.reproducible:
        later["another sum"] = released(mean_of(source), shift=1.0 + 1e-3)
    for name, change in later.items():
        if name != "another merchant" or source.reproducible:  # a name alone changes no sum
            assert correlation(first, change) < 0.3, name


def test_who_knows_the_seed_takes_the_noise_off_a_simulation_alone(mean_of, released, student):
    """The attack: settings, names and the run's seed are known, and the noise is drawn again. Of a simulation it leaves
    the exact clipped mean, as the report says, and of a server with a secret nothing."""
    sizes = [value.numel() for name, value in sorted(student.state_dict().items()) if "head." in name]
    left = {}
    for source in (SIMULATED, SOURCE):
        mean = mean_of(source)
        known = hashlib.sha256(repr((mean.noise_multiplier, mean.expected_merchants, mean.clip_norm)).encode())
        known.update(repr(["a"]).encode())
        guess = Keystream(0, *source.name[1:], "merchant noise", 1, known.digest())
        noise = torch.cat([guess.normal(size) for size in sizes]) * 2.0 * 0.5
        left[source.reproducible] = float((released(mean).double() * mean.expected_merchants - noise).norm())
    assert left[True] == pytest.approx(0.5, rel=0.02)  # the norm that it was clipped to
    assert left[False] > 5.0


VOTES = torch.tensor([[40, 0, 0]] * 100)
ASKED = VotePrivacy(noise_multiplier=8.0, queries=60, answers=60, consensus=0.01)
"""Noise enough to change answers, and a threshold that all reach."""


def answers(source=SOURCE, round=1, votes=VOTES, privacy=ASKED):
    return ByVote("vote", privacy).tally(Terms(privacy, FederationConfig(rounds=2), 40, 100), source, round)(votes)


def test_answers_are_of_the_examples_asked_about_and_each_round_draws_its_own():
    privacy = VotePrivacy(noise_multiplier=0.1, queries=30, answers=20, consensus=0.5)
    found = [answers(SOURCE, number, privacy=privacy) for number in (1, 2)]
    assert [int((one >= 0).sum()) for one in found] == [20, 20]
    assert all(set(one.tolist()) == {-1, 0} for one in found)
    assert not torch.equal(*found)


@pytest.mark.parametrize("source", [SOURCE, SIMULATED], ids=["secret", "simulation"])
def in_order(found, source, round):
    """Answers in the order in which noise was drawn for them, which is another in each round."""
    return found[torch.randperm(100, generator=seeds.torch_stream(*source.name, "queries", round))]


@pytest.mark.parametrize("source", [SOURCE, SIMULATED], ids=["secret", "simulation"])
def test_the_noise_on_votes_is_of_one_round_federation_and_secret(source):
    """Where all votes are alike, the winners are noise alone: of 60 answers 40 differ by chance."""
    even = torch.full((100, 3), 13)
    everything = ASKED.model_copy(update={"queries": None})

    def told(source=source, round=1, votes=even, noise=8.0):
        privacy = everything.model_copy(update={"noise_multiplier": noise})
        return in_order(answers(source, round, votes, privacy), source, round)

    first = told()
    assert torch.equal(told(), first)
    later = {
        "another round": told(round=2),
        "other noise": told(noise=4.0),
        **{name: told(other) for name, other in others(source).items()},
    }
    if not source.reproducible:
        one_more = even.clone()
        one_more[0, 0] += 1
        later["another vote"] = told(votes=one_more)
    for name, found in later.items():
        both = (first >= 0) & (found >= 0)
        assert int(both.sum()) >= 20, name
        assert float((first[both] == found[both]).float().mean()) < 0.65, name


def test_plain_counts_answer_where_anybody_voted():
    assert counted_plainly(torch.tensor([[1, 3], [0, 0], [2, 2]])).tolist() == [1, -1, 0]


def test_merchants_are_drawn_by_coins_and_a_round_without_any_is_noise_alone(tiny_experiment, simulate, tmp_path):
    changes = {**MERCHANT, "federation.participation": 0.2, "federation.rounds": 6, "controls": ["server"]}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = [line["merchants"] for line in lines]
    assert len(counts) == 6
    assert 0 in counts
    assert len(set(counts)) > 1
    summary = read_summary(folder)
    assert summary["privacy"]["unit"] == "merchant"
    assert "the server" in summary["privacy"]["trusted"]


def asked_of(wire, arm):
    """Which merchants were asked in each of an arm's rounds."""
    rounds = {}
    for kind, request, _ in wire:
        content = recorddict_from_proto(Proto.FromString(request))
        if kind == TRAIN and content["request"]["arm"] == arm:
            rounds.setdefault(int(content["down"]["round"]), set()).update(content["request"]["merchants"])
    return rounds


def test_who_is_drawn_depends_on_the_servers_secret(tiny_experiment, simulate, tmp_path):
    """The promise counts on coins that nobody else knows; those of the run's seed everybody could toss."""
    changes = {**MERCHANT, **QUIET, "federation.participation": 0.5, "federation.rounds": 8}
    drawn = {}
    for name, secret in (("plain", ""), ("same", ""), ("one", SECRET), ("other", "0" * 64)):
        _, grid = simulate(tiny_experiment(tmp_path, {**changes, "name": name}), secret=secret)
        drawn[name] = asked_of(grid.wire, "fedavg-kd")
    assert drawn["plain"] == drawn["same"]
    assert len({str(sorted((key, sorted(value)) for key, value in one.items())) for one in drawn.values()}) == 3


def ledgers_of(folder, arm):
    return Ledgers(folder / "checkpoint" / "ledgers" / "seed-0" / arm)


@pytest.mark.parametrize(("unit", "arm", "spends"), [(MERCHANT, "fedavg-kd", 1), (VOTE, "pate", 2)])
def test_a_merchant_is_charged_for_all_rounds_at_its_first(tiny_experiment, simulate, tmp_path, unit, arm, spends):
    experiment = tiny_experiment(tmp_path, {**unit, "federation.rounds": 3, **QUIET})
    folder, _ = simulate(experiment)
    ledgers = ledgers_of(folder, arm)
    assert len(ledgers.merchants()) == 5
    for merchant in ledgers.merchants():
        (entry,) = ledgers.of(merchant).entries()
        assert (entry.charge.unit, entry.charge.what) == (unit["privacy.unit"], "all rounds")
        assert len(entry.charge.spends) == spends
        assert all(spend.steps % 3 == 0 for spend in entry.charge.spends)


def uplink_parts(wire, arm):
    """Names of the records that merchants sent in an arm's rounds."""
    names = set()
    for kind, request, reply in wire:
        if kind == TRAIN and recorddict_from_proto(Proto.FromString(request))["request"]["arm"] == arm:
            names |= {name.partition("/")[2] for name in recorddict_from_proto(Proto.FromString(reply)) if "/" in name}
    return names


def test_votes_alone_leave_a_merchant_of_pate(tiny_experiment, simulate, tmp_path):
    folder, grid = simulate(tiny_experiment(tmp_path, {**VOTE, **QUIET}))
    assert uplink_parts(grid.wire, "pate") == {"up", "up.metrics", "up.votes"}
    summary = read_summary(folder)
    assert summary["privacy"]["epsilon"] > 0.0
    assert summary["privacy"]["reveals"][0]["what"] == "its student's votes on the proxy set"


def test_who_is_never_drawn_pays_too_since_its_coin_is_part_of_the_promise(tiny_experiment, simulate, tmp_path):
    changes = {**MERCHANT, "federation.participation": 0.2, "federation.rounds": 2, "controls": ["server"]}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    assert len(ledgers_of(folder, "fedavg-kd").merchants()) == 5


@pytest.mark.parametrize(("unit", "arm"), [(MERCHANT, "fedavg-kd"), (VOTE, "pate")])
def test_the_servers_secret_decides_its_noise_and_is_nowhere_to_be_read(tiny_experiment, simulate, tmp_path, unit, arm):
    found, wires = {}, []
    for name, secret in (("plain", ""), ("one", SECRET), ("other", "0" * 64)):
        folder, grid = simulate(tiny_experiment(tmp_path, {**unit, **QUIET, "name": name}), secret=secret)
        found[name] = load_file(next((folder / "checkpoint" / "seed-0").glob("federations/*/final.safetensors")))
        wires += [request + reply for _, request, reply in grid.wire]
        assert read_summary(folder)["privacy"]["reproducible_noise"] == (not secret)
    for one, other in (("plain", "one"), ("plain", "other"), ("one", "other")):
        assert any(not torch.equal(value, found[other][key]) for key, value in found[one].items()), (one, other)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert wires and written
    assert not any(SECRET.encode() in content for content in (*wires, *written))


@pytest.mark.parametrize("unit", [MERCHANT, VOTE], ids=["merchant", "vote"])
def test_a_federations_name_is_not_what_hides_its_noise(tiny_experiment, simulate, tmp_path, monkeypatch, unit):
    """Requests name the federation: with the same name, the secret alone makes the difference."""
    monkeypatch.setattr(Identities, "of", lambda *_: "known")
    monkeypatch.setattr(Released, "note", lambda *_: None)
    found = []
    for name, secret in (("one", SECRET), ("again", SECRET), ("other", "0" * 64)):
        folder, _ = simulate(tiny_experiment(tmp_path, {**unit, **QUIET, "name": name}), secret=secret)
        found.append((folder / "student" / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("unit", "arm"), [(MERCHANT, "fedavg-kd"), (VOTE, "pate")])
def test_a_federation_that_is_run_again_is_free_if_it_is_equal_and_paid_if_it_is_not(
    tiny_experiment, simulate, tmp_path, unit, arm
):
    """Against one ledger, in a simulation: (changes, how many charges a merchant has then)."""
    shared = {"privacy.ledger": str(tmp_path / "ledgers"), **unit, **QUIET, "federation.rounds": 1}
    rows = {"data.options": {"merchants": 8, "rows": 44, "size_spread": 0.4}}
    again = [
        ({}, 1),
        ({"runtime.trainer": "sequential"}, 1),
        ({"training.merchants.learning_rate": 0.02}, 2),
        ({"privacy.noise_multiplier": 3.0}, 3),
        ({"training.server.epochs": 2}, 4),
        (rows, 5),
        ({"seed": 1}, 6),
        ({}, 6),
    ]
    students = []
    for changes, charges in again:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        folder, _ = simulate(tiny_experiment(tmp_path / "runs", {**shared, **changes}))
        students.append(next(folder.glob("checkpoint/seed-*/federations/*/final.safetensors")).read_bytes())
        ledgers = Ledgers(tmp_path / "ledgers")
        assert max(len(ledgers.of(name).entries()) for name in ledgers.merchants()) == charges
    assert students[0] == students[-1]
    assert len(set(students)) >= 6


def test_a_real_federation_that_is_run_again_is_another_one(tiny_experiment, simulate, tmp_path):
    """With a secret the server knows nobody's data: what is not resumed is paid anew, and its noise is new."""
    shared = {"privacy.ledger": str(tmp_path / "ledgers"), **MERCHANT, **QUIET}
    students = []
    for charges in (1, 2):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        folder, _ = simulate(tiny_experiment(tmp_path / "runs", shared), secret=SECRET)
        students.append((folder / "student" / "model.safetensors").read_bytes())
        ledgers = Ledgers(tmp_path / "ledgers")
        assert [len(ledgers.of(name).entries()) for name in ledgers.merchants()] == [charges] * 5
    assert students[0] != students[1]


class Killed(BaseException):
    """Ends a process as a kill would: nothing catches it."""


@pytest.mark.parametrize("unit", [MERCHANT, VOTE], ids=["merchant", "vote"])
@pytest.mark.parametrize(
    "instant", ["before the checkpoint", "after the checkpoint", "after the note", "after the line"]
)
def test_killed_within_a_round_a_real_federation_resumes_to_the_same_and_is_paid_once(
    tiny_experiment, simulate, tmp_path, monkeypatch, unit, instant
):
    """Nothing of a round is told before its checkpoint is written, so that no noise is drawn for a second sum."""
    changes = {**unit, **QUIET, "federation.rounds": 3, "privacy.ledger": str(tmp_path / "ledgers")}
    experiment = tiny_experiment(tmp_path / "runs", changes)
    keep, note, append = (
        rounds.keep,
        Released.note,
        comparison.RunStore.append,
    )
    calls = []

    def dying(call, when):
        def called(*arguments):
            calls.append(when)
            second = calls.count(when) == 2 and instant.endswith(when)
            if second and instant.startswith("before"):
                raise Killed
            result = call(*arguments)
            if second:
                raise Killed
            return result

        return called

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rounds, "keep", dying(keep, "the checkpoint"))
        patch.setattr(Released, "note", dying(note, "the note"))
        patch.setattr(comparison.RunStore, "append", dying(append, "the line"))
        simulate(experiment, secret=SECRET)
    folder, _ = simulate(experiment.with_changes({"runtime.resume": True}), secret=SECRET)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    ledgers = Ledgers(tmp_path / "ledgers")
    assert [len(ledgers.of(name).entries()) for name in ledgers.merchants()] == [1] * 5


def test_an_older_checkpoint_is_not_gone_on_from(tiny_experiment, simulate, tmp_path, monkeypatch):
    experiment = tiny_experiment(tmp_path, {**MERCHANT, **QUIET, "federation.rounds": 3})
    folder = tmp_path / experiment.name
    keep = rounds.keep

    def kept(part, *rest):
        keep(part, *rest)
        shutil.copy(part.rounds, tmp_path / f"{rest[-1].state.round}")

    monkeypatch.setattr(rounds, "keep", kept)
    simulate(experiment, secret=SECRET)
    federation = folder / "checkpoint" / "seed-0" / "federations" / "fedavg-kd"
    for name in ("outcome.json", "final.safetensors"):
        (federation / name).unlink()
    for older in (1, 0):
        checkpoint = federation / "rounds.safetensors"
        checkpoint.unlink()
        if older:
            shutil.copy(tmp_path / f"{older}", checkpoint)
        with pytest.raises(CheckpointError, match=f"released round 3, but its checkpoint is of round {older}"):
            simulate(experiment.with_changes({"runtime.resume": True}), secret=SECRET)


def test_a_round_that_is_published_on_resume_is_noted(tiny_experiment, simulate, tmp_path, monkeypatch):
    """Killed between the checkpoint of the last round and its note, a run publishes that round when it is resumed."""
    experiment = tiny_experiment(tmp_path, {**MERCHANT, **QUIET, "federation.rounds": 2})
    keep, part = rounds.keep, []

    def kept(one, *rest):
        keep(one, *rest)
        part[:] = [one]
        if rest[-1].state.round == 2:
            raise Killed
        shutil.copy(one.rounds, tmp_path / "older")

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rounds, "keep", kept)
        simulate(experiment, secret=SECRET)
    resumed = experiment.with_changes({"runtime.resume": True})
    simulate(resumed, secret=SECRET)
    federation = tmp_path / experiment.name / "checkpoint" / "seed-0" / "federations" / "fedavg-kd"
    for name in ("outcome.json", "final.safetensors"):
        (federation / name).unlink()
    shutil.copy(tmp_path / "older", part[0].rounds)
    with pytest.raises(CheckpointError, match="released round 2, but its checkpoint is of round 1"):
        simulate(resumed, secret=SECRET)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"seed 0, fedavg-kd": {"round": 1}}'])
def test_an_account_of_releases_that_cannot_be_read_ends_the_run(tmp_path, content):
    (tmp_path / RELEASED).write_text(content)
    with pytest.raises(CheckpointError, match="released rounds are unknown"):
        Released(tmp_path / RELEASED).check("seed 0, fedavg-kd", 1)


def test_a_request_that_names_no_federation_is_not_paid_for(tiny_experiment, simulate, tmp_path, monkeypatch):
    monkeypatch.setattr(Identities, "of", lambda *_: "")
    folder = tmp_path / "tiny"
    with pytest.raises(Exception, match="round 1: only 0 of 5 merchants can be merged"):
        simulate(tiny_experiment(tmp_path, {**MERCHANT, **QUIET}))
    assert not ledgers_of(folder, "fedavg-kd").files()


def test_merchants_are_asked_to_pay_before_the_first_round(tiny_experiment, simulate, tmp_path):
    _, grid = simulate(tiny_experiment(tmp_path, {**MERCHANT, **QUIET}))
    kinds = [kind for kind, _, _ in grid.wire]
    assert kinds.index(JOIN) < kinds.index(TRAIN)
