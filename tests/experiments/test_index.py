"""The benchmark of an index measures what it says."""

import numpy as np
import pytest

from experiments.benchmarks.index import Measured, composed, measured, table
from fed_distill import seeds
from fed_distill.data.tasks import RELEVANCE
from fed_distill.models import build_student
from fed_distill.models.student_folder import StudentDescription
from fed_distill.serving.graph import NeighbourGraph
from fed_distill.serving.student import Student

TITLES = ["red kettle maxi", "blue phone 12", "green shoe", "ultra mini phone pro"]


@pytest.fixture
def student():
    with seeds.scope(0, "benchmark"):
        model = build_student("two-tower", {"rows": 512, "width": 8}, RELEVANCE)
    return Student(model, StudentDescription(RELEVANCE, 60))


def test_a_composed_title_has_the_vector_of_its_words(student, monkeypatch):
    monkeypatch.setattr("experiments.benchmarks.index._REPLACED", 0)
    found = composed(student, TITLES, 50, seed=0)
    known = student.embed(TITLES)
    assert np.abs(found[:, None] - known[None]).max(axis=2).min(axis=1).max() < 1e-6


def test_composed_titles_differ_and_repeat_by_seed(student):
    found = composed(student, TITLES, 200, seed=0)
    np.testing.assert_array_equal(found, composed(student, TITLES, 200, seed=0))
    assert len(np.unique(found.round(5), axis=0)) > 50
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_every_way_of_searching_has_a_row(student):
    vectors = composed(student, TITLES, 500, seed=0)
    rows = measured(student, vectors, NeighbourGraph.build(vectors), student.embed(TITLES))
    assert [row.recall for row in rows[:2]] == [1.0, 1.0]
    assert all(row.rate > 0 and 0 <= row.recall <= 1 for row in rows)
    assert rows[2].megabytes > rows[0].megabytes == 500 * 8 * 4 / 1e6


def test_the_table_by_hand():
    assert table([Measured("exact", 1.0, 1234.5, 256.0)]).splitlines()[2] == "| exact | 1.0000 | 1,234 | 256 |"
