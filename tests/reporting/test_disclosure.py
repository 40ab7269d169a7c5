"""The report of a private run tells no exact size of a merchant, and marks what its promise does not cover."""

import re
from dataclasses import replace
from html import unescape

import pytest

from fed_distill.privacy.disclosure import WHY, without_sizes
from fed_distill.reporting.report import render
from fed_distill.reporting.summary import summarize
from fed_distill.reporting.tables import comparison_cells, comparison_table, markdown_table, merchants_table
from fed_distill.reporting.terminal import show
from fed_distill.reporting.wording import promises
from fed_distill.storage.files import strict_json
from tests.reporting.conftest import MERCHANTS, private_summary_of

MAIN = "fedavg-kd+fedsubavg"


def numbers(value):
    """All whole numbers in a JSON value."""
    if isinstance(value, dict):
        return {number for child in value.values() for number in numbers(child)}
    if isinstance(value, list):
        return {number for child in value for number in numbers(child)}
    return {value} if type(value) is int else set()


def test_no_exact_size_and_no_class_count_of_merchants_is_in_a_private_summary(private_summary):
    sizes = {22_429, 3_120, 6_402, 20_123, 3_001, 6_001}  # as in the account that the fixture is made from
    sizes |= {100 + index for index in range(len(MERCHANTS))} | {12 + 9 * index for index in range(2, len(MERCHANTS))}
    assert not sizes & numbers(private_summary)
    assert "Merchant 07" not in strict_json(private_summary["data"], "data")  # who has examples of one class only
    assert private_summary["data"]["examples"] == {"public": 14_210, "public_valid": 1_530, "proxy": 4_000}
    assert private_summary["by_merchant"]["counts"] is None


def test_an_account_is_kept_by_what_is_known_to_be_public():
    assert without_sizes({"dataset": "own", "rows_of_shops": {"a": 7}, "examples": {"public": 3, "shops": 9}}) == {
        "dataset": "own",
        "examples": {"public": 3},
    }


def test_accuracies_of_private_merchants_are_too_coarse_to_tell_a_denominator(sample):
    def scored(count):
        right = {name: round(0.7 * count) / count for name in MERCHANTS}
        kept = [replace(one, merchant_accuracy=right, merchant_counts=dict.fromkeys(right, count)) for one in units]
        made = summarize(sample.experiment, sample.task, sample.teacher, 1, kept, 31, 1.0)
        return made["by_merchant"], made["student"]["worst_merchant"]

    promise = private_summary_of(1)["federations"][MAIN]["privacy"]
    units = [replace(one, privacy=promise if one.kind == "federation" else None) for one in sample.outcomes]
    assert scored(99) == scored(101)  # 69/99 and 71/101


def test_what_the_promise_does_not_cover_is_marked_in_the_summary(private_summary, summary):
    marked = {name: row["protected"] for name, row in private_summary["controls"].items()}
    assert marked == {"server": True, "local": False, "pooled": False, "fedavg": False}
    assert {row["protected"] for row in private_summary["federations"].values()} == {True}
    assert private_summary["by_merchant"]["protected"] is False
    assert {row["protected"] for row in summary["controls"].values()} == {None}  # of a run that promises nothing


def test_personal_adaptation_is_marked(sample):
    promise = private_summary_of(1)["federations"][MAIN]["privacy"]
    units = [
        replace(one, privacy=promise, personal_accuracy=dict(one.merchant_accuracy))
        if one.kind == "federation"
        else one
        for one in sample.outcomes
    ]
    made = summarize(sample.experiment, sample.task, sample.teacher, 1, units, 31, 1.0)
    assert made["adaptation"]["personal"]["protected"] is False


def test_the_same_is_marked_in_tables(private_summary, summary):
    header, *rows = comparison_cells(private_summary)
    assert [name for name in header if name.endswith("*")] == ["merchants: mean *", "worst *", "worst tenth *"]
    assert [row[0] for row in rows if row[0].endswith("*")] == [
        "each merchant alone *",
        "all data pooled *",
        "FedAvg, no teacher *",
    ]
    assert not any("*" in cell for row in comparison_cells(summary) for cell in row)
    assert list(comparison_table(private_summary)["protected"])[1:] == [True, False, False, False, True, True, True]
    assert WHY in markdown_table(private_summary) and f"| **{MAIN}** |" in markdown_table(private_summary)
    assert WHY not in markdown_table(summary)
    table = merchants_table(private_summary)
    assert len(table) == len(MERCHANTS) and "test_examples" not in table


@pytest.mark.parametrize("private", [True, False])
def test_a_terminal_says_why(run_folder, private_summary, summary, capsys, private):
    (run_folder / "summary.json").write_text(strict_json(private_summary if private else summary, "s"))
    show(run_folder)
    assert (WHY in " ".join(capsys.readouterr().out.split())) is private


def test_the_report_marks_and_explains(private_summary, summary):
    html = unescape(re.sub(r"\s+", " ", render(private_summary, [], "", "runs/private")))
    assert html.count("control, not protected *") == 3
    assert html.count(WHY) == 2
    assert WHY not in unescape(render(summary, [], "", "runs/open"))
    for part in private_summary["privacy"]["reveals"]:
        assert f">{part['what']}</th>" in html
    assert "validation scores of each round" in html
    assert "ε = 3.96 at δ = 1e-05, 4.21 at δ = 1e-06" in html


def test_the_report_says_who_can_remove_the_noise(private_summary):
    seeded = "noise is derived from the run's seed, so anyone who has the seed can subtract it"
    assert seeded in " ".join(promises(private_summary))
    real = " ".join(promises(private_summary_of(1, reproducible_noise=False)))
    assert seeded not in real and "its seed does not reproduce it" in real


def test_the_report_says_how_many_examples_share_a_group(private_summary):
    """In a simulation by its data; real sites do not tell."""
    assert private_summary["privacy"]["largest_group"] == 12
    assert "up to 12 examples of a merchant share a group" in " ".join(promises(private_summary))
    for unit, known, unknown in (
        ("example", "up to 12 examples", "The sizes of groups of examples, such as one offer, are unknown here"),
        ("group", "the number of examples per group is at most 12", "unknown here, because sites do not send it"),
    ):
        assert known in " ".join(promises(private_summary_of(1, unit=unit)))
        real = private_summary_of(1, reproducible_noise=False, unit=unit)
        assert real["privacy"]["largest_group"] is None
        assert unknown in " ".join(promises(real))


def test_a_run_without_privacy_promises_nothing_and_keeps_its_account(summary, sample):
    assert promises(summary) == []
    assert summary["data"] == sample.account
