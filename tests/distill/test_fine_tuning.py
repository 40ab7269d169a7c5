"""Fine-tuning the teacher: its schedule, early stopping, determinism, refusals, and going on after an interruption."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_distill import seeds
from fed_distill.config import TeacherConfig
from fed_distill.data.examples import UNLABELED
from fed_distill.distill import fine_tuning as module
from fed_distill.distill.fine_tuning import TuningCheckpoint, fine_tune
from fed_distill.errors import CheckpointError, DataError, TrainingError
from fed_distill.models import load_teacher, predict
from tests.distill.steps import OTHER_STEPS


def fresh(config, task):
    with seeds.scope(0, "weights"):
        return load_teacher(config, task)


def silent(step, total, metrics):
    assert 0 < step <= total


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_teacher_learns_what_the_public_examples_teach(config, task, public, valid):
    large = {**config.options, "width": 64}  # so that it learns whatever it starts from
    config = config.model_copy(update={"epochs": 30, "patience": 60, "learning_rate": 1e-3, "options": large})
    tuned = fine_tune(fresh(config, task), public, valid, task, config, 0, silent)
    predicted = predict(tuned.model, tuned.model.encode(valid.texts, None)).argmax(dim=1)
    assert (predicted.numpy() == valid.labels).mean() > 0.9
    assert tuned.history[-1]["valid_loss"] < tuned.history[0]["valid_loss"]
    assert not tuned.model.training


def test_rate_warms_up_and_falls_along_a_line_and_validation_comes_every_half_epoch(config, task, public, valid):
    config = config.model_copy(update={"epochs": 2, "batch_size": 12, "learning_rate": 0.008, "warmup_share": 0.5})
    seen = []
    tuned = fine_tune(fresh(config, task), public, valid, task, config, 0, lambda *told: seen.append(told))
    assert [(step, total) for step, total, _ in seen] == [(step, 8) for step in range(1, 9)]
    rates = [metrics["learning_rate"] for _, _, metrics in seen]
    assert rates == pytest.approx([0, 0.002, 0.004, 0.006, 0.008, 0.006, 0.004, 0.002])
    assert [row["epoch"] for row in tuned.history] == [0.5, 1.0, 1.5, 2.0]
    assert [step for step, _, metrics in seen if "valid_macro_f1" in metrics] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"steps": 30}, [2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 22, 24, 26, 27, 28, 30]),  # 1.5 apart
        ({"steps": 7}, [1, 2, 3, 4, 5, 6, 7]),
        ({"steps": 10, "checks": 4}, [2, 5, 8, 10]),
        ({"epochs": 3, "checks": 2}, [9, 18]),
        ({"epochs": 2}, [3, 6, 9, 12]),
        ({}, [3, 6, 9, 12, 15, 18]),
    ],
)
def test_checks_are_spread_evenly_over_the_budget(config, task, public, valid, changes, steps):
    """6 steps are an epoch; without patience a budget of steps is spent whole."""
    table = {**config.model_dump(), "epochs": None, "patience": None if "steps" in changes else 99, **changes}
    table |= {"learning_rate": 1e-12}  # nothing improves
    seen = []
    own = TeacherConfig.model_validate(table)
    tuned = fine_tune(fresh(own, task), public, valid, task, own, 0, lambda *told: seen.append(told))
    assert [row["step"] for row in tuned.history] == steps
    assert [row["epoch"] for row in tuned.history] == pytest.approx([step / 6 for step in steps])
    assert [(step, total) for step, total, _ in seen] == [(step, steps[-1]) for step in range(1, steps[-1] + 1)]


@pytest.mark.parametrize(("examples", "kept"), [(99, 1), (100, 2)])
def test_a_small_validation_set_compares_losses_first(config, task, public, valid, monkeypatch, examples, kept):
    scores = iter([(0.5, 1.0), (0.6, 0.5), (0.7, 0.8), (0.6, 0.6)])
    measured = ({"valid_macro_f1": f1, "valid_loss": loss} for f1, loss in scores)
    monkeypatch.setattr(module, "_validate", lambda *_: next(measured))
    many = valid.take([place % len(valid) for place in range(examples)])
    config = config.model_copy(update={"epochs": 2})
    assert fine_tune(fresh(config, task), public, many, task, config, 0, silent).best_epoch == (kept + 1) / 2


@pytest.mark.parametrize("change", OTHER_STEPS)
def test_every_key_of_its_optimizer_changes_what_is_trained(config, task, public, valid, change):
    def tuned(**changes):
        own = TeacherConfig.model_validate({**config.model_dump(), "epochs": 1, **changes})
        return weights_of(fine_tune(fresh(own, task), public, valid, task, own, 0, silent).model).values()

    base = change.get("of", {})
    assert not all(map(torch.equal, tuned(**base), tuned(**base, **change["to"])))


@pytest.mark.parametrize(
    ("scores", "kept", "checks"),
    [
        ([0.5, 0.7, 0.6, 0.6, 0.9], 1, 4),
        ([0.5, 0.6, 0.5, 0.7, 0.6, 0.6, 0.9], 3, 6),
        ([0.9, 0.8, 0.8], 0, 3),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 7, 8),
    ],
)
def test_early_stopping_waits_for_its_patience_and_restores_the_best(
    scores, kept, checks, config, task, public, valid, monkeypatch
):
    config = config.model_copy(update={"patience": 2})
    snapshots, script = [], iter(scores)

    def scripted(teacher, encoded, examples, of_task):
        snapshots.append(weights_of(teacher))
        return {"valid_macro_f1": next(script), "valid_loss": 1.0}

    monkeypatch.setattr(module, "_validate", scripted)
    tuned = fine_tune(fresh(config, task), public, valid, task, config, 0, silent)
    assert len(snapshots) == checks
    assert tuned.best_epoch == (kept + 1) / 2
    for name, value in tuned.model.state_dict().items():
        torch.testing.assert_close(value, snapshots[kept][name], rtol=0, atol=0)
    assert any(not torch.equal(value, snapshots[kept][name]) for name, value in snapshots[kept - 1].items())


def test_of_equal_scores_the_lower_loss_is_better(config, task, public, valid, monkeypatch):
    losses = iter([1.0, 0.5, 0.7, 0.6])
    config = config.model_copy(update={"epochs": 2})
    monkeypatch.setattr(module, "_validate", lambda *_: {"valid_macro_f1": 0.5, "valid_loss": next(losses)})
    assert fine_tune(fresh(config, task), public, valid, task, config, 0, silent).best_epoch == 1.0


def test_same_seed_gives_the_same_weights_whatever_was_drawn_before(config, task, public, valid):
    config = config.model_copy(update={"epochs": 1})
    tuned = []
    for seed in (0, 0, 1):
        torch.rand(5)
        state = torch.get_rng_state()
        tuned.append(weights_of(fine_tune(fresh(config, task), public, valid, task, config, seed, silent).model))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, tuned[1][name]) for name, value in tuned[0].items())
    assert any(not torch.equal(value, tuned[2][name]) for name, value in tuned[0].items())


def test_validation_measures_loss_and_macro_f1(config, task, valid):
    model = fresh(config, task).eval()
    logits = model(model.encode(valid.texts, None)).logits.detach()
    measured = module._validate(model, model.encode(valid.texts, None), valid, task)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(valid.labels)).item()
    assert measured["valid_loss"] == pytest.approx(expected, rel=1e-5)
    predicted, f1 = logits.argmax(dim=1).numpy(), []
    for label in sorted({*predicted.tolist(), *valid.labels.tolist()}):
        hits = ((predicted == label) & (valid.labels == label)).sum()
        f1.append(2 * hits / ((predicted == label).sum() + (valid.labels == label).sum()))
    assert measured["valid_macro_f1"] == pytest.approx(np.mean(f1))


def test_no_more_than_the_configured_examples_are_used_and_unlabeled_ones_never(config, task, public, valid):
    config = config.model_copy(update={"epochs": 1, "max_examples": 16})
    totals = []
    fine_tune(fresh(config, task), public, valid, task, config, 0, lambda step, total, _: totals.append(total))
    assert totals == [2, 2]
    half = replace(public, labels=np.where(np.arange(48) < 24, public.labels, UNLABELED))
    fine_tune(
        fresh(config, task),
        half,
        valid,
        task,
        config.model_copy(update={"max_examples": 100}),
        0,
        lambda step, total, _: totals.append(total),
    )
    assert totals[2:] == [3, 3, 3]


def test_unfit_public_examples_are_refused(config, task, public, valid):
    one_class = replace(public, labels=np.ones(48, dtype=np.int64))
    with pytest.raises(DataError, match="all 48 public examples have the label 'green'"):
        fine_tune(fresh(config, task), one_class, valid, task, config, 0, silent)
    with pytest.raises(DataError, match="no labelled public example"):
        fine_tune(fresh(config, task), public.unlabeled(), valid, task, config, 0, silent)
    with pytest.raises(DataError, match="no labelled public validation example"):
        fine_tune(fresh(config, task), public, valid.take([]), task, config, 0, silent)


def test_loss_that_is_not_finite_stops_the_training(config, task, public, valid):
    model = fresh(config, task)
    with torch.no_grad():
        model.network.classifier.bias[0] = torch.nan
    with pytest.raises(TrainingError, match=r"loss is nan at step 1: lower teacher\.learning_rate"):
        fine_tune(model, public, valid, task, config, 0, silent)


def test_lower_precision_is_of_products_alone(config, task, public, valid, monkeypatch):
    """A step in bfloat16, whose numbers have 8 significant bits, differs a little, and its weights are float32."""
    config = config.model_copy(
        update={"epochs": None, "steps": 1, "checks": 1, "optimizer": "sgd", "warmup_share": 0.0}
    )
    start = weights_of(fresh(config, task))
    exact = weights_of(fine_tune(fresh(config, task), public, valid, task, config, 0, silent).model)
    rough_config = config.model_copy(update={"precision": "bfloat16"})
    rough = weights_of(fine_tune(fresh(config, task), public, valid, task, rough_config, 0, silent).model)
    assert {value.dtype for value in rough.values()} == {torch.float32}
    moved = torch.cat([(exact[name] - start[name]).flatten() for name in start])
    off = torch.cat([(rough[name] - exact[name]).flatten() for name in start]).norm() / moved.norm()
    assert 1e-5 < off < 0.05

    seen = []
    monkeypatch.setattr(module, "_train_step", lambda *_: seen.append(torch.get_float32_matmul_precision()) or 0.0)
    before = torch.get_float32_matmul_precision()
    fine_tune(fresh(config, task), public, valid, task, config.model_copy(update={"precision": "tf32"}), 0, silent)
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == before


class Interrupted(Exception):
    pass


def interrupted_after(steps):
    def report(step, total, metrics):
        if step == steps:
            raise Interrupted

    return report


def assert_same(tuned, whole):
    assert (tuned.history, tuned.best_epoch) == (whole.history, whole.best_epoch)
    for (name, value), other in zip(tuned.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
@pytest.mark.parametrize("rate", [3e-3, 0.3])  # the best validation is one of the first, or comes later
@pytest.mark.parametrize("stops", [(2,), (4,), (5, 9), (3, 4, 11, 12)])
def test_interrupted_fine_tuning_ends_as_if_it_had_not_been(
    stops, rate, optimizer, config, task, public, valid, tmp_path, monkeypatch
):
    """Batches of 8 make 6 steps an epoch, and a validation every 3 steps."""
    monkeypatch.setattr(module, "STORE_EVERY", 0.0)
    monkeypatch.setattr(module, "WRITING_SHARE", float("inf"))
    changes = {"epochs": 2, "learning_rate": rate, **optimizer}
    config = TeacherConfig.model_validate({**config.model_dump(), **changes})
    whole = fine_tune(fresh(config, task), public, valid, task, config, 0, silent)
    path, told = tmp_path / "unfinished", []
    for stop in stops:
        with pytest.raises(Interrupted):
            checkpoint = TuningCheckpoint(path)
            assert checkpoint.begun == (stop != stops[0])
            report = interrupted_after(stop)
            fine_tune(fresh(config, task), public, valid, task, config, 0, report, checkpoint)
    tuned = fine_tune(
        fresh(config, task), public, valid, task, config, 0, lambda *args: told.append(args[0]), TuningCheckpoint(path)
    )
    assert told == list(range(stops[-1], 13))  # the step that was interrupted is made again
    assert_same(tuned, whole)


def test_fine_tuning_is_stored_once_a_minute_and_takes_a_twentieth_of_the_time_at_most(
    config, task, public, valid, tmp_path, monkeypatch
):
    clock, stored, seconds = [0.0], [], 1.0

    def write(*args):
        stored.append(clock[0])
        clock[0] += seconds

    def report(step, total, metrics):
        clock[0] += 10.0

    monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(module, "write_checkpoint", write)

    def times():
        stored.clear()
        clock[0] = 0.0
        fine_tune(
            fresh(config, task), public, valid, task, config, 0, report, TuningCheckpoint(tmp_path / "unfinished")
        )
        return stored

    assert times() == [60, 121, 182]  # 24 steps of 10 s
    seconds = 4.0
    assert times() == [60, 144, 228]  # 80 s between two of 4 s


def test_fine_tuning_whose_file_is_damaged_starts_again_and_says_so(
    config, task, public, valid, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(module, "STORE_EVERY", 0.0)
    path = tmp_path / "unfinished"
    with pytest.raises(Interrupted):
        fine_tune(fresh(config, task), public, valid, task, config, 0, interrupted_after(5), TuningCheckpoint(path))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    checkpoint = TuningCheckpoint(path)
    assert not checkpoint.begun
    assert "an interrupted fine-tuning starts again" in caplog.text and "checksum" in caplog.text
    tuned = fine_tune(fresh(config, task), public, valid, task, config, 0, silent, checkpoint)
    assert_same(tuned, fine_tune(fresh(config, task), public, valid, task, config, 0, silent))


def test_fine_tuning_goes_on_if_its_file_cannot_be_written(config, task, public, valid, tmp_path, monkeypatch, caplog):
    tried = []

    def full(*args):
        tried.append(args)
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(module, "STORE_EVERY", 0.0)
    monkeypatch.setattr(module, "write_checkpoint", full)
    tuned = fine_tune(
        fresh(config, task), public, valid, task, config, 0, silent, TuningCheckpoint(tmp_path / "unfinished")
    )
    assert len(tried) == 1 and "the disk is full" in caplog.text
    assert_same(tuned, fine_tune(fresh(config, task), public, valid, task, config, 0, silent))


def test_an_intact_file_of_another_teacher_is_refused(config, task, public, valid, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STORE_EVERY", 0.0)
    path = tmp_path / "unfinished"
    with pytest.raises(Interrupted):
        fine_tune(fresh(config, task), public, valid, task, config, 0, interrupted_after(5), TuningCheckpoint(path))
    wider = config.model_copy(update={"options": {**config.options, "width": 32}})
    with pytest.raises(CheckpointError, match="unfinished is of another teacher: delete it to train"):
        fine_tune(fresh(wider, task), public, valid, task, wider, 0, silent, TuningCheckpoint(path))
