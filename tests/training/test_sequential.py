"""The trainer against a loop written out by hand, and its submodel against the whole model."""

import dataclasses

import pytest
import torch

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.models import build_student
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.preparation import draw
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Learner

TEMPERATURE = 2.0


def learner_of(student, examples, proxy, name="shop"):
    return Learner(
        name,
        student,
        {key: value.clone() for key, value in student.state_dict().items()},
        private=student.encode(examples.texts, examples.pairs),
        labels=torch.from_numpy(examples.labels),
        proxy=student.encode(proxy.texts, proxy.pairs),
        randomness=(7, "arm", name, 1),
    )


@pytest.fixture
def learner(student, make_examples):
    return learner_of(student, make_examples(50), make_examples(40, seed=1))


def two_phase_plan(classes=3, proxy=40, proximal_mu=0.0):
    references = {"soft_labels": torch.softmax(torch.randn(proxy, classes, generator=seeds.torch_stream(3)), dim=-1)}
    return Plan(
        (
            Phase(hard_labels(), epochs=2, proximal_mu=proximal_mu),
            Phase(soft_labels(TEMPERATURE), data="proxy", steps=3, references=references, learning_rate_scale=0.5),
        )
    )


def one_fitted(learner, plan, pace=Pace(1e-2), **config):  # noqa: B008  # a frozen value
    trainer = SequentialTrainer(TrainerConfig(batch_size=16, **config))
    return next(trainer.fit([learner], {learner.name: plan}, pace))


def fit(learner, plan, pace=Pace(1e-2), **config):  # noqa: B008  # a frozen value
    fitted = one_fitted(learner, plan, pace, **config)
    return completed(fitted.weights, learner.weights), fitted


def test_training_equals_a_loop_written_by_hand(learner):
    plan = two_phase_plan(proximal_mu=0.3)
    reached, fitted = fit(learner, plan, optimizer="sgd")
    weights = {name: value.clone().requires_grad_() for name, value in learner.student.state_dict().items()}
    start = {name: value.detach().clone() for name, value in weights.items()}
    losses = []
    for number, phase in enumerate(plan.phases):
        segment = draw(phase, number, learner, 16)
        mean = 0.0
        for index in segment.batches:
            batch = {name: values[index] for name, values in segment.encoded.items()}
            logits = torch.func.functional_call(learner.student, weights, (batch,)).logits
            if number == 0:
                loss = torch.nn.functional.cross_entropy(logits, learner.labels[index])
                penalty = sum(((weights[name] - start[name]) ** 2).sum() for name in weights)
                total = loss + 0.3 / 2 * penalty
                rate = 1e-2
            else:
                soft = phase.references["soft_labels"][index]
                target = torch.softmax(soft.log() / TEMPERATURE, dim=-1)
                log_q = torch.log_softmax(logits / TEMPERATURE, dim=-1)
                loss = TEMPERATURE**2 * torch.nn.functional.kl_div(log_q, target, reduction="batchmean")
                total, rate = loss, 0.5e-2
            gradients = torch.autograd.grad(total, list(weights.values()))
            with torch.no_grad():
                for (name, value), gradient in zip(weights.items(), gradients, strict=True):
                    weights[name] = (value - rate * gradient).requires_grad_()
            mean += float(loss) / len(segment.batches)
        losses.append(mean)
    for name, value in weights.items():
        torch.testing.assert_close(reached[name], value.detach(), rtol=1e-5, atol=1e-6)
    assert fitted.loss == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_submodel_trains_to_the_same_weights_as_the_whole_model(learner, optimizer):
    options = {"optimizer": optimizer, "weight_decay": 0.1}
    narrow, fitted = fit(learner, two_phase_plan(proximal_mu=0.1), submodel=True, **options)
    whole, _ = fit(learner, two_phase_plan(proximal_mu=0.1), submodel=False, **options)
    assert fitted.weights.rows
    assert all(len(rows) < 512 for rows in fitted.weights.rows.values())
    for name, value in whole.items():
        torch.testing.assert_close(narrow[name], value, rtol=1e-5, atol=1e-6)


def test_a_submodel_sends_exactly_the_rows_that_the_batches_touch(learner):
    _, fitted = fit(learner, Plan((Phase(hard_labels(), epochs=1),)))
    touched = (
        {0} | set(learner.private["text_ids"].flatten().tolist()) | set(learner.private["pair_ids"].flatten().tolist())
    )
    assert fitted.weights.rows["bag.table"].tolist() == sorted(touched)


def test_the_students_that_training_starts_from_are_not_changed(learner):
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    fit(learner, two_phase_plan())
    fit(learner, two_phase_plan(), submodel=False)
    for name, value in learner.student.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_result_does_not_depend_on_the_other_learners_or_their_order(student, make_examples):
    proxy = make_examples(40, seed=1)
    learners = [learner_of(student, make_examples(20 + 9 * k, seed=k), proxy, f"shop {k}") for k in range(3)]
    plans = {one.name: two_phase_plan() for one in learners}
    trainer = SequentialTrainer(TrainerConfig(batch_size=16))
    forward = {one.name: one for one in trainer.fit(learners, plans, Pace(1e-2))}
    backward = {one.name: one for one in trainer.fit(learners[::-1], plans, Pace(1e-2))}
    for name, one in forward.items():
        assert all(torch.equal(value, backward[name].weights.arrays[key]) for key, value in one.weights.arrays.items())


def test_dropout_is_drawn_from_the_learner_and_not_from_global_state(task, make_examples):
    with seeds.scope(1):
        student = build_student("lstm", {"rows": 256, "width": 8}, task)
    learner = learner_of(student, make_examples(20), make_examples(8, seed=1))
    plan = Plan((Phase(hard_labels(), epochs=1),))
    first, _ = fit(learner, plan)
    torch.rand(100)
    second, _ = fit(learner, plan)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_epoch_visits_every_example_once(learner):
    segment = draw(Phase(hard_labels(), epochs=1), 0, learner, 16)
    assert sorted(torch.cat(segment.batches).tolist()) == list(range(50))
    assert [len(batch) for batch in segment.batches] == [16, 16, 16, 2]


def test_a_loss_that_is_not_finite_names_the_learner(learner):
    broken = dataclasses.replace(learner, name="shop 9")

    def nan(outputs, references):
        return outputs.logits.sum(dim=-1) * float("nan")

    failure = one_fitted(broken, Plan((Phase(nan, steps=1),)))
    assert failure.name == "shop 9"
    assert failure.reason.startswith("shop 9: the loss of phase 1 is nan")


def test_a_learner_without_examples_is_named(student, make_examples):
    empty = learner_of(student, make_examples(3).take([]), make_examples(5), "shop 4")
    failure = one_fitted(empty, Plan((Phase(hard_labels(), epochs=1),)))
    assert failure == Failure("shop 4", "shop 4 has no private examples to train on")


def test_gradients_are_clipped_to_the_configured_norm(learner):
    plan = Plan((Phase(hard_labels(), steps=1),))
    reached, _ = fit(learner, plan, Pace(1.0), optimizer="sgd", clip_norm=1e-3)
    start = learner.student.state_dict()
    moved = torch.cat([(reached[name] - start[name]).flatten() for name in start]).norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_a_phase_has_exactly_one_length():
    with pytest.raises(ValueError, match="exactly one"):
        Phase(hard_labels(), epochs=1, steps=1)
    with pytest.raises(ValueError, match="exactly one"):
        Phase(hard_labels())
