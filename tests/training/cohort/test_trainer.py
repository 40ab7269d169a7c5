"""The cohort trainer's own business: memory, parts, failures, progress, precision; always against slower training."""

import dataclasses
import gc
import logging
import math
import weakref

import pytest
import torch
from torch import nn
from transformers.models.mobilebert.modeling_mobilebert import NoNorm

from fed_distill.config import TrainerConfig
from fed_distill.distill.losses import cross_entropy, hard_labels
from fed_distill.errors import TrainingError
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort import trainer as module
from fed_distill.training.cohort.lstm import StackedLSTM
from fed_distill.training.cohort.stacking import Stack, skeleton_of
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.cohort.training import Cohort
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.preparation import draw, prepare
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.trainer import Failure
from tests.training.cohort.conftest import Words

CPU = torch.device("cpu")
PACE = Pace(1e-2, "linear")
DP = ExampleDP(noise_multiplier=0.7, max_grad_norm=0.5)
privacies = pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])


def config_of(**changes):
    return TrainerConfig(**{"batch_size": 8, "optimizer": "sgd", **changes})


def fit(trainer, learners, plan, progress=None):
    plans = {one.name: plan[one.name] if isinstance(plan, dict) else plan for one in learners}
    return {one.name: one for one in trainer.fit(learners, plans, PACE, progress)}


def assert_alike(found, expected, distance, within=1e-5):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert distance(found[name].weights.arrays, one.weights.arrays) < within, name
        assert found[name].loss == pytest.approx(one.loss, rel=1e-4)


@pytest.fixture
def nothing_falls_back(caplog):
    yield
    assert not caplog.get_records("call")


@pytest.fixture
def scarce(monkeypatch):
    """A function: memory runs out in the third step of each of the first ``times`` cohorts; gives all cohorts made."""
    made = []

    def make(times):
        class Scarce(Cohort):
            def __init__(self, members, skeleton, config, device, together):
                super().__init__(members, skeleton, config, device, together)
                made.append((len(members), together))
                self.number = len(made)

            def run(self, pace, on_steps):
                taken = []

                def counted(merchants):
                    on_steps(merchants)
                    taken.append(merchants)
                    if len(taken) == 3 and self.number <= times:
                        raise torch.OutOfMemoryError("no memory left")

                return super().run(pace, counted)

        monkeypatch.setattr(module, "Cohort", Scarce)
        return made

    return make


@privacies
def test_when_memory_runs_out_cohorts_get_smaller_and_training_ends_the_same(
    privacy, scarce, words, merchants, plans, distance, caplog
):
    learners = merchants(words(), privacy)
    undisturbed = fit(CohortTrainer(config_of()), learners, plans.turns)
    made, told = scarce(2), []
    trainer = CohortTrainer(config_of())
    with caplog.at_level(logging.WARNING):
        found = fit(trainer, learners, plans.turns, lambda *steps: told.append(steps))
    assert_alike(found, undisturbed, distance)
    first, second, third = made[:3]
    assert first[0] == 5
    for before, after, record in zip((first, second), (second, third), caplog.records, strict=True):
        assert after[0] < before[0] or after[1] < before[1]
        assert after[0] <= before[0] and after[1] <= before[1]
        assert record.getMessage() == (
            f"memory ran out with {before[0]} merchants and {before[1]} examples of each at a time: "
            f"continuing with {after[0]} and {after[1]}"
        )
    total = sum(prepare(one, plans.turns, config_of()).steps for one in learners)
    assert {one for _, one in told} == {total}
    assert told[-1] == (total, total)
    tried = len(made)
    fit(trainer, learners, plans.fedavg)
    assert made[tried][0] == third[0] < 5


def test_what_ran_out_of_memory_is_given_back_before_the_next_try(scarce, words, merchants, plans, monkeypatch):
    scarce(2)
    held, stacks = [], []

    class Watched(module.Cohort):
        def __init__(self, *arguments):
            held.append(sum(one() is not None for one in stacks))
            super().__init__(*arguments)
            stacks.append(weakref.ref(self._stack))

    monkeypatch.setattr(module, "Cohort", Watched)
    fit(CohortTrainer(config_of()), merchants(words()), plans.fedavg)
    assert len(held) >= 3 and not any(held[:3])


def test_nothing_of_a_cohort_is_kept_once_its_merchants_are_handed_out(words, merchants, plans, monkeypatch):
    weights, activate = [], Stack.activate

    def watched(stack, count):
        activate(stack, count)
        weights.extend(weakref.ref(value) for value in stack.parameters.values())

    monkeypatch.setattr(Stack, "activate", watched)
    trainer = CohortTrainer(config_of())
    assert len(fit(trainer, merchants(words()), plans.fedavg)) == 5
    gc.collect()
    assert weights and not any(one() is not None for one in weights)


