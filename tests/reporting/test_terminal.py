"""A terminal is shown as much of the comparison as it has room for, and always the headline and the report's path."""

import io
import json
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from fed_distill.reporting.store import SUMMARY
from fed_distill.reporting.terminal import print_table, show


@pytest.mark.parametrize("width", [60, 200])
def test_the_headline_and_the_path_of_the_report_are_shown_at_any_width(run_folder, width):
    file = io.StringIO()
    show(run_folder, Console(file=file, force_terminal=True, color_system=None, width=width, _environ={}))
    header, *rows, report = file.getvalue().splitlines()
    more = [row for row in rows if "more columns: in the report, and by fed-distill report" in row]
    assert len(more) == 1, "what is left out is said, and where it is"
    rows = [row for row in rows if row not in more]
    assert header.split()[0] == "nDCG@10" and ("macro-F1" in header) == (width == 200)
    assert rows[0].startswith("teacher") and all(len(row) <= width for row in rows)
    assert report == f"report: {run_folder / 'report.html'}"


LINES = [["method", "δ", "nDCG@10", "in all"], ["fedavg\t洗衣机", "1e-5", "0.9123 ± 0.0045", "3 MB"]]


@pytest.mark.parametrize(
    ("width", "terminal", "titles"),
    [
        (60, True, ["method", "δ", "nDCG@10", "in all"]),
        (42, True, ["method", "nDCG@10", "in all"]),
        (31, True, ["method", "nDCG@10"]),
        (10, True, ["method", "nDCG@10"]),
        (10, False, ["method", "δ", "nDCG@10", "in all"]),
    ],
)
def test_a_narrow_terminal_omits_columns_and_no_cell_is_cut(width, terminal, titles):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system=None, width=width, _environ={})
    print_table(LINES, 1, ("δ", "in all"), "in summary.csv", console)
    header, row, *more = file.getvalue().splitlines()
    assert re.split(r"\s{2,}", header) == titles
    assert [cell for cell in LINES[1] if cell.replace("\t", " ") in row] == [
        LINES[1][LINES[0].index(title)] for title in titles
    ]
    assert cell_len(header) == cell_len(row), "numbers are aligned to the right, wide characters included"
    assert more == (
        [] if len(titles) == 4 else [f"{'1 more column' if len(titles) == 3 else '2 more columns'}: in summary.csv"]
    )


def test_a_tiny_run_draws_no_conclusion(run_folder):
    path = run_folder / SUMMARY
    summary = json.loads(path.read_text())
    summary["name"] += "-tiny-2"
    summary["teacher"][summary["headline"]] = 0.5
    path.write_text(json.dumps(summary))
    file = io.StringIO()
    show(run_folder, Console(file=file, width=200))
    first, *lines = file.getvalue().splitlines()
    assert "its results are meaningless" in first
    assert not any("adds" in line or "warning" in line for line in lines)


def test_a_weak_teacher_is_warned_of_in_one_line(run_folder):
    path = run_folder / SUMMARY
    summary = json.loads(path.read_text())
    summary["teacher"][summary["headline"]] = 0.5
    path.write_text(json.dumps(summary))
    file = io.StringIO()
    show(run_folder, console=Console(file=file, width=60))
    (line,) = [line for line in file.getvalue().splitlines() if line.startswith("warning: ")]
    assert "The teacher (0.5000) is worse than server alone" in line and line.endswith("teacher.model).")
