"""The noise that the server adds is on what is merged, and each round's is its own."""

import json

import pytest
import torch

from fed_distill.config import FederationConfig, PrivacyConfig
from fed_distill.privacy.ledger import Ledgers
from fed_distill.transport.messages import PartialWeights, Uplink
from server.protection import counted_plainly, private_mean, vote_count

MERCHANT = {"privacy.unit": "merchant", "privacy.noise_multiplier": 0.5, "federation.aggregator": "fedavg"}


@pytest.fixture
def head_only(student):
    privacy = PrivacyConfig(unit="merchant", noise_multiplier=2.0, max_update_norm=0.5, freeze=["bag.*"])
    return private_mean(privacy, FederationConfig(participation=0.5), student, 40, (0, "arm"))


def test_what_is_frozen_is_neither_moved_nor_noised(head_only, student):
    current = {name: value.clone() for name, value in student.state_dict().items()}
    moved = head_only.average(current, [Uplink("a", 1, PartialWeights({"head.0.bias": current["head.0.bias"] + 1.0}))])
    assert all(torch.equal(moved[name], value) for name, value in current.items() if name.startswith("bag."))
    change = torch.cat([(moved[name] - current[name]).flatten() for name in current if name.startswith("head.")])
    assert float(change.std()) == pytest.approx(2.0 * 0.5 / 20, rel=0.2)


def test_answers_are_of_the_examples_asked_about_and_each_round_draws_its_own():
    privacy = PrivacyConfig(unit="vote", noise_multiplier=0.1, queries=30, answers=20, consensus=0.5)
    histogram = torch.tensor([[40, 0, 0]] * 100)
    found = [
        vote_count(privacy, FederationConfig(rounds=2), 40, 100, (0, "arm", number))(histogram) for number in (1, 2)
    ]
    assert [int((answers >= 0).sum()) for answers in found] == [20, 20]
    assert all(set(answers.tolist()) == {-1, 0} for answers in found)
    assert not torch.equal(*found)


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
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["privacy"]["unit"] == "merchant"
    assert "the server" in summary["privacy"]["trusted"]


def test_a_merchant_is_charged_for_all_rounds_at_its_first(tiny_experiment, simulate, tmp_path):
    experiment = tiny_experiment(tmp_path, {**MERCHANT, "federation.rounds": 3, "controls": ["server"]})
    folder, _ = simulate(experiment)
    ledgers = Ledgers(folder / "checkpoint" / "ledgers" / "seed-0" / "fedavg-kd")
    for merchant in ledgers.merchants():
        (entry,) = ledgers.of(merchant).entries()
        assert (entry.charge.unit, entry.charge.what, entry.charge.spends[0].steps) == ("merchant", "all rounds", 3)


def test_votes_alone_leave_a_merchant_of_pate(tiny_experiment, simulate, tmp_path):
    changes = {
        "privacy.unit": "vote",
        "privacy.epsilon": 50.0,
        "federation.method": "pate",
        "federation.options": {},
        "federation.aggregator": "fedavg",
        "controls": ["server"],
    }
    folder, wire = simulate(tiny_experiment(tmp_path, changes))
    assert wire
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["privacy"]["epsilon"] <= 50.0
    assert summary["privacy"]["reveals"][0]["what"] == "its student's votes on the proxy set"


def test_who_is_never_drawn_pays_too_since_its_coin_is_part_of_the_promise(tiny_experiment, simulate, tmp_path):
    changes = {**MERCHANT, "federation.participation": 0.2, "federation.rounds": 2, "controls": ["server"]}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    assert len(Ledgers(folder / "checkpoint" / "ledgers" / "seed-0" / "fedavg-kd").merchants()) == 5
