"""The cached teacher: what it depends on, refusals, and what is left of one that was interrupted."""

import logging
from dataclasses import replace

import pytest
import torch

from fed_distill.config import MaskedConfig, TeacherConfig
from fed_distill.data.examples import Examples
from fed_distill.distill import fine_tuning
from fed_distill.distill import teacher as module
from fed_distill.distill.teacher import (
    cached_teacher,
    check_fine_tuning,
    is_fine_tuned,
    teacher_fingerprint,
    tuning_file,
)
from fed_distill.errors import ConfigError
from fed_distill.models import predict


def silent(step, total, metrics):
    assert 0 < step <= total


def test_epochs_and_steps_are_one_budget():
    with pytest.raises(ValueError, match="two budgets of one training: remove one"):
        TeacherConfig(epochs=1, steps=10)
    with pytest.raises(ValueError, match="two budgets of one training: remove one"):
        TeacherConfig(ensemble=[{"epochs": 1, "steps": 10}])
    both = TeacherConfig(steps=10, ensemble=[{"epochs": 2}, {"steps": 5}, {"seed": 1}])
    assert [(one.epochs, one.steps) for one, _ in both.members()] == [(None, 10), (2, None), (None, 5), (None, 10)]


def test_a_model_that_cannot_predict_without_fine_tuning_is_fine_tuned(config):
    assert is_fine_tuned(config.model_copy(update={"epochs": None}))
    for changes in ({"epochs": 0}, {"steps": 0, "epochs": None}):
        with pytest.raises(ConfigError, match="bert-small cannot predict the classes without fine-tuning: set"):
            check_fine_tuning(config.model_copy(update=changes))


def test_cached_teacher_is_trained_once(config, task, public, valid, tmp_path, monkeypatch):
    config = config.model_copy(update={"epochs": 1})
    tuned, name = cached_teacher(tmp_path, config, task, public, valid, public, 0, silent)
    monkeypatch.setattr(module, "fine_tune", lambda *_: pytest.fail("it was trained again"))
    again, same = cached_teacher(tmp_path, config, task, public, valid, public, 0, silent)
    assert same == name == teacher_fingerprint(config, task, public, valid, public, 0)
    assert (again.history, again.best_epoch) == (tuned.history, tuned.best_epoch)
    encoded = tuned.model.encode(valid.texts, None)
    torch.testing.assert_close(predict(again.model, encoded), predict(tuned.model, encoded), rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "teachers").iterdir()] == [name]


class Killed(Exception):
    pass


def killed(step, total, metrics):
    if step == 4 and metrics:  # of fine-tuning, not of pretraining
        raise Killed


def test_training_that_is_cut_short_leaves_no_teacher_behind(config, task, public, valid, tmp_path):
    with pytest.raises(Killed):
        cached_teacher(tmp_path, config, task, public, valid, public, 0, killed)
    assert not list((tmp_path / "teachers").iterdir())


def test_training_that_is_cut_short_is_continued_without_pretraining_again(
    config, task, public, valid, tmp_path, monkeypatch
):
    monkeypatch.setattr(fine_tuning, "STORE_EVERY", 0.0)
    monkeypatch.setattr(fine_tuning, "WRITING_SHARE", float("inf"))
    config = config.model_copy(update={"epochs": 1, "masked": MaskedConfig(epochs=2.0)})
    whole, name = cached_teacher(tmp_path / "whole", config, task, public, valid, public, 0, silent)
    with pytest.raises(Killed):
        cached_teacher(tmp_path, config, task, public, valid, public, 0, killed)
    file = tuning_file(tmp_path, name)
    assert list((tmp_path / "teachers").iterdir()) == [file]
    told = []
    tuned, _ = cached_teacher(tmp_path, config, task, public, valid, public, 0, lambda *args: told.append(args[:2]))
    assert told == [(4, 6), (5, 6), (6, 6)]  # two steps of pretraining are not made again
    for (key, one), other in zip(whole.model.state_dict().items(), tuned.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert not file.exists()


def test_a_file_that_outlived_its_teacher_is_removed(config, task, public, valid, tmp_path):
    config = config.model_copy(update={"epochs": 1})
    _, name = cached_teacher(tmp_path, config, task, public, valid, public, 0, silent)
    left = tuning_file(tmp_path, name)
    left.write_bytes(b"of a process that was killed when the teacher was finished")
    cached_teacher(tmp_path, config, task, public, valid, public, 0, silent)
    assert not left.exists()


def test_torn_teacher_is_made_again_and_said(config, task, public, valid, tmp_path, caplog):
    config = config.model_copy(update={"epochs": 1})
    tuned, name = cached_teacher(tmp_path, config, task, public, valid, public, 0, silent)
    weights = tmp_path / "teachers" / name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with caplog.at_level(logging.WARNING):
        again, _ = cached_teacher(tmp_path, config, task, public, valid, public, 0, silent)
    assert name in caplog.text and "will be trained again" in caplog.text
    for (key, one), other in zip(tuned.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert module._load(tmp_path / "teachers" / name).history == tuned.history


def test_fingerprint_changes_with_everything_that_the_teacher_depends_on(config, task, public, valid, tmp_path):
    def name(config=config, task=task, public=public, valid=valid, domain=valid, seed=0):
        return teacher_fingerprint(config, task, public, valid, domain, seed)

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    local = config.model_copy(update={"model": str(folder)})
    names = [name(config=local)]
    (folder / "model.safetensors").write_bytes(b"2")
    names += [
        name(config=local),
        name(),
        name(seed=1),
        name(config=config.model_copy(update={"learning_rate": 1e-3})),
        name(config=config.model_copy(update={"options": {**config.options, "layers": 2}})),
        name(config=config.model_copy(update={"precision": "bfloat16"})),
        name(task=replace(task, classes=("red", "green", "other"))),
        name(public=replace(public, labels=(public.labels + 1) % 3)),
        name(public=replace(public, texts=("other", *public.texts[1:]))),
        name(public=public.take(range(47))),
        name(valid=public),
    ]
    assert len(set(names)) == len(names)
    reads = config.model_copy(update={"masked": MaskedConfig(epochs=1.0)})
    assert len({name(config=reads), name(config=reads, domain=public), name()}) == 3
    assert name(domain=public) == name()  # which it does not read
    elsewhere = Examples(public.texts, None, public.labels, public.groups + 5, ("other",) * 48)
    assert name(public=elsewhere) == name()


def test_precision_of_a_file_of_labels_is_refused():
    with pytest.raises(ValueError, match=r"'bfloat16' has no effect on a file of labels"):
        TeacherConfig(model="labels-file", precision="bfloat16")
