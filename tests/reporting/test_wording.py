"""Numbers and findings in words: what figures are told, and which claims are made."""

import re

import numpy as np
import pytest

from fed_distill.config.privacy import ExamplePrivacy, LabelPrivacy
from fed_distill.evaluation.shares import retention
from fed_distill.mechanisms.account import Spent, account
from fed_distill.mechanisms.lookup import mechanism
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.reporting.wording import (
    at_most,
    byzantine,
    count,
    duration,
    number,
    percent,
    plus_minus,
    privacy,
    size,
    verdict,
    weak_teacher,
)

MAIN = "fedavg-kd+fedsubavg"


def shares(text):
    """All per cents of a text, in order."""
    return re.findall(r"−?[\d.]+(?= %)", text.replace("\u202f", " "))


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (611_204, "611 kB"), (999_600, "1 MB"), (1_204_330, "1.2 MB"),
     (123_456_789, "123 MB"), (2.5e9, "2.5 GB"), (None, "–")],
)  # fmt: skip
def test_bytes_are_written_in_decimal_units(value, written):
    assert size(value).replace("\u202f", " ") == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (5.2e-5, "52 µs"),
        (0.0009997, "1 ms"),
        (0.9997, "1 s"),
        (7.9e-3, "7.9 ms"),
        (0.5, "500 ms"),
        (42, "42 s"),
        (141, "2.35 min"),
        (7200, "2 h"),
        (None, "–"),
    ],
)
def test_durations_are_written_in_the_unit_that_reads_best(value, written):
    assert duration(value).replace("\u202f", " ") == written


def test_numbers_that_are_not_defined_are_dashes():
    assert (number(None), percent(None), count(None), plus_minus(None)) == ("–", "–", "–", "")
    assert number(-0.5, 2) == "−0.50"
    assert percent(0.998, 1) == "99.8\u202f%"
    assert count(22_713_988.0) == "22,713,988"


def test_the_verdict_says_what_was_kept_and_gained(summary):
    row = summary["federations"][MAIN]
    row.update(retention=0.9991, gap_closed=0.8)
    row["interval"]["gap_closed"] = 0.11
    text = verdict(summary)
    assert shares(text) == ["99.9", "80", "11"]
    assert "31 merchants" in text and "nDCG@10" in text and "chance" not in text


def test_the_verdict_calls_a_gain_within_the_interval_chance(summary):
    row = summary["federations"][MAIN]
    row["gap_closed"], row["interval"]["gap_closed"] = 0.1, 0.2
    assert "within chance" in verdict(summary)
    assert shares(verdict(summary))[1:] == ["10", "20"]


def test_the_verdict_does_not_dress_up_a_loss(summary):
    row = summary["federations"][MAIN]
    row["gap_closed"], row["interval"]["gap_closed"] = -0.3, None
    assert "no better" in verdict(summary) and "gains" not in verdict(summary)
    assert len(shares(verdict(summary))) == 1  # what is kept of the teacher, and no gain


def test_the_verdict_says_why_there_is_no_gap(summary):
    row = summary["federations"][MAIN]
    row["gap_closed"] = None
    row["notes"] = {"gap_closed": "pooling all data (0.9) is no better than the server alone (0.9)"}
    assert "pooling all data (0.9) is no better than the server alone (0.9)" in verdict(summary)
    assert len(shares(verdict(summary))) == 1


@pytest.mark.parametrize(
    ("missing", "needed"),
    [
        (["local"], 'the control “each merchant alone” was not run (add "local" to controls)'),
        (
            ["local", "pooled"],
            'the controls “each merchant alone” and “all data pooled” were not run (add "local" and "pooled" to '
            "controls)",
        ),
        (
            ["server", "local", "pooled"],
            "the controls “server alone”, “each merchant alone” and “all data pooled” were not run "
            '(add "server", "local" and "pooled" to controls)',
        ),
    ],
)
def test_the_verdict_names_the_controls_that_were_not_run(summary, missing, needed):
    row = summary["federations"][MAIN]
    row["gap_closed"], row["notes"] = None, {"gap_closed": "needs the controls"}
    for name in missing:
        del summary["controls"][name]
    assert verdict(summary).endswith(f"The share of the possible gain is unknown: {needed}.")


@pytest.mark.parametrize(("suffix", "advised"), [("", True), ("-tiny", False), ("-tiny-2", False)])
def test_a_teacher_no_better_than_chance_is_compared_with_chance(summary, suffix, advised):
    summary["name"] += suffix
    row, metric = summary["federations"][MAIN], summary["headline"]
    summary["teacher"][metric] = 0.62
    row["retention"] = None
    row["notes"]["retention"] = retention([np.array([[0.7]])], 0.62, 0.65).reason
    text = weak_teacher(summary)
    assert text.startswith(
        "The teacher (0.6200) is no better than chance (0.6500): do not expect its soft labels to help."
    )
    assert ("teacher.steps" in text) is advised


def test_privacy_claims_no_more_than_there_was(summary):
    assert "run had no differential privacy" in privacy(summary)
    config = ExamplePrivacy(epsilon=3.0)
    summary["privacy"] = account(mechanism("example"), config, Spent(5, 2.99, 1e-5, 0.8, 1.25), (StudentUpdate,))
    told = privacy(summary)
    assert "any one example of a merchant" in told
    assert "ε = 2.99 at most, δ = 1e-05 at most, over all rounds and for each of 5 merchants" in told
    assert "Noise multipliers: 0.8 to 1.25, counted by the PLD accountant" in told
    assert "Trusted: the merchant itself, which adds noise before anything leaves it" in told


def test_randomized_labels_hide_labels_and_have_no_noise_multiplier(summary):
    config, spent = LabelPrivacy(epsilon=1.0, texts_public=True), Spent(5, 1.0, 0.0)
    summary["privacy"] = account(mechanism("label"), config, spent, (StudentUpdate,))
    assert summary["privacy"]["noise_multiplier"] == {"least": None, "most": None}
    told = privacy(summary)
    assert "hides the label of any one training example of a merchant, but not its texts" in told
    assert "ε = 1 at most and δ = 0" in told and "presence" not in told and "multiplier" not in told


def test_byzantine_merchants_and_their_attack_are_named_by_seed(summary):
    assert byzantine(summary) == ""
    summary["byzantine"] = {"attack": "scaled", "fraction": 0.3, "merchants": {"0": ["a", "b"], "1": ["b", "c"]}}
    text = byzantine(summary)
    assert shares(text) == ["30"] and "scaled" in text
    assert "seed 0: a, b" in text and "seed 1: b, c" in text


def test_a_run_from_before_there_were_attacks_says_nothing_of_them(summary):
    del summary["byzantine"]
    assert byzantine(summary) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.0049, "2.01"), (2.0, "2"), (1e-5, "1e-05"), (1.2349e-6, "1.24e-06"), (0.0, "0"), (12345.6, "1.24e+04")],
)
def test_a_guarantee_is_rounded_up(value, shown):
    assert at_most(value) == at_most(np.float64(value)) == shown
