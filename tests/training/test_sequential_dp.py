"""Private phases against a loop over single examples, written out by hand from Abadi et al. 2016, algorithm 1.

In float64 where noise is added: noised sums are rounded to a grid, where one that differs in its last bit may go to
another point.
"""

import dataclasses
import re

import pytest
import torch
from torch.func import functional_call

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.models import build_student
from fed_distill.privacy.dp_sgd import ExampleDP, add_noise, grid
from fed_distill.seeds import Keystream
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.preparation import Prepared, draw
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Learner

STUDENTS = {
    "two-tower": {"rows": 512, "width": 8, "head_width": 8},
    "static": {"width": 8, "head_width": 8},
    "lstm": {"rows": 256, "width": 8},
    "bert-mini": {"rows": 256, "width": 16, "layers": 1, "max_length": 24},
    "distilbert": {"rows": 256, "width": 16, "layers": 1, "max_length": 24},
    "mobilebert": {"rows": 256, "width": 16, "layers": 1, "max_length": 24},
}
every_student = pytest.mark.parametrize("name", STUDENTS)
LIMITS = {"two-tower": 2.0, "static": 2.0, "lstm": 0.95, "bert-mini": 0.95, "distilbert": 0.91, "mobilebert": 0.94}
"""Norms that some examples' gradients exceed and others do not."""
NOISY = {name: ExampleDP(noise_multiplier=0.7, max_grad_norm=limit) for name, limit in LIMITS.items()}
RATE = 0.05
BATCH = 4
SMALLEST = 1e-6
"""What Opacus adds to a norm before it divides."""


@pytest.fixture
def learner_of(task, make_examples, wordpiece_teacher):
    """A function that makes a learner of some kind, private examples and proxy examples; some rows are its own."""
    teacher, texts = wordpiece_teacher(task), make_examples(20).texts

    def make(name="two-tower", size=11, proxy=3, privacy=None, round_number=1, student=None):
        if student is None:
            with seeds.scope(0, name):
                student = build_student(name, STUDENTS[name], task, teacher, texts)
        own, public = make_examples(size), make_examples(proxy, seed=1)
        return Learner(
            "shop",
            student,
            {key: value.clone() for key, value in student.state_dict().items()},
            private=student.encode(own.texts, own.pairs),
            labels=torch.from_numpy(own.labels),
            proxy=student.encode(public.texts, public.pairs),
            randomness=(7, "arm", "shop", round_number),
            privacy=privacy or NOISY[name],
        )

    return make


def exact(learner):
    """The same in float64."""
    weights = {name: value.double() for name, value in learner.weights.items()}
    return dataclasses.replace(learner, student=learner.student.double(), weights=weights)


def mixed_plan(proxy=3):
    """Private, public, private again."""
    soft = torch.softmax(torch.randn(proxy, 3, generator=seeds.torch_stream(3)), dim=-1)
    return Plan(
        (
            Phase(hard_labels(), steps=4, proximal_mu=0.3),
            Phase(soft_labels(2.0), data="proxy", steps=2, references={"soft_labels": soft}, learning_rate_scale=0.5),
            Phase(hard_labels(), epochs=1),
        )
    )


def outcome(learner, plan, **config):
    trainer = SequentialTrainer(TrainerConfig(**{"optimizer": "sgd", "batch_size": BATCH, **config}))
    return next(trainer.fit([learner], {learner.name: plan}, Pace(RATE)))


def fit(learner, plan, **config):
    fitted = outcome(learner, plan, **config)
    return completed(fitted.weights, learner.weights), fitted


def rows_that_may_change(learner, submodel):
    """By table, its rows as a list: those of the proxy's examples, or all; never padding."""
    rows = {}
    for table, fields in learner.student.tables.items():
        every = range(1, len(learner.student.get_parameter(table)))
        used = {row for field in fields for row in learner.proxy[field].flatten().tolist()}
        rows[table] = [row for row in every if row in used or not submodel]
    return rows