def test_memory_that_never_suffices_is_said_with_what_to_do(scarce, words, merchants, plans):
    made = scarce(10_000)
    with pytest.raises(
        TrainingError, match=r"shop 1: memory is insufficient even for one example at a time: decrease"
    ) as caught:
        fit(CohortTrainer(config_of(batch_size=4)), merchants(words()), plans.turns)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert made[-1] == (1, 1)


def test_other_errors_are_not_taken_for_a_lack_of_memory(words, merchants, plans, monkeypatch):
    monkeypatch.setattr(Cohort, "run", lambda *arguments: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        fit(CohortTrainer(config_of()), merchants(words()), plans.fedavg)


@privacies
@pytest.mark.parametrize("kind", ["two-tower", "bert-mini"])
def test_batches_in_parts_equal_whole_ones(kind, privacy, small_student, merchants, plans, distance):
    options = {} if kind == "two-tower" else {"dropout": 0.3}
    learners = merchants(small_student(kind, **options), privacy, (24, 11, 5))
    members = [prepare(one, plans.fedavg_kd, config_of(clip_norm=0.5)) for one in learners]

    def trained(together):
        cohort = Cohort(members, skeleton_of(learners[0].student), config_of(clip_norm=0.5), CPU, together)
        return {one.name: one for one in cohort.run(PACE, lambda count: None)}

    whole = trained(100)
    for together in (1, 3):
        assert_alike(trained(together), whole, distance)


@pytest.mark.usefixtures("nothing_falls_back")
@privacies
def test_a_merchant_fifty_times_larger_than_the_rest(privacy, words, merchants, plans, distance):
    learners, told = merchants(words(), privacy, (4, 200, 5, 3)), []
    found = fit(CohortTrainer(config_of()), learners, plans.turns, lambda *steps: told.append(steps))
    assert_alike(found, fit(SequentialTrainer(config_of()), learners, plans.turns), distance)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (sum(prepare(one, plans.turns, config_of()).steps for one in learners),) * 2


@pytest.mark.usefixtures("nothing_falls_back")
@privacies
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("two-tower", {"clip_norm": 0.5}), ("two-tower", {"optimizer": "adamw"}), ("lstm", {}), ("bert-mini", {})],
)
def test_a_merchant_that_diverges_harms_nobody_else(
    kind, options, place, privacy, small_student, merchants, plans, distance
):
    """Wherever it is in its cohort: the first one's padding row stands for all. With privacy it does not fail, which
    would tell of single examples: of these, each counts as none."""

    def objective(outputs, references):
        losses = cross_entropy(outputs.logits, references["labels"] % 10)
        return losses * torch.where(references["labels"] < 10, 1.0, torch.nan)

    plan = Plan((Phase(objective, epochs=2), plans.fedavg_kd.phases[1]))
    learners = merchants(small_student(kind), privacy, (40, 20, 12))
    broken = [dataclasses.replace(one, labels=one.labels + 10 * (one is learners[place])) for one in learners]
    found = fit(CohortTrainer(config_of(**options)), broken, plan)
    healthy = fit(CohortTrainer(config_of(**options)), learners, plan)
    diverged = found.pop(f"shop {place}")
    if privacy is None:
        assert isinstance(diverged, Failure)
        assert diverged.reason.startswith(f"shop {place}: the loss of phase 1 is nan")
    else:
        assert all(value.isfinite().all() for value in diverged.weights.arrays.values())
    del healthy[f"shop {place}"]
    assert_alike(found, healthy, distance, 1e-6)


def test_an_objective_that_refuses_a_cohort_refuses_it_alone(words, merchants, plans, distance):
    """As the sequential trainer does: the merchants of another plan are trained."""

    def objective(outputs, references):
        raise TrainingError("representations of another width")

    learners = merchants(words())
    refused = Plan((Phase(objective, epochs=2),))
    plan = {one.name: refused if place % 2 else plans.fedavg for place, one in enumerate(learners)}
    told = []
    found = fit(CohortTrainer(config_of()), learners, plan, lambda *steps: told.append(steps))
    alone = fit(SequentialTrainer(config_of()), learners, plan)
    failed = [name for name, one in found.items() if isinstance(one, Failure)]
    assert sorted(failed) == sorted(one.name for one in learners[1::2])
    for name in failed:
        assert found.pop(name) == alone.pop(name)
    assert_alike(found, alone, distance)


