"""Contributions of words add up to the score, agree with captum, and name the words that the score depends on."""

import sys

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from hypothesis import given
from hypothesis import strategies as st

from fed_distill import load_student, seeds
from fed_distill.data import load
from fed_distill.data.examples import Task
from fed_distill.errors import ConfigError, DataError, ModelError
from fed_distill.models import build_student
from fed_distill.models.student_folder import StudentDescription
from fed_distill.models.two_tower import TwoTower
from fed_distill.models.word_contributions import Explanation, WordContribution, feature_words
from fed_distill.serving.explain import explain
from fed_distill.serving.faithfulness import deletion_areas, deletion_scores
from fed_distill.serving.student import Student

QUERY, TITLE = "red maxi phone 手机", "Ultra-phone, maxi ½ blue 手机壳"
SMALL = {"rows": 512, "width": 8, "head_width": 8}
OPTIONS = {
    "two-tower": SMALL,
    "static": {"width": 8, "head_width": 8, "vocabulary": "all"},
    "lstm": {"rows": 512, "width": 8},
    "bert-mini": {"rows": 512, "width": 8, "layers": 1},
    "distilbert": {"rows": 512, "width": 8, "layers": 1},
}


@pytest.fixture
def make(task, wordpiece_teacher):
    """A function (name) -> a student with a head of large weights, so that its scores differ."""

    def student(name):
        with seeds.scope(0, "explained student"):
            model = build_student(name, OPTIONS[name], task, wordpiece_teacher(task))
        with torch.no_grad():
            for parameter in model.parameters():
                if name in ("two-tower", "static") and parameter.dim() > 1:
                    parameter.mul_(3.0)
        return Student(model, StudentDescription(task, 200))

    return student


def words_of(explanation):
    return [*explanation.query_words, *explanation.title_words]


@pytest.mark.parametrize("name", ["two-tower", "static"])
def test_contributions_add_up_to_the_score_above_that_of_no_words(make, name):
    student = make(name)
    found = explain(student, f"  {QUERY} ", TITLE)
    assert found.score == pytest.approx(student.rank(QUERY, [TITLE]).scores[0], abs=1e-5)
    empty = student.model(student.model.encode([""], [""])).logits.softmax(dim=-1)[0].detach().numpy()
    assert found.baseline == pytest.approx(float(empty @ student.gains), abs=1e-5)
    total = sum(word.contribution for word in words_of(found))
    assert total == pytest.approx(found.score - found.baseline, abs=1e-4)
    assert found.residual == pytest.approx(found.score - found.baseline - total, abs=1e-5)
    # not that of the sum: the signs of a static student's principal components depend on how sums are rounded
    assert max(abs(word.contribution) for word in words_of(found)) > 1e-3
    assert (found.query, found.title) == (QUERY, TITLE)
    for text, words in ((found.query, found.query_words), (found.title, found.title_words)):
        assert all(text[word.start : word.stop] == word.text for word in words)


def test_words_are_those_of_the_encoding(make):
    found = explain(make("two-tower"), QUERY, TITLE)
    assert [word.text for word in found.query_words] == ["red", "maxi", "phone", "手机"]
    assert [word.text for word in found.title_words] == ["Ultra", "phone", "maxi", "½", "blue", "手机壳"]


@pytest.mark.parametrize("name", ["two-tower", "static"])
def test_contributions_are_captums_integrated_gradients_over_the_words_vectors(make, name):
    """Twin: captum integrates over every word's part of both vectors at once."""
    student = make(name)
    model, gains = student.model, torch.from_numpy(student.gains).float()
    parts = []
    for text in (QUERY, TITLE):
        rows = torch.cat([model.bag(word.rows[None]) for word in feature_words(model, text)]).detach()
        parts.append(rows / rows.sum(dim=0).norm())

    def score(query, title):
        return torch.softmax(model.score(query.sum(dim=1), title.sum(dim=1)), dim=-1) @ gains

    attributed = IntegratedGradients(score).attribute(
        tuple(part[None] for part in parts), n_steps=4000, method="riemann_middle"
    )
    expected = torch.cat([part[0].sum(dim=-1) for part in attributed]).numpy()
    found = [word.contribution for word in words_of(explain(student, QUERY, TITLE))]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 1e-3


