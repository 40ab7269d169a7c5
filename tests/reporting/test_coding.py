"""Each coded federation is set beside the one that is the same but for its transport."""

import pytest

from fed_distill.config import Experiment
from fed_distill.reporting.coding import beside_uncoded

SIGN = {"weights": ["sign"]}


def row(uplink, gap, score=0.9, downlink=1000):
    sent = {"uplink_per_merchant_round": uplink, "downlink_per_merchant_round": downlink}
    return {"bytes": sent, "gap_closed": gap, "ndcg@10": score}


def experiment(*compare, **tables):
    tables = {"federation": {"method": "fedavg-kd"}, **tables}
    return Experiment.parse({**tables, "compare": list(compare)})


def test_a_coded_federation_is_compared_with_its_twin():
    found = beside_uncoded(
        experiment({"label": "one bit", "transport": SIGN}),
        {"fedavg-kd": row(1000, 0.5, 0.92), "one bit": row(40, 0.45, 0.91, downlink=500)},
        "ndcg@10",
    )
    assert found["fedavg-kd"] is None
    assert found["one bit"] == {
        "uncoded": "fedavg-kd",
        "uplink_ratio": 25.0,
        "downlink_ratio": 2.0,
        "change": pytest.approx(-0.01),
        "gap_kept": pytest.approx(0.9),
    }


def test_the_table_for_all_has_its_twin_in_the_federation_that_opts_out():
    found = beside_uncoded(
        experiment({"label": "as it is", "transport": {}}, transport=SIGN),
        {"fedavg-kd": row(40, 0.4), "as it is": row(1000, 0.5)},
        "ndcg@10",
    )
    assert found["as it is"] is None
    assert found["fedavg-kd"]["uncoded"] == "as it is"


def test_what_differs_in_more_than_its_transport_is_no_twin():
    rows = {"fedavg-kd": row(1000, 0.5), "one bit": row(40, 0.4)}
    for more in ({"rounds": 3}, {"method": "fedavg"}, {"options": {"proxy_steps": 9}}, {"participation": 0.5}):
        assert beside_uncoded(experiment({"label": "one bit", "transport": SIGN, **more}), rows, "ndcg@10") == {
            "fedavg-kd": None,
            "one bit": None,
        }


def test_feedback_alone_codes_nothing():
    federation = {"label": "other", "transport": {"error_feedback": False}}
    found = beside_uncoded(experiment(federation), {"fedavg-kd": row(1, 0.1), "other": row(1, 0.1)}, "ndcg@10")
    assert found == {"fedavg-kd": None, "other": None}


@pytest.mark.parametrize(("gap", "whole"), [(None, 0.5), (0.4, None), (0.4, 0.0), (0.4, -0.1)])
def test_a_share_of_a_gap_that_was_not_closed_is_null(gap, whole):
    found = beside_uncoded(
        experiment({"label": "one bit", "transport": SIGN}),
        {"fedavg-kd": row(1000, whole), "one bit": row(0, gap, None)},
        "ndcg@10",
    )
    assert (found["one bit"]["gap_kept"], found["one bit"]["change"], found["one bit"]["uplink_ratio"]) == (None,) * 3
