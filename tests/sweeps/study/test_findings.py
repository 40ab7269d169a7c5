"""The sentences say what the numbers say: the strictest useful promise, what is kept, and what chance may explain."""

import math

import pytest

from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.findings import answer, audit_sentence, epsilon_text, odds_factor, sentences


@pytest.fixture
def results(finished):
    return results_table(finished.study, finished.cells, finished.places)


@pytest.fixture
def combinations(finished, results):
    return combinations_table(finished.study, results)


def plain(text):
    return text.replace("\u202f", " ").replace("± ", "±")


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
    assert plain(answer(combinations)) == (
        "The strictest promise at which a student still beats the one that the server trains alone is ε = 1: there "
        "fedavg-kd · example reaches 0.9210 ±0.0050 nDCG@10 and is above the server alone (0.9010)."
    )


def test_each_series_is_told_from_no_privacy_to_the_strictest_promise(combinations):
    found = {series: plain(sentence) for series, sentence in sentences(combinations)}
    assert list(found) == ["fedavg-kd · example", "fedavg-kd · merchant", "fedmd · example"]
    assert found["fedmd · example"] == (
        "Without privacy it reaches 0.9210 ±0.0050 nDCG@10 and is above the server alone (0.9010); "
        "at ε = 8 it reaches 0.9143 ±0.0050, keeps 67 % of the gain that there is without privacy, and is above the "
        "server alone; at ε = 1 it reaches 0.8910 ±0.0050, keeps nothing of the gain that there is without privacy, "
        "and is below the server alone."
    )


def test_a_difference_within_its_interval_is_called_chance(combinations):
    combinations["above_server_interval"] = 0.03
    assert (
        "cannot be told from the server alone by more than chance" in dict(sentences(combinations))["fedmd · example"]
    )
    assert "ε = 8: there fedavg-kd · example" in answer(combinations)
    combinations["above_server_interval"] = 0.5
    assert answer(combinations) == (
        "At none of the privacy budgets does a student beat the one that the server trains alone in nDCG@10 beyond "
        "chance: too little of the merchants' help is left."
    )


def test_one_seed_is_said_to_be_one(combinations):
    combinations["above_server_interval"] = math.nan
    combinations["score_interval"] = math.nan
    found = dict(sentences(combinations))["fedmd · example"]
    assert found.startswith(
        "Without privacy it reaches 0.9210 nDCG@10 and is above the server alone (0.9010) on the only"
    )


def test_without_controls_quality_alone_is_told(combinations):
    combinations[["above_server", "above_server_interval"]] = math.nan
    assert plain(answer(combinations)) == (
        "At the strictest promise, ε = 1, fedavg-kd · example reaches 0.9210 ±0.0050 nDCG@10."
    )
    assert "server" not in dict(sentences(combinations))["fedmd · example"]


def test_without_a_budget_the_best_is_named(combinations):
    free = combinations[combinations["epsilon"] == "inf"]
    assert answer(free).startswith("Best of what was compared, fedavg-kd · example reaches 0.9510")


def test_an_unknown_epsilon_is_called_unknown(combinations):
    combinations["privacy.epsilon"] = math.nan
    combinations["privacy.unit"] = None
    assert "At an unknown ε it reaches" in dict(sentences(combinations))["fedmd · example"]


def test_nothing_finished_is_said(combinations):
    combinations["score"] = math.nan
    assert answer(combinations) == "No cell of this study has finished yet, so there is nothing to tell."
    assert sentences(combinations) == []


def test_attacks_that_prove_no_more_than_was_promised_are_told(results):
    assert audit_sentence(results) == (
        "18 private cells were attacked. In none of them did an attack prove a larger ε than was promised: the largest "
        "lower bound is 0.40."
    )


def test_an_attack_that_proves_more_than_was_promised_is_a_warning(results):
    place = results.index[results["privacy.epsilon"].notna()][0]
    results.loc[place, "audit.epsilon_lower_bound"] = 50.0
    found = audit_sentence(results)
    assert found.startswith("WARNING: in 1 of 18 attacked cells an attack proved a larger ε than was promised")
    assert results.loc[place, "fingerprint"][:8] in found


def test_a_white_box_audit_that_exceeds_its_promise_is_a_warning(results):
    results["audit.white_box.exceeded"] = False
    results["audit.white_box.f_dp"] = 0.7
    assert audit_sentence(results).endswith("the largest lower bound is 0.70.")
    place = results.index[results["privacy.epsilon"].notna()][0]
    results.loc[place, "audit.white_box.exceeded"] = True
    assert audit_sentence(results).startswith("WARNING: in 1 of 18 attacked cells")


def test_a_bound_is_compared_with_the_accountant_at_the_same_delta(results):
    results["audit.epsilon_of_accountant"] = 60.0
    results["audit.epsilon_lower_bound"] = 50.0
    assert audit_sentence(results).startswith("18 private cells were attacked. In none of them")


def test_without_attacks_nothing_is_claimed(results):
    results["audit.epsilon_lower_bound"] = math.nan
    assert audit_sentence(results) == ""