def loss_of(learner, weights, segment, rows):
    batch = {key: values[rows] for key, values in segment.encoded.items()}
    references = {key: values[rows] for key, values in segment.references.items()}
    return segment.phase.objective(functional_call(learner.student, weights, (batch,)), references)


def private_gradients(learner, weights, segment, index, rows, stream):
    """One step of algorithm 1: gradient of every weight; losses and norms of the drawn examples."""
    limit, losses, norms = learner.privacy.max_grad_norm, [], []
    summed = {key: torch.zeros_like(value) for key, value in weights.items()}
    for example in index.tolist():
        loss = loss_of(learner, weights, segment, [example])[0]
        losses.append(loss.item())
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        gradients = {}
        for (key, value), gradient in zip(weights.items(), found, strict=True):
            gradients[key] = torch.zeros_like(value) if gradient is None else gradient
            if key in rows:
                gradients[key] = torch.zeros_like(value)
                gradients[key][rows[key]] = gradient[rows[key]]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()))
        for key, gradient in gradients.items():
            summed[key] += gradient * min(1.0, limit / (norms[-1] + SMALLEST))
    places = [(key, place) for key, value in weights.items() for place in rows.get(key, range(len(value)))]
    entries = torch.cat([summed[key][place].flatten() for key, place in places])
    noised = iter(add_noise(entries, learner.privacy.noise_multiplier * limit, stream).tolist())
    for key, place in places:
        entry = summed[key][place]
        summed[key][place] = torch.tensor([next(noised) for _ in entry.flatten()], dtype=entry.dtype).view_as(entry)
    return {key: value / min(BATCH, len(learner.labels)) for key, value in summed.items()}, losses, norms


def train_by_hand(learner, plan, submodel, make_optimizer):
    """The weights and mean losses that training by ``plan`` must reach; norms of all examples' gradients."""
    names = dict(learner.student.named_parameters())
    weights = {key: torch.nn.Parameter(learner.weights[key].clone()) for key in names}
    rows = rows_that_may_change(learner, submodel)
    optimizer = make_optimizer(list(weights.values()))
    losses, norms = [], []
    for number, phase in enumerate(plan.phases):
        segment, found = draw(phase, number, learner, BATCH), []
        stream = Keystream(*learner.randomness, "noise", number)
        optimizer.param_groups[0]["lr"] = RATE * phase.learning_rate_scale
        for index in segment.batches:
            if phase.data == "private":
                gradients, *drawn = private_gradients(learner, weights, segment, index, rows, stream)
                found, norms = found + drawn[0], norms + drawn[1]
            else:
                loss = loss_of(learner, weights, segment, index).mean()
                found.append(loss.item())
                values = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                gradients = dict(zip(weights, values, strict=True))
            for key, value in weights.items():
                value.grad = gradients[key]
                if phase.proximal_mu:
                    value.grad = value.grad + phase.proximal_mu * (value.detach() - learner.weights[key])
            optimizer.step()
        losses.append(sum(found) / len(found))
    return weights, losses, norms


def assert_trained_as_by_hand(learner, submodel, make_optimizer, **config):
    reached, fitted = fit(learner, mixed_plan(), submodel=submodel, **config)
    expected, losses, norms = train_by_hand(learner, mixed_plan(), submodel, make_optimizer)
    assert min(norms) < learner.privacy.max_grad_norm < max(norms)
    assert set(reached) == set(learner.weights)
    for key, value in expected.items():
        assert torch.equal(value, learner.weights[key]) or not torch.equal(reached[key], learner.weights[key])
        torch.testing.assert_close(reached[key], value.detach(), rtol=1e-5, atol=1e-5)
    for table in learner.student.tables:
        assert torch.equal(reached[table][0], learner.weights[table][0])
    assert fitted.loss == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("submodel", [True, False])
@every_student
def test_private_training_equals_a_loop_over_examples(learner_of, name, submodel):
    learner = exact(learner_of(name))
    assert_trained_as_by_hand(learner, submodel, lambda values: torch.optim.SGD(values, lr=RATE))


