"""What the teacher and federation add, in words."""

import pytest

from fed_distill.reporting.headline import added, compared, covers, headline


def found(value, half=0.004, p_adjusted=0.02):
    return {"value": value, "half_width": half, "p_value": 0.01, "p_adjusted": p_adjusted}


def test_a_difference_has_its_sign_its_interval_and_its_adjusted_p_value():
    assert added(found(0.0123)) == "+0.0123 ± 0.0040"
    assert compared(found(-0.0123)) == "−0.0123 ± 0.0040, p = 0.020"
    assert compared(found(0.5, p_adjusted=1e-9)) == "+0.5000 ± 0.0040, p < 0.001"
    assert compared(found(0.5, None, None)) == "+0.5000"
    assert compared(None) == "–"


@pytest.mark.parametrize(
    ("half", "tail"), [(0.004, "."), (0.02, ", which is within chance."), (None, " (no interval: set repeats).")]
)
def test_the_headline_is_what_the_teacher_and_federation_add(summary, half, tail):
    summary["adds"] = {"teacher": found(0.03), "federation": found(0.011, half), "federation_without_teacher": None}
    interval = "" if half is None else f" ± {half:.4f}"
    assert headline(summary) == (
        "The teacher adds +0.0300 ± 0.0040 nDCG@10 (server alone minus labels only, no teacher). "
        f"Federation adds +0.0110{interval}{tail}"
    )


def test_what_federation_adds_without_a_teacher_is_said_too(summary):
    """Teacher and federation overlap: what each adds depends on which comes first."""
    adds = {"teacher": found(0.03), "federation": found(0.011), "federation_without_teacher": found(0.029)}
    summary["adds"] = adds
    assert headline(summary).endswith(
        "Federation adds +0.0110 ± 0.0040. FedAvg without a teacher adds +0.0290 ± 0.0040 to labels only."
    )


def test_a_run_that_is_its_own_control_says_it_once(summary):
    summary["adds"] = {"teacher": None, "federation": found(0.029), "federation_without_teacher": found(0.029)}
    summary["federations"]["fedavg"] = summary["federations"].pop(summary["federation"])
    summary["federation"] = "fedavg"
    assert headline(summary) == "Federation adds +0.0290 ± 0.0040."


def test_domain_adaptation_is_a_sentence_of_its_own_where_a_stage_was_kept(summary):
    gain = found(0.011)
    summary["adds"] = {"teacher": None, "federation": gain, "adaptation": found(0.002)}
    more = "Domain adaptation adds +0.0020 ± 0.0040, which is within chance."
    assert headline(summary) == f"Federation adds +0.0110 ± 0.0040. {more}"
    for nothing in (None, found(0.0, 0.0, None)):
        summary["adds"]["adaptation"] = nothing
        assert headline(summary) == "Federation adds +0.0110 ± 0.0040."


@pytest.mark.parametrize(
    ("p_adjusted", "tail"),
    [
        (0.087, " (p = 0.087 among the rows of the table: not certain)."),
        (0.05, " (p = 0.050 among the rows of the table: not certain)."),
        (0.049, "."),
        (None, "."),
    ],
)
def test_a_difference_that_the_table_does_not_call_significant_is_not_certain(summary, p_adjusted, tail):
    gain = found(0.0427, 0.0374, p_adjusted)
    summary["adds"] = {"teacher": None, "federation": gain, "federation_without_teacher": None}
    assert headline(summary) == f"Federation adds +0.0427 ± 0.0374{tail}"


def test_fedavg_above_the_method_is_said_with_its_paired_difference(summary):
    summary["adds"] = dict.fromkeys(("teacher", "federation", "federation_without_teacher"))
    main = summary["federations"][summary["federation"]]
    main["above"]["fedavg"] = found(-0.0191, 0.0562)
    assert headline(summary) == (
        "FedAvg without a teacher scores 0.0191 ± 0.0562 higher than this method, which is within chance."
    )
    main["above"]["fedavg"] = found(-0.0191, 0.0062)
    assert headline(summary) == "FedAvg without a teacher scores 0.0191 ± 0.0062 higher than this method."
    main["above"]["fedavg"] = None
    summary["controls"]["fedavg"][summary["headline"]] = main[summary["headline"]] + 0.25
    assert headline(summary) == (
        "FedAvg without a teacher scores 0.2500 higher than this method (no interval: set repeats)."
    )
    summary["controls"]["fedavg"][summary["headline"]] = main[summary["headline"]]
    assert headline(summary) == ""


def test_what_was_not_measured_is_not_in_the_headline(summary):
    summary["adds"] = dict.fromkeys(("teacher", "federation", "federation_without_teacher"))
    assert headline(summary) == ""


def test_what_an_interval_does_not_cover_is_said(summary):
    summary["interval_covers"] = ["test data"]
    missing = "it does not cover other training seeds (there is one) or another split of the data."
    assert covers(summary).endswith(f"over test data; {missing}")
    summary["interval_covers"] = ["training seeds", "test data"]
    both = "over training seeds and test data; it does not cover another split of the data."
    assert covers(summary).endswith(both)
