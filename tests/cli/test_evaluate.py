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
    assert lines[0].endswith("MRR@10") and "above search engine" in lines[0] and f"above {run}" in lines[0]
    assert re.match(r"search engine +1\.0000 ", lines[1])
    assert lines[2].startswith(str(run)) and lines[3].startswith(f"{run} + search engine")
    assert "180 examples, 60 queries with two grades" in out
    assert "rows without a score, which have 0, or the lowest if that is negative: 60" in out
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
        (("--by-query", "."), "--by-query . exists: name a new file"),
        (("--by-query", "none/q.csv"), "there is no folder none: make it first"),
        (("--label", "E=exact", "--label", "E=irrelevant"), "'E' is mapped to exact already"),
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


def test_what_exists_is_not_written_over(entered, judged, tiny_run, tmp_path):
    before = judged.read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "gone.csv")
    for path in (judged, link):
        code, _, err = entered("evaluate", judged, "--student", tiny_run.result.folder, *COLUMNS, "--by-query", path)
        assert code == 2 and "exists: name a new file" in err
    assert judged.read_bytes() == before


def test_scores_in_reverse_and_sums_that_do_not_help_are_told(entered, judged, tiny_run):
    """Ranks are best at 1; the student's own queries are among those of its run."""
    text = judged.read_text().replace(",9.5", ",1").replace(",6.0", ",2").replace("irrelevant,", "irrelevant,3")
    judged.write_text(text)
    code, out, _ = entered("evaluate", judged, "--student", tiny_run.result.folder, *COLUMNS, "--score-column", "bm25")
    assert code == 0
    assert "warning: in reverse order the scores rank better (1.0000)" in out
    assert f"is not above {tiny_run.result.folder} alone: serve that without the engine's scores" in out


def test_a_student_may_be_in_a_folder_with_the_name_of_a_column(entered, judged, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "query").symlink_to(tiny_run.result.folder)
    code, _, err = entered("evaluate", judged, "--student", "query", *COLUMNS, "--by-query", "q.csv")
    assert code == 0, err
    with (tmp_path / "q.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["query", "./query"]