@given(st.text(max_size=40), st.integers(4, 40))
def test_features_of_words_are_those_of_the_text_each_once(text, most):
    model = TwoTower(2, True, rows=64, width=2, head_width=2, ngrams=(3, 4), max_features=most)
    kept = model.encode([text], None)["text_ids"][0]
    words = feature_words(model, text)
    of_words = sorted(row for word in words for row in word.rows.tolist())
    assert of_words == sorted(kept[kept > 0].tolist())


def test_a_word_beyond_the_longest_text_contributes_nothing(task):
    with seeds.scope(0, "explained student"):
        model = build_student("two-tower", {**SMALL, "max_features": 20}, task)
    found = explain(Student(model, StudentDescription(task, 400)), "usb " * 30 + "hub", "hub")
    assert len(found.query_words) == 31 and found.query_words[-1].contribution == 0.0


@pytest.mark.parametrize("name", ["lstm", "bert-mini", "distilbert"])
def test_contributions_of_tokens_add_up_too(make, name):
    student = make(name)
    found = explain(student, QUERY, TITLE)
    assert found.score == pytest.approx(student.rank(QUERY, [TITLE]).scores[0], abs=1e-5)
    total = sum(word.contribution for word in words_of(found))
    assert abs(found.residual) <= 1e-3
    assert total + found.residual == pytest.approx(found.score - found.baseline, abs=1e-5)
    assert [word.text for word in found.query_words] == ["red", "maxi", "phone", "手机"]


def test_a_transformer_with_a_tokenizer_is_explained_in_its_words(wordpiece_teacher, task):
    student = Student(wordpiece_teacher(task), StudentDescription(task, 200))
    found = explain(student, "red phone", "blue-shoe")
    assert [word.text for word in words_of(found)] == ["red", "phone", "blue", "-", "shoe"]
    assert abs(found.residual) <= 1e-3


def test_scores_fall_as_words_are_deleted_in_order(make):
    student = make("two-tower")
    word = [WordContribution("red", 0, 3, 0.0), WordContribution("phone", 4, 9, 0.0)]
    explanation = Explanation("red phone", "blue", 0.0, 0.0, tuple(word), (WordContribution("blue", 0, 4, 0.0),), 0.0)
    found = deletion_scores(student, explanation, [1, 2, 0])
    texts = [("red phone", "blue"), ("red", "blue"), ("red", ""), ("", "")]
    for score, (query, title) in zip(found, texts, strict=True):
        logits = student.model(student.model.encode([query], [title])).logits
        assert score == pytest.approx(float(logits.softmax(dim=-1)[0].detach().numpy() @ student.gains), abs=1e-5)


def test_deleting_the_explained_words_first_lowers_scores_faster_than_a_random_order(tiny_run):
    student, data = load_student(tiny_run.result.folder), load(tiny_run.experiment.data)
    areas = deletion_areas(student, data.test.texts[:40], data.test.pairs[:40], seed=0)
    assert areas.explained < areas.random


def test_what_cannot_be_explained_is_an_error(make, monkeypatch, task):
    with pytest.raises(DataError, match="query is empty"):
        explain(make("two-tower"), " ", TITLE)
    plain = Task("matching", ("no", "yes"), pair=True, positive="yes")
    with seeds.scope(0, "plain"):
        student = Student(build_student("two-tower", SMALL, plain), StudentDescription(plain, 60))
    with pytest.raises(DataError, match="no gains"):
        explain(student, QUERY, TITLE)
    lstm = make("lstm")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match="pip install 'fed-distill\\[explain\\]'"):
        explain(lstm, QUERY, TITLE)
    custom = make("two-tower")
    custom.model.__class__ = type("Custom", (type(custom.model).__mro__[1],), {"encode": TwoTower.encode})
    with pytest.raises(ModelError, match="features of a Custom have unknown words"):
        explain(custom, QUERY, TITLE)
