"""Disagreements of teacher and student: the measure by hand and by a slow twin, what is listed, and the report."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_distill import seeds
from fed_distill.data.student_description import StudentDescription
from fed_distill.errors import CheckpointError
from fed_distill.models import build_student, predict
from fed_distill.reporting import disagreements as module
from fed_distill.reporting.disagreements import (
    DISAGREEMENTS,
    Disagreement,
    Disagreements,
    Word,
    disagreements,
    divergence,
    read_disagreements,
    written,
)
from fed_distill.reporting.report import write_report
from fed_distill.serving.explain import explain
from fed_distill.serving.student import Student

PROBABILITIES = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3).map(lambda found: np.array(found) / sum(found))


def entropy(row):
    return -sum(value * math.log2(value) for value in row if value > 0)


@pytest.mark.parametrize(
    ("one", "other", "bits"),
    [
        ([1.0, 0.0], [0.0, 1.0], 1.0),
        ([0.5, 0.5], [0.5, 0.5], 0.0),
        ([0.5, 0.5], [1.0, 0.0], 2 - 0.75 * math.log2(3) - 0.5),  # H(3/4, 1/4) = 2 - 3/4 log2 3, minus 1/2 of 1 bit
        ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5], 1.0),
    ],
)
def test_the_divergence_by_hand(one, other, bits):
    assert divergence(np.array([one]), np.array([other])).tolist() == pytest.approx([bits], abs=1e-12)


@given(PROBABILITIES, PROBABILITIES)
def test_the_divergence_is_that_of_its_definition(one, other):
    """Lin 1991, eq. 4.1: the entropy of the mean minus the mean of the entropies."""
    expected = entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2
    found = divergence(np.array([one, other]), np.array([other, one]))
    assert found.tolist() == pytest.approx([expected, expected], abs=1e-7)
    assert (found >= 0).all() and (found <= 1).all()


def made(kind, task, **options):
    with seeds.scope(0, "disagreeing student"):
        return build_student(kind, options, task)


@pytest.fixture
def taught(task, make_examples):
    """A student, a proxy set, and labels of a teacher that agrees with it except at two examples."""
    model, proxy = made("two-tower", task, rows=256, width=8, head_width=8), make_examples(40).unlabeled()
    own = predict(model, model.encode(proxy.texts, proxy.pairs))
    labels = own.clone()
    for row, strength in ((7, 0.6), (23, 1.0)):
        other = torch.zeros(len(task.classes))
        other[int(own[row].argmin())] = 1.0
        labels[row] = strength * other + (1.0 - strength) * own[row]
    return model, proxy, labels, own


def test_the_largest_come_first_with_what_both_say(taught, task):
    model, proxy, labels, own = taught
    found = disagreements(model, task, proxy, labels, 2)
    assert [(one.text, one.pair) for one in found.examples] == [(proxy.texts[row], proxy.pairs[row]) for row in (23, 7)]
    assert found.examples[0].teacher == pytest.approx(labels[23].tolist(), abs=1e-6)
    assert found.examples[0].student == pytest.approx(own[23].tolist(), abs=1e-6)
    assert (found.proxy, found.compared, len(found.examples)) == (40, 40, 2)
    assert found.mean == pytest.approx(sum(one.divergence for one in found.examples) / 40, abs=1e-6)
    assert found.agree == pytest.approx(float((labels.argmax(1) == own.argmax(1)).double().mean()))
    assert found.agree < 1.0


def test_words_are_those_of_an_explanation(taught, task):
    model, proxy, labels, _ = taught
    one = disagreements(model, task, proxy, labels, 1).examples[0]
    expected = explain(Student(model, StudentDescription(task, 300)), one.text, one.pair)
    for words, full in zip(one.words, (expected.query_words, expected.title_words), strict=True):
        ordered = sorted(full, key=lambda word: -abs(word.contribution))[:3]
        assert [word.text for word in words] == [word.text for word in ordered]
        assert [word.contribution for word in words] == pytest.approx([word.contribution for word in ordered], abs=1e-6)


def test_a_student_without_towers_has_no_words(task, make_examples):
    model, proxy = made("lstm", task, rows=64, width=8), make_examples(5).unlabeled()
    labels = torch.full((5, len(task.classes)), 1 / len(task.classes))
    assert [one.words for one in disagreements(model, task, proxy, labels, 9).examples] == [[]] * 5


def test_of_a_large_proxy_set_evenly_spaced_examples_are_compared(taught, task, monkeypatch):
    model, proxy, labels, _ = taught
    monkeypatch.setattr(module, "_MOST_COMPARED", 14)  # rows 0, 3, 6 ... 39
    found = disagreements(model, task, proxy, labels, 40)
    assert (found.proxy, found.compared) == (40, 14)
    assert {one.text for one in found.examples} <= {proxy.texts[row] for row in range(0, 40, 3)}


def test_the_students_mode_and_weights_stay(taught, task):
    model, proxy, labels, _ = taught
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    disagreements(model, task, proxy, labels, 1)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


HOSTILE = '<script>alert("1")</script> & <img src=x onerror=alert(1)>'


def test_the_report_shows_texts_as_text(run_folder, tmp_path):
    one = Disagreement(
        text=HOSTILE,
        pair=f"title {HOSTILE}",
        teacher=[0.9, 0.1],
        student=[0.25, 0.75],
        divergence=0.33,
        words=[[Word(text=HOSTILE, contribution=-0.25)], []],
    )
    found = Disagreements(classes=["other", HOSTILE], proxy=9000, compared=4000, mean=0.02, agree=0.9, examples=[one])
    assert 'id="disagreements"' not in write_report(run_folder).read_text(encoding="utf-8")
    (run_folder / DISAGREEMENTS).write_text(written(found), encoding="utf-8")
    assert read_disagreements(run_folder) == found
    html = write_report(run_folder).read_text(encoding="utf-8")
    section = html[html.index('id="disagreements"') :].partition("</section>")[0]
    assert "<script" not in html and "<img" not in section
    assert section.count("&lt;script&gt;") == 4
    assert "-0.250" in section


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"classes": 1}'])
def test_a_damaged_file_is_said(run_folder, content):
    (run_folder / DISAGREEMENTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"disagreements\.json is damaged"):
        write_report(run_folder)


def test_the_file_is_strict_json(taught, task):
    model, proxy, labels, _ = taught
    content = json.loads(written(disagreements(model, task, proxy, labels, 2)), parse_constant=pytest.fail)
    assert set(content) == {"classes", "proxy", "compared", "mean", "agree", "examples"}
