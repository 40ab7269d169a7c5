"""The sentences say what the numbers say: the strictest useful promise, what is kept, and what chance may explain."""

import math
import re

import pytest

from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.findings import answer, audit_sentence, epsilon_text, odds_factor, sentences


@pytest.fixture
def results(finished):
    return results_table(finished.study, finished.cells, finished.places)


@pytest.fixture
def combinations(finished, results):
    return combinations_table(finished.study, results)


def told(text):
    """What a sentence claims: ε, scores with their intervals, shares, and how they stand to the server, in order."""
    plain = text.replace("\u202f", " ").replace("± ", "±").lower()
    score, claims = r"\d\.\d{4}(?: ±\d\.\d{4})?", r"nothing|(?:not )?above|below|better in|chance|without privacy"
    return re.findall(rf"ε = [\d.]+|{score}|\d+ %|{claims}", plain)


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (0.999, "1"), (7.992, "8"), (8.0, "8"), (8.01, "8.1"), (1.0, "1"), (0.1234, "0.13"), (12.3, "13"),
        (130.2, "140"), (math.inf, "∞"), (0.0, "0"), (math.nan, "unknown"), (None, "unknown"),
    ],
)  # fmt: skip
def test_an_epsilon_is_written_with_two_digits_and_never_too_small(epsilon, text):
    assert epsilon_text(epsilon) == text


@pytest.mark.parametrize(("epsilon", "text"), [(1.0, "2.72"), (8.0, "2,981"), (20.0, "4.9e+08"), (1e6, "1.0e+304")])
def test_the_odds_change_by_e_to_the_epsilon(epsilon, text):
    assert odds_factor(epsilon) == text


def test_the_answer_is_the_strictest_promise_that_still_beats_the_server(combinations):
    found = answer(combinations)
    assert told(found) == ["ε = 1", "0.9210 ±0.0050", "above", "0.9010"]
    assert "fedavg-kd · example" in found and "nDCG@10" in found


def test_each_series_is_told_from_no_privacy_to_the_strictest_promise(combinations):
    found = dict(sentences(combinations))
    assert list(found) == ["fedavg-kd · example", "fedavg-kd · merchant", "fedmd · example"]
    free, loose, strict = found["fedmd · example"].split(";")
    assert told(free) == ["without privacy", "0.9210 ±0.0050", "above", "0.9010"]
    assert told(loose) == ["ε = 8", "0.9143 ±0.0050", "67 %", "without privacy", "above"]
    assert told(strict) == ["ε = 1", "0.8910 ±0.0050", "nothing", "without privacy", "below"]


def test_a_difference_within_its_interval_is_called_chance(combinations):
    combinations["above_server_interval"] = 0.03
    assert "chance" in dict(sentences(combinations))["fedmd · example"]
    assert told(answer(combinations))[0] == "ε = 8"
    combinations["above_server_interval"] = 0.5
    assert told(answer(combinations)) == ["better in", "chance"]
    assert answer(combinations).startswith("At none")


def test_a_difference_that_is_not_significant_among_all_rows_may_be_chance(combinations):
    combinations["above_server_p"] = 0.6
    assert told(answer(combinations)) == ["better in", "chance"]
    found = dict(sentences(combinations))["fedmd · example"]
    assert "may differ from the server alone (0.9010) by chance (p = 0.600 among the rows of the table)" in found
    combinations["above_server_p"] = 0.04
    assert told(answer(combinations))[0] == "ε = 1"


def test_one_seed_is_said_to_be_one(combinations):
    combinations["above_server_interval"] = math.nan
    combinations["score_interval"] = math.nan
    found = dict(sentences(combinations))["fedmd · example"]
    assert told(found)[:4] == ["without privacy", "0.9210", "above", "0.9010"]
    assert "only seed" in found and "±" not in found


def test_without_controls_quality_alone_is_told(combinations):
    combinations[["above_server", "above_server_interval"]] = math.nan
    assert told(answer(combinations)) == ["ε = 1", "0.9210 ±0.0050"]
    assert "fedavg-kd · example" in answer(combinations)
    assert "server" not in dict(sentences(combinations))["fedmd · example"]


def test_without_a_budget_the_best_is_named(combinations):
    free = combinations[combinations["epsilon"] == "inf"]
    assert "fedavg-kd · example" in answer(free) and told(answer(free))[0].startswith("0.9510")


def test_an_unknown_epsilon_is_called_unknown(combinations):
    combinations["privacy.epsilon"] = math.nan
    combinations["privacy.unit"] = None
    assert "unknown ε" in dict(sentences(combinations))["fedmd · example"]


def test_nothing_finished_is_said(combinations):
    combinations["score"] = math.nan
    assert answer(combinations) == "No cell of this study has finished yet."
    assert sentences(combinations) == []


def test_attacks_that_prove_no_more_than_was_promised_are_told(results):
    found = audit_sentence(results)
    assert "WARNING" not in found
    assert re.findall(r"[\d.]*\d", found) == ["18", "0.40"]


def test_an_attack_that_proves_more_than_was_promised_is_a_warning(results):
    place = results.index[results["privacy.epsilon"].notna()][0]
    results.loc[place, "audit.epsilon_lower_bound"] = 50.0
    found = audit_sentence(results)
    assert found.startswith("WARNING") and "1 of 18" in found
    assert results.loc[place, "fingerprint"][:8] in found


def test_a_white_box_audit_that_exceeds_its_promise_is_a_warning(results):
    results["audit.white_box.exceeded"] = False
    results["audit.white_box.f_dp"] = 0.7
    assert "WARNING" not in audit_sentence(results) and "0.70" in audit_sentence(results)
    place = results.index[results["privacy.epsilon"].notna()][0]
    results.loc[place, "audit.white_box.exceeded"] = True
    assert audit_sentence(results).startswith("WARNING") and "1 of 18" in audit_sentence(results)


def test_a_bound_is_compared_with_the_accountant_at_the_same_delta(results):
    results["audit.epsilon_of_accountant"] = 60.0
    results["audit.epsilon_lower_bound"] = 50.0
    assert "18" in audit_sentence(results) and "WARNING" not in audit_sentence(results)


def test_without_attacks_nothing_is_claimed(results):
    results["audit.epsilon_lower_bound"] = math.nan
    assert audit_sentence(results) == ""