def test_plans_and_students_may_differ_within_one_call(words, small_student, merchants, plans, distance):
    first = merchants(words())
    second = merchants(small_student("lstm"), DP)
    learners = [
        dataclasses.replace(one, name=f"{one.name} of {number}", privacy=one.privacy if place % 2 else None)
        for number, some in enumerate((first, second))
        for place, one in enumerate(some)
    ]
    plan = {one.name: (plans.fedavg, plans.turns, plans.fedmd)[place % 3] for place, one in enumerate(learners)}
    told = []
    found = fit(CohortTrainer(config_of()), learners, plan, lambda *steps: told.append(steps))
    assert_alike(found, fit(SequentialTrainer(config_of()), learners, plan), distance)
    assert told[-1] == (sum(prepare(one, plan[one.name], config_of()).steps for one in learners),) * 2


def test_merchants_without_examples_are_failures(words, merchants, plans):
    empty, full = merchants(words(), sizes=(0, 5))
    other = dataclasses.replace(empty, name="shop 2")
    found = fit(CohortTrainer(config_of()), [empty, full, other], plans.fedavg)
    assert [name for name, one in found.items() if isinstance(one, Failure)] == ["shop 0", "shop 2"]
    assert found["shop 2"].reason == "shop 2 has no private examples to train on"
    assert found["shop 1"].loss
    found = fit(CohortTrainer(config_of()), [empty, other], plans.fedavg)
    assert all(isinstance(one, Failure) for one in found.values()) and len(found) == 2
    assert fit(CohortTrainer(config_of()), [], plans.fedavg) == {}


def test_a_plan_without_phases_changes_nothing(words, merchants, plans):
    learners = merchants(words(), sizes=(5, 9))
    trainer = CohortTrainer(config_of(submodel=False))
    fit(trainer, learners, plans.fedavg)
    for one in fit(trainer, learners, Plan()).values():
        assert one.loss == ()
        assert all(torch.equal(value, learners[0].weights[name]) for name, value in one.weights.arrays.items())


@pytest.mark.usefixtures("nothing_falls_back")
@pytest.mark.parametrize("kind", ["two-tower", "lstm", "bert-mini"])
def test_merchants_that_draw_nothing_in_a_step_get_noise_alone(kind, small_student, merchants, plans, distance):
    """With one example a step on average, more than a third of the steps are empty; some are for all merchants."""
    learners, config = merchants(small_student(kind), DP, (3, 5, 4)), config_of(batch_size=1)
    plan = Plan((Phase(hard_labels(), steps=40), *plans.fedavg_kd.phases[1:]))
    drawn = [prepare(one, plan, config).segments[0].batches for one in learners]
    assert any(not any(map(len, step)) for step in zip(*drawn, strict=True))
    assert_alike(fit(CohortTrainer(config), learners, plan), fit(SequentialTrainer(config), learners, plan), distance)


def test_merchants_that_never_draw_anything_get_noise_alone(words, merchants, distance, caplog):
    plan = Plan((Phase(hard_labels(), steps=1),))
    learners = [
        dataclasses.replace(one, name=f"shop {number}", randomness=(7, number))
        for number in range(60)
        for one in merchants(words(), DP, (5,))
        if not len(draw(plan.phases[0], 0, dataclasses.replace(one, randomness=(7, number)), 1).batches[0])
    ][:3]
    assert len(learners) == 3
    found = fit(CohortTrainer(config_of(batch_size=1)), learners, plan)
    assert_alike(found, fit(SequentialTrainer(config_of(batch_size=1)), learners, plan), distance)
    assert not caplog.records


@pytest.mark.usefixtures("nothing_falls_back")
def test_an_example_that_is_never_drawn_fills_no_batch(small_student, merchants, distance):
    """All that its merchant's submodel lacks is padding to it: an LSTM has no mean over nothing."""
    plan, config = Plan((Phase(hard_labels(), steps=4),)), config_of(batch_size=2)
    learners = merchants(small_student("lstm"), DP, (9, 9, 9))
    for one in learners:
        one.private["input_ids"][0] = 200
    numbers = (
        number
        for number in range(1000)
        if all(
            0
            not in torch.cat(
                draw(plan.phases[0], 0, dataclasses.replace(one, randomness=(number, one.name)), 2).batches
            )
            for one in learners
        )
    )
    number = next(numbers)
    learners = [dataclasses.replace(one, randomness=(number, one.name)) for one in learners]
    assert 200 not in prepare(learners[0], plan, config).submodel.rows["words.weight"]
    assert_alike(fit(CohortTrainer(config), learners, plan), fit(SequentialTrainer(config), learners, plan), distance)


@pytest.mark.usefixtures("nothing_falls_back")
@privacies
def test_the_proximal_pull_is_toward_where_training_began(privacy, words, merchants, plans, distance):
    digest, private = plans.fedmd.phases
    plan = Plan((digest, dataclasses.replace(private, proximal_mu=5.0), private))
    learners = merchants(words(), privacy)
    assert_alike(
        fit(CohortTrainer(config_of()), learners, plan), fit(SequentialTrainer(config_of()), learners, plan), distance
    )


