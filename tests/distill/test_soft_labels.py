"""Soft labels: computed once, kept as a plain array, never taken from the wrong or a torn file."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_distill import seeds
from fed_distill.distill import soft_labels as module
from fed_distill.distill.soft_labels import soft_labels
from fed_distill.errors import DataError, TrainingError
from fed_distill.models import load_teacher


def quiet(done, total):
    assert 0 < done <= total


@pytest.fixture
def teacher(config, task):
    with seeds.scope(0, "teacher"):
        return load_teacher(config, task).eval()


@pytest.fixture
def counted(teacher, monkeypatch):
    """The teacher, and how many examples it was asked about."""
    asked = []
    forward = teacher.forward

    def counting(batch, hidden=False):
        asked.append(len(batch["input_ids"]))
        return forward(batch, hidden)

    monkeypatch.setattr(teacher, "forward", counting)
    return teacher, asked


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_labels_are_the_teachers_softmax_at_the_temperature(temperature, teacher, public, tmp_path):
    labels = soft_labels(teacher, "t", public, temperature, tmp_path, quiet)
    rows = []
    for text in public.texts:
        logits = teacher(teacher.encode([text], None)).logits.detach()[0].double()
        rows.append((logits / temperature).exp() / (logits / temperature).exp().sum())
    assert labels.dtype == torch.float32
    torch.testing.assert_close(labels.double(), torch.stack(rows), rtol=1e-5, atol=1e-6)


def test_second_time_they_are_read_without_asking_the_teacher(counted, public, tmp_path):
    teacher, asked = counted
    first = soft_labels(teacher, "t", public, 1.0, tmp_path, quiet)
    assert sum(asked) == len(public)
    second = soft_labels(teacher, "t", public, 1.0, tmp_path, lambda *_: pytest.fail("no progress to tell of"))
    assert sum(asked) == len(public)
    assert torch.equal(first, second)


def test_they_do_not_depend_on_the_labels_of_the_proxy(counted, public, tmp_path):
    teacher, asked = counted
    soft_labels(teacher, "t", public, 1.0, tmp_path, quiet)
    soft_labels(teacher, "t", public.unlabeled(), 1.0, tmp_path, quiet)
    assert sum(asked) == len(public)


def test_another_teacher_proxy_or_temperature_is_computed_anew(counted, public, tmp_path):
    teacher, asked = counted
    shuffled = replace(public, texts=public.texts[::-1])
    asks = [("t", public, 1.0), ("u", public, 1.0), ("t", public, 2.0), ("t", shuffled, 1.0), ("t", public, 1)]
    for name, proxy, temperature in asks:
        soft_labels(teacher, name, proxy, temperature, tmp_path, quiet)
    assert sum(asked) == 4 * len(public)
    assert len(list((tmp_path / "soft_labels").iterdir())) == 4


def test_progress_counts_examples(teacher, public, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 20)
    seen = []
    labels = soft_labels(teacher, "t", public, 1.0, tmp_path, lambda *told: seen.append(told))
    assert seen == [(20, 48), (40, 48), (48, 48)]
    assert labels.shape == (48, 3)


def stored(folder):
    (path,) = (folder / "soft_labels").iterdir()
    return path


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path):
    path.write_bytes(b"")


def _rows_missing(path):
    np.save(path, np.load(path)[:-1])


def _not_probabilities(path):
    np.save(path, np.load(path) * 2)


def _not_a_number(path):
    np.save(path, np.full_like(np.load(path), np.nan))


def _pickled(path):
    np.save(path, np.array([{"a": 1}] * 48, dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [_cut, _empty, _rows_missing, _not_probabilities, _not_a_number, _pickled])
def test_file_that_cannot_be_used_is_reported_and_computed_again(damage, counted, public, tmp_path, caplog):
    teacher, asked = counted
    first = soft_labels(teacher, "t", public, 1.0, tmp_path, quiet).clone()
    damage(stored(tmp_path))
    with caplog.at_level(logging.WARNING):
        second = soft_labels(teacher, "t", public, 1.0, tmp_path, quiet)
    assert stored(tmp_path).name in caplog.text and "recomputed" in caplog.text
    assert torch.equal(first, second) and sum(asked) == 2 * len(public)
    np.testing.assert_array_equal(np.load(stored(tmp_path)), first.numpy())


def test_writing_to_the_tensor_does_not_reach_the_file(teacher, public, tmp_path):
    labels = soft_labels(teacher, "t", public, 1.0, tmp_path, quiet)
    labels.zero_()
    assert soft_labels(teacher, "t", public, 1.0, tmp_path, quiet).sum() == pytest.approx(len(public), rel=1e-5)


def test_empty_proxy_and_a_diverged_teacher_are_refused(teacher, public, tmp_path):
    with pytest.raises(DataError, match="proxy set is empty"):
        soft_labels(teacher, "t", public.take([]), 1.0, tmp_path, quiet)
    with torch.no_grad():
        teacher.network.classifier.bias[1] = torch.nan
    with pytest.raises(TrainingError, match="proxy example 0 is not finite"):
        soft_labels(teacher, "t", public, 1.0, tmp_path, quiet)
    assert not list(tmp_path.rglob("*.npy"))
