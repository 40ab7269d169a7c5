"""The teacher's hidden states: computed once, kept as plain arrays, equal to what the teacher gives one by one."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from fed_distill import seeds
from fed_distill.distill.features import features, sentence_embeddings
from fed_distill.distill.hints import POSITIONS
from fed_distill.errors import TrainingError
from fed_distill.models import load_teacher


@pytest.fixture
def teacher(config, task):
    deeper = config.model_copy(update={"options": {**config.options, "layers": 2}})
    with seeds.scope(0, "teacher"):
        return load_teacher(deeper, task).eval()


def quiet(done, total):
    assert 0 < done <= total


def test_they_are_each_layers_mean_state_and_map(teacher, public, tmp_path):
    found = features(teacher, "t", public, tmp_path, quiet)
    assert found.states.shape == (48, 2, 16)
    assert found.maps.shape == (48, 2, POSITIONS)
    for row in (0, 17, 47):
        with torch.no_grad():
            hidden = teacher(teacher.encode([public.texts[row]], None), hidden=True).hidden
        means = torch.stack([states[0].mean(dim=0) for states in hidden[1:]])
        torch.testing.assert_close(found.states[row], means, rtol=1e-4, atol=1e-5)
        mass = torch.stack([states[0].square().sum() for states in hidden[1:]])
        torch.testing.assert_close(found.maps[row].sum(dim=-1), mass, rtol=1e-4, atol=1e-5)


def test_second_time_they_are_read_without_asking_the_teacher(teacher, public, tmp_path, monkeypatch):
    first = features(teacher, "t", public, tmp_path, quiet)
    monkeypatch.setattr(teacher, "forward", lambda *_, **__: pytest.fail("the teacher was asked again"))
    second = features(teacher, "t", public.unlabeled(), tmp_path, quiet)
    assert torch.equal(first.states, second.states)
    assert torch.equal(first.maps, second.maps)


def test_the_teacher_reads_each_example_once_for_states_and_maps(teacher, public, tmp_path, monkeypatch):
    read, forward = [], teacher.forward
    monkeypatch.setattr(
        teacher, "forward", lambda batch, **given: read.append(len(batch["input_ids"])) or forward(batch, **given)
    )
    features(teacher, "t", public, tmp_path, quiet)
    assert sum(read) == len(public)


def test_another_teacher_or_proxy_is_computed_anew(teacher, public, tmp_path):
    for name, proxy in (("t", public), ("u", public), ("t", public.take(range(47)))):
        features(teacher, name, proxy, tmp_path, quiet)
    assert len(list((tmp_path / "features").iterdir())) == 6


def test_a_torn_file_is_reported_and_computed_again(teacher, public, tmp_path, caplog):
    first = features(teacher, "t", public, tmp_path, quiet)
    expected = first.states.clone(), first.maps.clone()
    for path in (tmp_path / "features").iterdir():
        np.save(path, np.load(path)[:-1])
    with caplog.at_level(logging.WARNING):
        second = features(teacher, "t", public, tmp_path, quiet)
    assert caplog.text.count("recomputed") == 2
    assert torch.equal(second.states, expected[0]) and torch.equal(second.maps, expected[1])


def test_a_diverged_teacher_is_refused(teacher, public, tmp_path):
    with torch.no_grad():
        teacher.network.bert.encoder.layer[1].output.dense.bias[0] = torch.nan
    with pytest.raises(TrainingError, match="proxy example 0 is not finite"):
        features(teacher, "t", public, tmp_path, quiet)
    assert not list(tmp_path.rglob("*.npy"))


def test_sentence_embeddings_are_means_of_last_states_of_each_text_alone(teacher, public, tmp_path, monkeypatch):
    pairs = dataclasses.replace(public, pairs=public.texts[1:] + public.texts[:1])
    found = sentence_embeddings(teacher, "t", pairs, tmp_path, quiet)
    assert found.shape == (48, 2, 16)
    for row in (0, 17, 47):
        for place, text in enumerate((pairs.texts[row], pairs.pairs[row])):
            with torch.no_grad():
                hidden = teacher(teacher.encode([text], None), hidden=True).hidden
            torch.testing.assert_close(found[row, place], hidden[-1][0].mean(dim=0), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(teacher, "forward", lambda *_, **__: pytest.fail("the teacher was asked again"))
    assert torch.equal(sentence_embeddings(teacher, "t", pairs.unlabeled(), tmp_path, quiet), found)
    assert torch.equal(sentence_embeddings(teacher, "t", public, tmp_path, quiet), found[:, :1])