class LeavesALayerOut(Words):
    """One layer is not in use: under DP it gets noise in private steps, and nothing in public ones."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


@pytest.mark.usefixtures("nothing_falls_back")
@privacies
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_that_are_not_in_use(optimizer, privacy, words, merchants, plans, distance):
    learners, config = merchants(words(LeavesALayerOut).double(), privacy), config_of(optimizer=optimizer)
    found = fit(CohortTrainer(config), learners, plans.turns)
    assert_alike(found, fit(SequentialTrainer(config), learners, plans.turns), distance)
    moved = [
        not torch.equal(one.weights.arrays["spare.bias"], learners[0].weights["spare.bias"]) for one in found.values()
    ]
    assert all(moved) if privacy else not any(moved)


@pytest.mark.usefixtures("nothing_falls_back")
@pytest.mark.parametrize("clip_norm", [math.inf, 0.05])
def test_a_recurrent_student_trains_the_same_in_the_gpus_loop_over_time(
    clip_norm, small_student, merchants, plans, distance, monkeypatch
):
    monkeypatch.setattr(StackedLSTM, "forward", lambda self, x: (self._scan(x), None))
    monkeypatch.setattr(StackedLSTM, "needs_even", True)
    learners, config = merchants(small_student("lstm")), config_of(clip_norm=clip_norm)
    assert_alike(
        fit(CohortTrainer(config), learners, plans.turns),
        fit(SequentialTrainer(config), learners, plans.turns),
        distance,
    )


def test_merchants_are_cut_into_cohorts_of_about_the_same_size(words, merchants, plans, monkeypatch):
    made = []
    monkeypatch.setattr(module, "Cohort", lambda members, *rest: made.append(len(members)) or Cohort(members, *rest))
    learners = merchants(words(), sizes=(3,) * 50)
    assert len(fit(CohortTrainer(config_of(), cohort=16), learners, plans.fedavg)) == 50
    assert made == [13, 13, 12, 12]


def test_one_merchant_alone_is_trained_the_plain_way_unless_dp_or_precision_ask_for_more(
    words, merchants, plans, monkeypatch
):
    made = []
    monkeypatch.setattr(module, "Cohort", lambda members, *rest: made.append(len(members)) or Cohort(members, *rest))
    (one,), (private,) = merchants(words(), sizes=(5,)), merchants(words(), DP, (5,))
    fit(CohortTrainer(config_of()), [one], plans.fedavg)
    assert made == []
    fit(CohortTrainer(config_of()), [private], plans.fedavg)
    fit(CohortTrainer(config_of(precision="bfloat16")), [one], plans.fedavg)
    assert made == [1, 1]


class OwnLayers(Words):
    """Layers that are mapped over merchants, one of them a product of what a product gave in its precision."""

    def __init__(self):
        super().__init__()
        self.scale, self.product = NoNorm(6), Product()

    def middle(self, values):
        return torch.tanh(self.scale(self.product(super().middle(values))))


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, values):
        return values @ self.weight


def computes_lstm_in_bfloat16():
    """Whether this processor's library has an LSTM for bfloat16: some have none, and say so when one runs."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(8, 8, batch_first=True)(torch.zeros(2, 3, 8))
    except RuntimeError:
        return False
    return True


@pytest.mark.usefixtures("nothing_falls_back")
@privacies
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("kind", ["two-tower", "lstm", "bert-mini", "own layers"])
def test_lower_precision_is_of_products_alone(
    kind, precision, privacy, words, small_student, merchants, plans, distance
):
    """Weights and noise stay float32, and the way that weights go differs by what bfloat16's 8 bits can tell."""
    if (kind, precision) == ("lstm", "bfloat16") and not computes_lstm_in_bfloat16():
        pytest.skip("this processor has no LSTM for bfloat16")
    student = words(OwnLayers) if kind == "own layers" else small_student(kind)
    learners = merchants(student, privacy, (24, 16))
    before = torch.get_float32_matmul_precision()
    exact = fit(CohortTrainer(config_of()), learners, plans.fedavg_kd)
    rough = fit(CohortTrainer(config_of(precision=precision)), learners, plans.fedavg_kd)
    assert torch.get_float32_matmul_precision() == before
    for name, one in rough.items():
        assert one.loss == pytest.approx(exact[name].loss, rel=0.02)
        moved, off = 0.0, 0.0
        for key, value in one.weights.arrays.items():
            assert value.dtype == torch.float32
            start = (
                learners[0].weights[key][one.weights.rows[key]] if key in one.weights.rows else learners[0].weights[key]
            )
            moved += float((exact[name].weights.arrays[key] - start).square().sum())
            off += float((exact[name].weights.arrays[key] - value).square().sum())
        assert off < 0.05**2 * moved
        assert off > 0.0 or precision == "tf32"
