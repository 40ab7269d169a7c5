"""Tables hold the summary's numbers and no others."""

import math

import pytest

from fed_distill.reporting.store import read_records
from fed_distill.reporting.tables import (
    comparison_cells,
    comparison_table,
    markdown_table,
    merchants_table,
    rounds_table,
)

MAIN = "fedavg-kd+fedsubavg"


def test_the_comparison_has_a_row_for_everything_compared_and_the_headline_first(summary):
    table = comparison_table(summary)
    assert list(table["name"]) == ["teacher", "server", "local", "pooled", "fedavg", MAIN, "fedavg-kd", "fedmd"]
    assert list(table["kind"]) == ["teacher"] + ["control"] * 4 + ["federation"] * 3
    assert list(table.columns[:4]) == ["name", "kind", "ndcg@10", "auc"]


@pytest.mark.parametrize(
    "metric", ["ndcg@10", "auc", "macro_f1", "accuracy", "mrr@10", "retention", "gap_closed", "seconds"]
)
def test_the_comparisons_numbers_are_the_summarys(summary, metric):
    table = comparison_table(summary).set_index(["kind", "name"])
    for kind, rows in (("control", summary["controls"]), ("federation", summary["federations"])):
        for name, row in rows.items():
            found = table.loc[(kind, name), metric]
            assert math.isnan(found) if row[metric] is None else found == row[metric]
    interval = summary["federations"]["fedmd"]["interval"][metric]
    assert table.loc[("federation", "fedmd"), f"{metric}_interval"] == interval


def test_bytes_and_the_worst_merchant_are_in_the_comparison(summary):
    row = comparison_table(summary).set_index("name").loc[MAIN]
    assert row["downlink_bytes"] == summary["bytes"]["downlink_per_merchant_round"] == 1_204_330
    assert row["uplink_bytes"] == 611_204
    assert row["worst_merchant"] == summary["student"]["worst_merchant"]["merchant"]
    assert row["worst_merchant_accuracy"] == summary["student"]["worst_merchant"]["accuracy"]


def test_a_task_without_ranking_has_no_ranking_columns(summary):
    for row in [summary["teacher"], *summary["controls"].values(), *summary["federations"].values()]:
        row["ndcg@10"] = row["mrr@10"] = None
    table = comparison_table({**summary, "headline": "macro_f1"})
    assert list(table.columns[2:5]) == ["macro_f1", "auc", "accuracy"]
    assert "ndcg@10" not in table.columns


def test_the_rounds_are_flat(run_folder):
    records = read_records(run_folder)
    table = rounds_table(records)
    assert len(table) == len(records) == 3 * 4 * 10
    assert table.loc[11, "valid.auc"] == records[11]["valid"]["auc"]
    assert table.loc[11, "bytes.uplink"] == 19_000_000


def test_every_merchant_has_a_row_with_its_accuracies(summary):
    table = merchants_table(summary)
    assert len(table) == 31
    row = table.set_index("merchant").loc["Merchant 05"]
    assert row["test_examples"] == 12 + 9 * 4
    assert row["pooled"] == summary["by_merchant"]["controls"]["pooled"]["Merchant 05"]
    assert row[MAIN] == summary["by_merchant"]["federations"][MAIN]["Merchant 05"]


def test_a_federation_called_like_a_control_has_its_own_column(summary):
    stored = summary["by_merchant"]
    stored["federations"]["fedavg"] = dict.fromkeys(stored["counts"], 1.0)
    table = merchants_table(summary)
    assert set(table["federation:fedavg"]) == {1.0}
    assert table["fedavg"].max() < 1.0


def test_the_markdown_table_writes_the_summarys_numbers(summary):
    lines = markdown_table(summary).splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header[:5] == ["", "nDCG@10", "AUC", "macro-F1", "accuracy"]
    assert len({line.count("|") for line in lines}) == 1
    main = next(line for line in lines if f"**{MAIN}**" in line)
    student, half = summary["student"], summary["intervals"]["student"]
    assert f"{student['ndcg@10']:.4f} ± {half['ndcg@10']:.4f}" in main
    assert f"{100 * summary['gap_closed']:.0f}\u202f%" in main
    assert "611\u202fkB / 1.2\u202fMB" in main
    teacher = next(line for line in lines if line.startswith("| teacher"))
    assert "0.9660 |" in teacher
    assert any(line.startswith("| server alone |") for line in lines), "controls have the names of a study's tables"


@pytest.mark.parametrize(
    ("key", "title"),
    [("gap_closed_auc", "gap closed in AUC"), ("gap_closed", "gap closed"), ("retention", "retention")],
)
def test_a_column_without_a_value_in_any_row_is_left_out(summary, key, title):
    """One value in one row keeps it."""
    places = [*summary["controls"].values(), *summary["federations"].values()]
    for row in places:
        row[key] = None
    header, *rows = comparison_cells(summary)
    assert title not in header and {len(row) for row in rows} == {len(header)}
    places[-1][key] = 0.5
    header, *rows = comparison_cells(summary)
    values = [row[header.index(title)] for row in rows]
    assert values.count("–") == len(values) - 1 and values[-1].startswith("50")


def test_levels_of_a_chain_stand_below_the_teacher(summary):
    level = {"macro_f1": 0.5, "parameters": 3, "interval": {"macro_f1": 0.125}}
    lines = markdown_table({**summary, "levels": {"assistant 1: lstm": level}}).splitlines()
    assert lines[2].startswith("| teacher |") and lines[3].startswith("| assistant 1: lstm |")
    assert "0.5000 ± 0.1250" in lines[3]


def test_the_markdown_table_of_one_seed_has_no_intervals(one_seed_summary):
    assert "±" not in markdown_table(one_seed_summary)