@pytest.mark.parametrize(
    ("config", "make"),
    [
        ({"optimizer": "sgd", "momentum": 0.9}, lambda values: torch.optim.SGD(values, lr=RATE, momentum=0.9)),
        ({"optimizer": "adamw"}, lambda values: torch.optim.AdamW(values, lr=RATE, weight_decay=0.0)),
    ],
)
def test_private_and_public_phases_share_the_optimizers_moments(learner_of, config, make):
    assert_trained_as_by_hand(exact(learner_of()), True, make, **config)


def test_rates_of_weights_and_rows_scale_what_a_noised_step_moves(learner_of):
    """Against the same step at one rate for all: same gradients, same noise."""
    plan = Plan((Phase(hard_labels(), steps=1),))
    scales = {"head.*": 0.5, "bag.*": 3.0, "*importance": 0.1}
    plain = learner_of()
    scaled = learner_of(privacy=dataclasses.replace(NOISY["two-tower"], rate_scales=scales, row_rate_power=0.5))
    start, (before, _), (after, _) = plain.weights, fit(plain, plan), fit(scaled, plan)
    counts = torch.stack([torch.bincount(plain.proxy[name].flatten(), minlength=512) for name in plain.proxy]).sum(0)
    counts[0] = 0
    used = counts > 0
    assert len(counts[used].unique()) > 1
    by_row = (counts[used] / counts[used].float().mean()).pow(-0.5).unsqueeze(1)
    for name, factor in (("head.0.weight", 0.5), ("head.2.bias", 0.5), ("bag.table", 3.0), ("bag.importance", 0.3)):
        moved, expected = after[name] - start[name], (before[name] - start[name]) * factor
        if name.startswith("bag."):
            moved, expected = moved[used], expected[used] * by_row
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("submodel", [True, False])
def test_an_empty_batch_adds_noise_and_nothing_else(learner_of, submodel):
    plan = Plan((Phase(hard_labels(), steps=1),))
    candidates = (learner_of(size=40, round_number=number) for number in range(10_000))
    learner = next(one for one in candidates if not len(draw(plan.phases[0], 0, one, BATCH).batches[0]))
    reached, fitted = fit(learner, plan, submodel=submodel)
    rows = rows_that_may_change(learner, submodel)
    shapes = {key: value[rows[key]].shape if key in rows else value.shape for key, value in learner.weights.items()}
    deviation = learner.privacy.deviation
    noise = deviation * Keystream(*learner.randomness, "noise", 0).normal(sum(map(torch.Size.numel, shapes.values())))
    off = RATE * grid(deviation) / 2 / BATCH
    for key, part in zip(shapes, noise.split([shape.numel() for shape in shapes.values()]), strict=True):
        moved = torch.zeros_like(learner.weights[key], dtype=torch.float64)
        moved[rows.get(key, slice(None))] = -RATE * part.view(shapes[key]) / BATCH
        torch.testing.assert_close(reached[key].double(), learner.weights[key] + moved, rtol=1e-6, atol=off + 1e-7)
    assert fitted.loss == (0.0,)


def test_rows_that_only_private_examples_use_are_neither_changed_nor_sent(learner_of, monkeypatch):
    learner, seen, fitted_of = learner_of(), {}, Prepared.fitted

    def fitted(prepared, arrays, losses):
        seen.update(arrays=arrays, rows=prepared.submodel.rows)
        return fitted_of(prepared, arrays, losses)

    monkeypatch.setattr(Prepared, "fitted", fitted)
    _, result = fit(learner, mixed_plan(), optimizer="adamw", weight_decay=0.1)
    for table, public in rows_that_may_change(learner, True).items():
        held = seen["rows"][table].tolist()
        own = [place for place, row in enumerate(held) if row not in public]
        assert len(own) > 1
        assert torch.equal(seen["arrays"][table][own], learner.weights[table][[held[place] for place in own]])
        assert result.weights.rows[table].tolist() == [0, *public]
        ids = torch.cat([learner.proxy[field].flatten() for field in learner.student.tables[table]]).tolist()
        assert result.weights.counts[table].tolist() == [0, *(ids.count(row) for row in public)]


