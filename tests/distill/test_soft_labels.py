"""Soft labels: computed once, kept as a plain array, never taken from the wrong or a torn file."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_distill import seeds
from fed_distill.data.examples import Examples
from fed_distill.distill import soft_labels as module
from fed_distill.distill.soft_labels import longest_first, soft_labels
from fed_distill.errors import DataError, TrainingError
from fed_distill.models import load_teacher, predict


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


def test_labels_of_lower_precision_are_close(teacher, public, tmp_path):
    exact = soft_labels(teacher, "t", public, 1.0, tmp_path, quiet)
    rough = soft_labels(teacher, "rough", public, 1.0, tmp_path, quiet, "bfloat16")
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.sum(dim=1), torch.ones(len(rough)))  # the softmax is computed in float32
    assert 0.0 < (rough - exact).abs().max() < 0.02


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


def many(count):
    """Pairs of texts of widely differing lengths, in random order."""
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(rng.choice(["lamp", "red", "灯", "kettle"], size=rng.integers(1, 12))) for _ in range(count))
    zeros = np.zeros(count, dtype=np.int64)
    return Examples(texts, None, zeros, zeros, ("m",) * count)


def test_chunks_by_length_give_what_one_chunk_in_order_gives(teacher, tmp_path, monkeypatch):
    proxy = many(90)
    monkeypatch.setattr(module, "_CHUNK", 16)
    by_length = soft_labels(teacher, "t", proxy, 1.0, tmp_path, quiet)
    in_order = predict(teacher, teacher.encode(proxy.texts, None))
    torch.testing.assert_close(by_length, in_order, rtol=0.0, atol=1e-6)


def test_chunks_pad_less(teacher, tmp_path, monkeypatch):
    padded, forward = [], teacher.forward

    def measuring(batch, hidden=False):
        padded.append(batch["input_ids"].numel())
        return forward(batch, hidden)

    monkeypatch.setattr(teacher, "forward", measuring)
    monkeypatch.setattr(module, "_CHUNK", 16)
    proxy = many(90)
    soft_labels(teacher, "t", proxy, 1.0, tmp_path / "sorted", quiet)
    by_length = sum(padded)
    padded.clear()
    monkeypatch.setattr(module, "longest_first", lambda examples: torch.arange(len(examples)))
    soft_labels(teacher, "t", proxy, 1.0, tmp_path / "in order", quiet)
    assert by_length < 0.85 * sum(padded)


def test_lengths_count_both_texts_in_bytes():
    zeros = np.zeros(4, dtype=np.int64)
    texts, pairs = ("ab", "abcdef", "灯灯", "a"), ("cd", "", "c", "a")
    assert longest_first(Examples(texts, pairs, zeros, zeros, ("m",) * 4)).tolist() == [2, 1, 0, 3]


def test_a_killed_labelling_loses_at_most_one_chunk(counted, tmp_path, monkeypatch):
    """Killed at every chunk in turn: chunks that were finished are neither computed again nor left on the disk."""
    teacher, asked = counted
    proxy = many(90)
    monkeypatch.setattr(module, "_CHUNK", 16)
    whole = soft_labels(teacher, "t", proxy, 1.0, tmp_path / "whole", quiet).clone()
    for finished in range(6):
        asked.clear()

        def kill(done, total, finished=finished):
            if done > 16 * finished:
                raise KeyboardInterrupt

        folder = tmp_path / str(finished)
        with pytest.raises(KeyboardInterrupt):
            soft_labels(teacher, "t", proxy, 1.0, folder, kill)
        assert sum(asked) == min(16 * (finished + 1), 90)
        labels = soft_labels(teacher, "t", proxy, 1.0, folder, quiet)
        assert sum(asked) == 90
        assert torch.equal(labels, whole)
        assert [path.suffix for path in (folder / "soft_labels").iterdir()] == [".npy"]


def test_a_damaged_chunk_is_reported_and_computed_again(counted, tmp_path, monkeypatch, caplog):
    teacher, asked = counted
    monkeypatch.setattr(module, "_CHUNK", 16)

    def kill(done, total):
        if done > 32:
            raise KeyboardInterrupt

    proxy = many(90)
    with pytest.raises(KeyboardInterrupt):
        soft_labels(teacher, "t", proxy, 1.0, tmp_path, kill)
    _cut(sorted((tmp_path / "soft_labels").iterdir())[0])
    with caplog.at_level(logging.WARNING):
        soft_labels(teacher, "t", proxy, 1.0, tmp_path, quiet)
    assert "will be recomputed" in caplog.text
    assert sum(asked) == 90 + 16


def test_another_process_may_delete_the_chunks_when_it_has_all(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 16)
    proxy = many(90)

    def delete(done, total):
        for part in (tmp_path / "soft_labels").glob("*.part"):
            part.unlink()

    labels = soft_labels(teacher, "t", proxy, 1.0, tmp_path, delete)
    torch.testing.assert_close(labels, predict(teacher, teacher.encode(proxy.texts, None)), rtol=0.0, atol=1e-6)


def test_the_first_example_that_is_not_finite_is_named_by_its_place_in_the_proxy_set(teacher, tmp_path, monkeypatch):
    proxy = many(90)
    bad = [7, 60]

    def diverged(model, encoded, temperature):
        labels = torch.full((16, 3), 1 / 3)
        labels[-2:] = torch.nan
        return labels

    monkeypatch.setattr(module, "predict", diverged)
    monkeypatch.setattr(module, "_CHUNK", 16)
    rest = [row for row in range(90) if row not in bad]
    monkeypatch.setattr(module, "longest_first", lambda examples: torch.tensor([*rest[:14], *bad[::-1], *rest[14:]]))
    with pytest.raises(TrainingError, match="proxy example 7 is not finite"):
        soft_labels(teacher, "t", proxy, 1.0, tmp_path, quiet)
    assert not list(tmp_path.rglob("*.part"))
