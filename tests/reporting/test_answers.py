"""Who took part is counted by federation, over rounds and seeds, with the reasons of most first."""

from fed_distill.reporting.answers import MOST_REASONS, answers, bytes_of_a_merchant


def record(federation, seed, reasons=(), retried=(), **counts):
    became = {"asked": 5, "merged": 5, "refused": 0, "late": 0, "absent": 0, "resting": 0, **counts}
    return {
        "federation": federation,
        "seed": seed,
        "round": 1,
        "reasons": list(reasons),
        "retried": list(retried),
        "answers": became,
        "total_bytes": {"downlink": 100 * became["asked"], "uplink": 30 * became["merged"]},
    }


def test_bytes_are_those_of_all_messages_by_merchant_and_seed():
    """Two seeds of two rounds, in which 5 of ten merchants are asked, and 3 or 2 send something."""
    counted = answers([record("a", seed, merged=3 - seed) for seed in (0, 0, 1, 1)])
    row = {"rounds": 2, "bytes": {"downlink_per_merchant_round": 100, "uplink_per_merchant_round": 30}}
    summary = {"merchants": 10, "answers": counted}
    assert bytes_of_a_merchant(summary, "a", row) == {"downlink": 2000 / 20, "uplink": 300 / 20}
    assert bytes_of_a_merchant(summary, "of an older release", row) == {"downlink": 200, "uplink": 60}
    assert bytes_of_a_merchant({"merchants": 10}, "a", row) == {"downlink": 200, "uplink": 60}


def test_counts_add_up_over_rounds_and_seeds_for_each_federation():
    found = answers(
        [
            record("a", 0, ["m is late"], ["too few"], merged=4, late=1),
            record("a", 1, ["m is late", "n lies"], ["too few", "too few again"], merged=3, late=1, refused=1),
            record("b", 0, merged=2, absent=2, resting=1),
        ]
    )
    assert list(found) == ["a", "b"]
    reasons = found["a"].pop("reasons")
    assert found["a"] == {
        "rounds": 2,
        "seeds": 2,
        "bytes": {"downlink": 1000, "uplink": 210},
        "retried": 3,
        "asked": 10,
        "merged": 7,
        "refused": 1,
        "late": 2,
        "absent": 0,
        "resting": 0,
    }
    assert reasons == [["m is late", 2], ["too few", 2], ["n lies", 1], ["too few again", 1]]
    assert (found["b"]["absent"], found["b"]["resting"], found["b"]["reasons"]) == (2, 1, [])


def test_only_the_most_frequent_reasons_are_listed():
    (row,) = answers([record("a", 0, [f"reason {number}" for number in range(50)] + ["often"] * 2)]).values()
    assert len(row["reasons"]) == MOST_REASONS
    assert row["reasons"][0] == ["often", 2]


def test_lines_of_an_older_release_are_left_out():
    assert answers([{"federation": "a", "seed": 0, "round": 1, "reasons": []}]) == {}