@pytest.mark.parametrize("trainer", [SequentialTrainer, CohortTrainer])
def test_rows_beyond_the_most_used_are_not_changed_by_the_proxy_sets_phases_either(learner_of, monkeypatch, trainer):
    """Else weights that are sent would lean on rows that nobody but the merchant has."""
    learner, seen, fitted_of = learner_of(privacy=dataclasses.replace(NOISY["two-tower"], rows=3)), {}, Prepared.fitted

    def fitted(prepared, arrays, losses):
        seen.update(arrays={name: value.clone() for name, value in arrays.items()}, submodel=prepared.submodel)
        return fitted_of(prepared, arrays, losses)

    monkeypatch.setattr(Prepared, "fitted", fitted)
    config = TrainerConfig(optimizer="adamw", weight_decay=0.1, batch_size=BATCH, clip_norm=1.0)
    next(trainer(config).fit([learner], {"shop": mixed_plan()}, Pace(RATE)))
    for table, of_proxy in rows_that_may_change(learner, True).items():
        held, may = seen["submodel"].rows[table], seen["submodel"].trained[table]
        assert int(may.sum()) == 3 < len(of_proxy)
        assert torch.equal(seen["arrays"][table][~may], learner.weights[table][held[~may]])
        assert bool((seen["arrays"][table][may] != learner.weights[table][held[may]]).any())


def test_a_merchants_sampling_rate_depends_on_its_number_of_examples(learner_of):
    phase = Phase(hard_labels(), steps=400)
    small, large, tiny = (draw(phase, 0, learner_of(size=size), BATCH) for size in (8, 40, 3))
    for segment, size in ((small, 8), (large, 40)):
        share = sum(map(len, segment.batches)) / (400 * size)
        assert share == pytest.approx(BATCH / size, rel=0.1)
        assert len({len(batch) for batch in segment.batches}) > 3
    assert all(batch.tolist() == [0, 1, 2] for batch in tiny.batches)
    assert (small.expected_batch, large.expected_batch, tiny.expected_batch) == (BATCH, BATCH, 3)


@pytest.mark.parametrize(("noised", "steps"), [(10, 9), (16, 12), (80, 60)])  # of three epochs in batches of 4
def test_steps_and_sampling_follow_the_noised_number_of_examples_which_is_what_was_charged(learner_of, noised, steps):
    private = ExampleDP(noise_multiplier=1.0, max_grad_norm=1.0, examples=noised)
    learner = learner_of(size=20, privacy=private)
    segment = draw(Phase(hard_labels(), steps=400), 0, learner, BATCH)
    assert sum(map(len, segment.batches)) / (400 * 20) == pytest.approx(BATCH / noised, rel=0.1)
    assert segment.expected_batch == BATCH
    assert len(draw(Phase(hard_labels(), epochs=3), 0, learner, BATCH).batches) == steps


@every_student
def test_without_noise_and_clipping_it_is_plain_training_on_all_examples(learner_of, name):
    learner = learner_of(name, privacy=ExampleDP(noise_multiplier=0.0, max_grad_norm=1e6))
    plain = dataclasses.replace(learner, privacy=None)
    plan = Plan((Phase(hard_labels(), epochs=5, proximal_mu=0.2),))
    options = {"submodel": False, "batch_size": 16, "momentum": 0.5}
    (private, one), (public, other) = fit(learner, plan, **options), fit(plain, plan, **options)
    for key, value in public.items():
        torch.testing.assert_close(private[key], value, rtol=1e-5, atol=1e-6)
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_private_steps_are_clipped_by_example_only(learner_of):
    plan = Plan((Phase(hard_labels(), steps=3),))
    free, _ = fit(learner_of(), plan)
    clipped, _ = fit(learner_of(), plan, clip_norm=1e-3)
    assert all(torch.equal(free[key], clipped[key]) for key in free)


def test_the_noise_of_each_phase_is_its_own(learner_of):
    empty = Phase(lambda outputs, references: 0.0 * outputs.logits.sum(dim=-1), steps=1)
    learner = learner_of()
    once, twice = fit(learner, Plan((empty,)))[0], fit(learner, Plan((empty, empty)))[0]
    first, second = (
        once["head.0.weight"] - learner.weights["head.0.weight"],
        twice["head.0.weight"] - once["head.0.weight"],
    )
    assert first.abs().min() > 0 and not torch.allclose(first, second)


