"""Students on judged queries, as a search team enters it."""

import csv
import re

import pytest

from fed_distill import load_student

COLUMNS = ("--text-column", "query", "--pair-column", "title", "--label-column", "grade")


@pytest.fixture
def judged(tmp_path):
    """60 queries of three titles; the engine's score is best for the exact one."""
    path = tmp_path / "judged.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "title", "grade", "bm25"])
        for number in range(60):
            query = f"bravik {number} toaster"
            rows.writerow([query, f"Bravik {number} toaster grey", "exact", 9.5])
            rows.writerow([query, f"Bravik {number + 1} toaster grey", "substitute", 6.0])
            rows.writerow([query, f"olive kettle {number}", "irrelevant", ""])
    return path


def test_a_student_is_compared_with_a_search_engine_and_added_to_it(entered, judged, tiny_run, tmp_path):
    run, written = tiny_run.result.folder, tmp_path / "by_query.csv"
    options = (*COLUMNS, "--score-column", "bm25", "--by-query", written)
    code, out, err = entered("evaluate", judged, "--student", run, *options)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split("  ")[-1].strip() == "MRR@10" and "above search engine" in lines[0]
    assert re.match(r"search engine +1\.0000 ", lines[1])
    assert lines[2].startswith(str(run)) and lines[3].startswith(f"{run} + search engine")
    assert "180 examples, 60 queries with two grades" in out
    assert "rows without a score, which count as 0: 60" in out
    assert "for bm25_weight of student.rank and POST /rank" in out
    with written.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["query", "search engine", str(run), f"{run} + search engine"]
    assert [row[0] for row in rows] == [f"bravik {number} toaster" for number in range(60)]
    student = load_student(run)
    best = student.rank("bravik 7 toaster", ["Bravik 7 toaster grey", "Bravik 8 toaster grey", "olive kettle 7"])
    assert (float(rows[7][2]) == 1.0) == (best.order.tolist() == [0, 1, 2])


def test_two_students_are_compared_without_an_engine(entered, judged, tiny_run):
    run = tiny_run.result.folder
    code, out, err = entered("evaluate", judged, "--student", run, "--student", run / "student", *COLUMNS)
    assert code == 0, err
    first, second = out.splitlines()[1:3]
    assert first.startswith(str(run)) and f"above {run}" in out
    assert "+0.0000 ± 0.0000" in second
    assert "weight" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label", "exact"), "write LABEL=CLASS, such as E=exact"),
        (("--score-column", "price"), "has no column 'price'"),
        (("--by-query", "."), "--by-query . is a folder"),
    ],
)
def test_mistakes_are_named(entered, judged, tiny_run, options, message):
    code, _, err = entered("evaluate", judged, "--student", tiny_run.result.folder, *COLUMNS, *options)
    assert code == 2
    assert message in err


def test_a_folder_that_is_named_twice_is_refused(entered, judged, tiny_run):
    run = tiny_run.result.folder
    code, _, err = entered("evaluate", judged, "--student", run, "--student", run, *COLUMNS)
    assert code == 2
    assert "names a folder twice" in err
