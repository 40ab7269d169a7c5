"""The account of a campaign's effect: estimates cover generated truths, and say nothing where there is nothing."""

import json

import numpy as np
import pytest

from fed_distill.data.campaign_cells import cell_of, cells
from fed_distill.data.examples import Examples
from fed_distill.reporting.campaign_effect import as_json, as_table, campaign_effect

KINDS = ("green tea", "soap", "jam")
WITHOUT, TREATED = np.array([0.1, 0.8, 0.2]), np.array([0.7, 0.8, 0.1])
SENT = np.array([0.2, 0.8, 0.5])
"""Of those who buy anyway, most are treated."""


def generated(count: int, seed: int, confounded: bool):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=count)
    e = SENT[kinds] if confounded else np.full(count, 0.5)
    treated = rng.random(count) < e
    bought = rng.random(count) < np.where(treated, TREATED[kinds], WITHOUT[kinds])
    texts = tuple(KINDS[kind] for kind in kinds)
    test = Examples(texts, ("week",) * count, cell_of(treated, bought), np.arange(count), ("shop",) * count)
    predicted = cells(e, WITHOUT[kinds], TREATED[kinds])
    return test, predicted, dict(enumerate((TREATED - WITHOUT)[kinds].tolist()))


@pytest.fixture(scope="module", params=[False, True], ids=["random", "confounded"])
def account(request):
    test, predicted, true = generated(3000, 1, request.param)
    return request.param, campaign_effect(test, predicted, predicted[::-1], true, 0)


def within(row) -> bool:
    return row["low"] <= row["true"] <= row["high"]


def test_the_average_and_most_tenths_are_within_their_intervals(account):
    confounded, found = account
    assert within(found["average"])
    assert sum(map(within, found["tenths"])) >= 8  # of ten intervals of 95 %
    true = found["average"]["true"]
    assert (abs(found["customers"]["difference"] - true) > 0.1) == confounded


def test_the_right_ranking_is_above_response_random_and_shuffled_ones(account):
    _, found = account
    targeting = found["targeting"]
    assert all(row["low"] > 0 for row in targeting["qini_above"].values())
    rankings = targeting["rankings"]
    assert rankings["student"] == rankings["true"]  # equal orders
    assert rankings["random"]["qini"]["value"] == 0.0
    assert rankings["random"]["auuc"]["value"] == pytest.approx(rankings["random"]["uplift_at_10"]["value"] / 2)
    assert rankings["teacher"]["qini"]["high"] < rankings["student"]["qini"]["low"]
    assert rankings["student"]["uplift_at_30"]["value"] == pytest.approx(0.6, abs=0.07)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Ten trials: fewer than seven of their intervals of 95 % cover in one draw of a thousand."""
    drawn = [generated(300, seed, True) for seed in range(10)]
    averages = [campaign_effect(test, predicted, None, true, 0)["average"] for test, predicted, true in drawn]
    assert sum(map(within, averages)) >= 7


def test_both_files_have_all_of_it(account):
    _, found = account
    assert json.loads(as_json(found))["overlap"]["effective"][0] > 0
    table = as_table(found)
    assert table.count("\n") > 30 and "true effect" in table and "Clipped propensities: " in table


def test_without_truth_teacher_or_a_second_arm():
    test, predicted, _ = generated(300, 0, False)
    found = campaign_effect(test, predicted, None, None, 0)
    assert found["average"]["true"] is None and set(found["targeting"]["rankings"]) == {"student", "response", "random"}
    assert "true –" in as_table(found)
    treated = test.take(np.flatnonzero(test.labels < 2))
    lonely = campaign_effect(treated, predicted[test.labels < 2], None, None, 0)
    assert set(lonely) == {"customers"} and lonely["customers"]["difference"] is None
    assert "All are in one arm" in as_table(lonely) and json.loads(as_json(lonely))


def test_a_campaign_with_few_treated_customers_has_an_account():
    test, predicted, true = generated(400, 1, False)
    bought = np.arange(400) % 3 == 0
    of_few = cell_of(np.arange(400) < 3, bought)
    found = campaign_effect(
        Examples(test.texts, test.pairs, of_few, test.groups, test.merchants), predicted, predicted, true, 0
    )
    assert found["customers"]["treated"] == 3
    row = found["targeting"]["rankings"]["student"]["qini"]
    assert row["low"] <= row["high"]
    json.loads(as_json(found))