def test_a_student_with_batch_norm_is_refused_with_its_learners_name(learner_of, student):
    student.head.insert(1, torch.nn.BatchNorm1d(8))
    failure = outcome(learner_of(student=student), mixed_plan())
    assert isinstance(failure, Failure) and failure.name == "shop"
    assert re.match(r"shop: this student cannot be trained with DP: .*BatchNorm", failure.reason)


def test_a_weight_used_outside_its_module_is_refused_by_name(learner_of, student, monkeypatch):
    class Sideways(torch.nn.Sequential):
        def forward(self, values):
            return torch.nn.functional.linear(torch.relu(self[0](values)), self[2].weight, self[2].bias)

    student.head = Sideways(*student.head)
    failure = outcome(learner_of(student=student), mixed_plan())
    assert isinstance(failure, Failure) and failure.name == "shop"
    assert re.match(r"shop: .* weight 'head\.2\.weight'", failure.reason)


@every_student
@pytest.mark.parametrize("trainer", [SequentialTrainer, CohortTrainer])
def test_an_example_whose_gradient_is_not_finite_counts_as_none(name, trainer, learner_of, caplog):
    """Clipping does not bound it, and a NaN would tell the server of a single example: a downlink may be made for
    that, here by a row that no other example uses and that overflows."""
    size = 8
    privacy = ExampleDP(noise_multiplier=0.5, max_grad_norm=1.0, batch_size=size, examples=size)
    learner = learner_of(name, size=size, privacy=privacy)
    fields = sorted({field for several in learner.student.tables.values() for field in several})
    used = {row for field in fields for row in learner.private[field].flatten().tolist()}
    rows = len(learner.weights[next(iter(learner.student.tables))])
    odd = max(set(range(1, rows)) - used)
    for table in learner.student.tables:  # gates only saturate at the largest number
        learner.weights[table][odd] = torch.inf if name == "lstm" else torch.finfo(torch.float32).max
    private = {field: values.clone() for field, values in learner.private.items()}
    for field in fields:
        private[field][0] = torch.where(private[field][0] > 0, odd, 0)
    without = {field: values[1:] for field, values in private.items()}
    config = TrainerConfig(optimizer="sgd", batch_size=size, submodel=False)

    def trained(private, labels):
        """The merchant, and another one beside it."""
        merchant = dataclasses.replace(learner, private=private, labels=labels)
        neighbour = dataclasses.replace(learner, name="neighbour", randomness=(7, "arm", "neighbour", 1))
        plan = Plan((Phase(hard_labels(), steps=2),))
        found = trainer(config).fit([merchant, neighbour], {"shop": plan, "neighbour": plan}, Pace(RATE))
        return {one.name: one.weights.arrays for one in found}

    found, expected = trained(private, learner.labels), trained(without, learner.labels[1:])
    assert found.keys() == {"shop", "neighbour"}
    for merchant, weights in found.items():
        for key, value in weights.items():
            assert not value.isnan().any()
            torch.testing.assert_close(value, expected[merchant][key], rtol=1e-5, atol=1e-5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_coins_of_private_batches_are_as_secret_as_the_noise(learner_of):
    """Of 40 steps over 50 examples; those of public phases come from the same name, and need no secret."""
    plan, learner = Phase(hard_labels(), steps=40), learner_of(size=50)

    def drawn(first):
        own = dataclasses.replace(learner, randomness=(first, *learner.randomness[1:]))
        return torch.stack([torch.bincount(batch, minlength=50) for batch in draw(plan, 0, own, 10).batches])

    seed, again, one, other = drawn(7), drawn(7), drawn("s" * 64), drawn("t" * 64)
    assert torch.equal(seed, again)
    for a, b in ((seed, one), (seed, other), (one, other)):
        both = torch.stack([a.flatten().double(), b.flatten().double()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1
