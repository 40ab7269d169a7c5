"""Federated submodel averaging against the paper's formula, row by row."""

import numpy as np
import pytest
import torch

from fed_distill.aggregation.fedsubavg import FedSubAvg
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink


def by_rows(current, uplinks, weight, rate=1.0):
    """x_m + rate * sum of w_i * u_m^i over the merchants i that have row m, over the sum of their w_i."""
    table = current["table"].double().numpy().copy()
    for row in range(len(table)):
        change, total = np.zeros(table.shape[1]), 0.0
        for uplink in uplinks:
            held = uplink.need(StudentUpdate).rows["table"].tolist()
            if row in held:
                uses = int(uplink.need(StudentUpdate).counts["table"][held.index(row)])
                own = {"uses": uses, "examples": uplink.examples, "merchants": 1}[weight]
                change += own * uplink.need(StudentUpdate).arrays["table"][held.index(row)].double().numpy()
                total += own
        if total:
            table[row] += rate * change / total
    return table


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("weight", ["uses", "examples", "merchants"])
def test_a_row_is_averaged_over_the_merchants_that_have_it(current, make_uplinks, weight, rate):
    uplinks = make_uplinks(5)
    merged = FedSubAvg(weight, rate).average(current, uplinks)
    np.testing.assert_allclose(merged["table"].numpy(), by_rows(current, uplinks, weight, rate), rtol=1e-5, atol=1e-6)


def test_equal_merchants_give_the_papers_coefficient(current, make_uplinks):
    """Ding et al. 2022: the mean over all N merchants, times N / n_m for a row that n_m of them have."""
    uplinks = make_uplinks(5)
    table = current["table"].double().numpy()
    mean_update, having = np.zeros_like(table), np.zeros(len(table))
    for uplink in uplinks:
        rows = uplink.need(StudentUpdate).rows["table"].numpy()
        mean_update[rows] += uplink.need(StudentUpdate).arrays["table"].double().numpy() / len(uplinks)
        having[rows] += 1
    expected = (
        table + np.divide(len(uplinks), having, out=np.zeros(len(table)), where=having > 0)[:, None] * mean_update
    )
    merged = FedSubAvg("merchants").average(current, uplinks)
    np.testing.assert_allclose(merged["table"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_of_one_merchant_moves_by_its_whole_update_even_if_its_uses_were_truncated(current, make_uplinks):
    (uplink,) = make_uplinks(1)
    sent = uplink.need(StudentUpdate)
    truncated = uplink.having(sent.with_counts({"table": sent.counts["table"].double() * 0.3 / sent.counts["table"]}))
    merged = FedSubAvg().average(current, [truncated])
    rows = sent.rows["table"]
    expected = current["table"][rows].double() + sent.arrays["table"].double()
    np.testing.assert_allclose(merged["table"][rows].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_merchant_that_overstates_its_uses_counts_no_more_than_four_an_example(current, make_uplinks):
    uplinks = make_uplinks(5)
    byzantine, sent = uplinks[1], uplinks[1].need(StudentUpdate)
    boasting = byzantine.having(sent.with_counts({"table": torch.full((3,), 2**31 - 1)}))
    limited = byzantine.having(sent.with_counts({"table": torch.full((3,), 4 * byzantine.examples)}))
    expected = by_rows(current, [uplinks[0], limited, *uplinks[2:]], "uses")
    merged = FedSubAvg().average(current, [uplinks[0], boasting, *uplinks[2:]])
    np.testing.assert_allclose(merged["table"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_uplinks_are_taken_one_after_another(current, make_uplinks):
    uplinks = make_uplinks(5)
    streamed = FedSubAvg().average(current, iter(uplinks))
    assert all(torch.equal(value, streamed[name]) for name, value in FedSubAvg().average(current, uplinks).items())


def test_a_row_that_nobody_has_stays_bit_for_bit(current, make_uplinks):
    merged = FedSubAvg().average(current, make_uplinks(2))
    assert merged["table"][[1, 4]].tolist() == current["table"][[1, 4]].tolist()


def test_weights_that_are_no_table_are_averaged_over_all(current, make_uplinks):
    uplinks = make_uplinks(4)
    merged = FedSubAvg().average(current, [*uplinks, Uplink("silent", 500)])
    for name in ("bias", "scale"):
        values = np.stack([one.need(StudentUpdate).arrays[name].double().numpy() for one in uplinks])
        mean = np.average(values, axis=0, weights=[one.examples for one in uplinks])
        expected = current[name].double().numpy() + mean
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-5, atol=1e-6)
