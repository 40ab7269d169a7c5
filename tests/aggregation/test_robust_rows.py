"""Robust means row by row against a slow twin, and beside the median of whole tables, which lets rare rows stand."""

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from fed_distill.aggregation import AGGREGATORS
from fed_distill.aggregation.fedsubavg import FedSubAvg
from fed_distill.aggregation.flower import FedMedian
from fed_distill.aggregation.robust_rows import FedSubMedian, FedSubTrimmedAvg, by_merchants
from fed_distill.errors import UplinkRejected
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink

MEANS = {
    "fedsubmedian": ({}, lambda values: np.median(values, axis=0)),
    "fedsubtrimmedavg": ({"beta": 0.3}, lambda values: trim_mean(values, 0.3, axis=0)),
}


def row_by_row(current, uplinks, mean):
    """The table, a row at a time, over the merchants that have the row."""
    table = current["table"].double().numpy().copy()
    for row in range(len(table)):
        values = [
            uplink.need(StudentUpdate)
            .arrays["table"][uplink.need(StudentUpdate).rows["table"].tolist().index(row)]
            .double()
            .numpy()
            for uplink in uplinks
            if row in uplink.need(StudentUpdate).rows["table"].tolist()
        ]
        if values:
            table[row] += mean(np.stack(values))
    return table


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("name", MEANS)
def test_a_row_is_merged_over_the_merchants_that_have_it(current, make_uplinks, name, size):
    options, mean = MEANS[name]
    uplinks = make_uplinks(size)
    merged = AGGREGATORS.build(name, options).average(current, iter(uplinks))
    np.testing.assert_allclose(merged["table"].numpy(), row_by_row(current, uplinks, mean), rtol=1e-6, atol=1e-7)
    for key in ("bias", "scale"):
        values = np.stack([uplink.need(StudentUpdate).arrays[key].double().numpy() for uplink in uplinks])
        expected = current[key].double().numpy() + mean(values)
        np.testing.assert_allclose(merged[key].numpy(), expected, rtol=1e-6, atol=1e-7)
    assert merged["steps"] is current["steps"]


@pytest.mark.parametrize("name", MEANS)
def test_a_row_that_nobody_has_stays_bit_for_bit(current, make_uplinks, name):
    merged = AGGREGATORS.build(name, {}).average(current, make_uplinks(2))
    assert merged["table"][[1, 4]].tolist() == current["table"][[1, 4]].tolist()


def test_rows_are_grouped_by_how_many_sent_them():
    rows = torch.tensor([0, 2, 3, 0, 3, 5, 0, 1])
    groups = {len(places): (touched.tolist(), places.tolist()) for touched, places in by_merchants(rows)}
    assert groups == {1: ([1, 2, 5], [[7, 1, 5]]), 2: ([3], [[2], [4]]), 3: ([0], [[0], [3], [6]])}


def sparse(number, rows, value, examples=10):
    arrays = {"table": torch.full((len(rows), 1), value)}
    index = torch.tensor(rows)
    return Uplink(f"m{number}", examples, (StudentUpdate(arrays, {"table": index}, {"table": torch.ones_like(index)}),))


def test_a_rare_row_learns_where_the_median_of_whole_tables_stands_still():
    """Three of seven merchants have row 2, and agree on it."""
    current = {"table": torch.zeros(3, 1)}
    uplinks = [sparse(number, [0, 2] if number < 3 else [0, 1], 1.0) for number in range(7)]
    assert FedMedian().average(current, uplinks)["table"].flatten().tolist() == [1.0, 1.0, 0.0]
    assert FedSubMedian().average(current, uplinks)["table"].flatten().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("aggregator", [FedSubMedian(), FedSubTrimmedAvg(0.35)])
def test_a_minority_of_those_that_touch_a_row_cannot_move_it_and_moves_the_mean(aggregator):
    current = {"table": torch.zeros(2, 1)}
    honest = [sparse(number, [0, 1], 1.0 + 0.01 * number) for number in range(7)]
    uplinks = [*honest, *(sparse(7 + number, [0, 1], -100.0) for number in range(3))]
    assert 1.0 <= float(aggregator.average(current, uplinks)["table"][1]) <= 1.06
    assert float(FedSubAvg().average(current, uplinks)["table"][1]) < -25.0


def test_what_no_merchant_sent_stays_and_nothing_at_all_is_an_error(current):
    merged = FedSubMedian().average(current, [Uplink("m", 1, (StudentUpdate({"bias": torch.ones(3)}),))])
    assert merged["table"] is current["table"]
    torch.testing.assert_close(merged["bias"], current["bias"] + 1.0)
    with pytest.raises(UplinkRejected, match="no merchant sent an update"):
        FedSubMedian().average(current, [Uplink("m", 1)])
