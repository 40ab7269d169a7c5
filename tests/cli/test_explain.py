"""Why a score, as a user asks for it."""

import pytest

from fed_distill import load_student
from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import SENTIMENT
from fed_distill.models import build_student
from fed_distill.models.student_folder import save_student
from fed_distill.serving.explain import explain

QUERY, TITLE = "bravik [325] toaster", "Bravik 325 toaster grey"


def test_a_table_of_words_and_their_sum_are_printed(entered, tiny_run):
    code, out, err = entered("explain", tiny_run.result.folder, "--query", QUERY, "--title", TITLE)
    assert code == 0, err
    found = explain(load_student(tiny_run.result.folder), QUERY, TITLE)
    rows = [line.split()[:3] for line in out.splitlines()[1:-1]]
    expected = [("query", word) for word in found.query_words] + [("title", word) for word in found.title_words]
    assert rows == [[name, word.text, f"{word.contribution:+.4f}"] for name, word in expected]
    assert out.splitlines()[-1].startswith(f"score {found.score:.4f} = {found.baseline:.4f} (without words) ")


@pytest.mark.parametrize(("query", "message"), [(" ", "query is empty"), ("x" * 10_000, "shorten it")])
def test_a_wrong_query_is_an_error(entered, tiny_run, query, message):
    code, _, err = entered("explain", tiny_run.result.folder, "--query", query, "--title", TITLE)
    assert code == 2
    assert message in err


def test_a_student_of_single_texts_is_an_error_that_names_its_task(entered, tmp_path):
    model = build_student("two-tower", {"rows": 64, "width": 4, "head_width": 4}, SENTIMENT)
    save_student(tmp_path / "student", model, StudentDescription(SENTIMENT, 60))
    code, _, err = entered("explain", tmp_path / "student", "--query", QUERY, "--title", TITLE)
    assert code == 2
    told = "fed-distill explain requires a task of graded pairs, such as relevance; this student's task is sentiment"
    assert err.strip().endswith(told)
