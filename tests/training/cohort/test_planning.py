"""What can be stacked is, what cannot is said once and trained one after another; footprints grow as they should."""

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fed_distill.config import TrainerConfig
from fed_distill.models.base import Outputs
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.planning import CPU_SHARE, GPU_SHARE, Footprint, examined, memory_budget
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.preparation import prepare
from fed_distill.training.sequential import SequentialTrainer
from tests.training.cohort.conftest import Words

CPU = torch.device("cpu")
DP = ExampleDP(0.7, 0.5)
PACE = Pace(0.05)


class MixesExamples(Words):
    def middle(self, values):
        return super().middle(values) - values.mean(dim=0)


class MixesFrozenExamples(Words):
    """Before any weight that is trained, so that two merchants with the same examples would not show it."""

    def __init__(self):
        super().__init__()
        self.words.requires_grad_(False)

    def pooled(self, ids):
        pooled = super().pooled(ids)
        return pooled - pooled.mean(dim=0)


class SeesPadding(Words):
    def pooled(self, ids):
        return self.words(ids).mean(dim=1)


class DrawsByItself(Words):
    def middle(self, values):
        return super().middle(values) + torch.rand(values.shape)


class ReadsWeights(Words):
    def middle(self, values):
        return torch.tanh(F.linear(values, self.hidden.weight, self.hidden.bias))


class ReadsRows(Words):
    """An embedding's weight as a whole, besides its rows one by one."""

    def __init__(self):
        super().__init__()
        self.lengths = nn.Embedding(4, 6)

    def pooled(self, ids):
        lengths = (ids > 0).sum(dim=1) % 4
        return super().pooled(ids) + self.lengths(lengths) - self.lengths.weight.mean(dim=0)


class TiesWeights(Words):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.again.weight = self.hidden.weight

    def middle(self, values):
        return self.again(super().middle(values))


class Normalizes(Words):
    def __init__(self, **options):
        super().__init__()
        self.norm = nn.BatchNorm1d(6, **options)

    def middle(self, values):
        return self.norm(super().middle(values))


class NormalizesByBatch(Normalizes):
    def __init__(self):
        super().__init__(track_running_stats=False)


class FreezesABias(Words):
    def __init__(self):
        super().__init__()
        self.hidden.bias.requires_grad_(False)


class KeepsABuffer(Words):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((6,), 2.0))

    def middle(self, values):
        return self.scale * super().middle(values)


class HasAWeightOfItsOwn(Words):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((6,), 2.0))

    def middle(self, values):
        return self.gain * super().middle(values)


class Residual(nn.Linear):
    """A layer with weights, and a layer within."""

    def __init__(self):
        super().__init__(6, 6)
        self.inner = nn.Linear(6, 6)

    def forward(self, input):
        return super().forward(input) + self.inner(input)


class HasLayersInLayers(Words):
    def __init__(self):
        super().__init__()
        self.hidden = Residual()


class ScalesByFrequency(Words):
    def __init__(self):
        super().__init__()
        self.words.scale_grad_by_freq = True


class TurnsThePlaces(Words):
    """Positions before examples, which a stacked layer takes for examples."""

    def pooled(self, ids):
        return self.hidden(self.words(ids).transpose(0, 1)).transpose(0, 1).sum(dim=1)


class Flattens(Words):
    """A layer over all positions of all examples as if each were an example."""

    def __init__(self):
        super().__init__()
        self.each = nn.Linear(6, 6)

    def pooled(self, ids):
        return self.each(self.words(ids).flatten(0, 1)).view(*ids.shape, -1).mul((ids > 0).unsqueeze(-1)).sum(dim=1)


class FlattensAll(Flattens):
    """All trained layers, so that no two of them disagree about the number of examples."""

    def __init__(self):
        super().__init__()
        for part in (self.words, self.hidden, self.head):
            part.requires_grad_(False)


FALL_BACK = {
    MixesExamples: "gives other outputs than the plain one: it mixes examples",
    MixesFrozenExamples: "gives other outputs than the plain one: it mixes examples",
    SeesPadding: "depends on padding",
    DrawsByItself: "draws its own random numbers",
    ReadsWeights: "a trial of the stacked student fails: RuntimeError",
    ReadsRows: "a trial of the stacked student fails: RuntimeError",
    TiesWeights: "two layers share weights",
    Normalizes: "buffer 'norm.num_batches_tracked'",
    NormalizesByBatch: "a BatchNorm1d mixes examples",
    FreezesABias: "weights hidden.weight, hidden.bias are partly frozen",
    KeepsABuffer: "buffer 'scale'",
    HasAWeightOfItsOwn: "weights gain are partly frozen, or belong to the model itself",
    HasLayersInLayers: "layer hidden, a Residual, has own weights and inner layers",
    ScalesByFrequency: "layer words: an Embedding with max_norm, scale_grad_by_freq",
    TurnsThePlaces: "a Linear is called with",
    Flattens: "a Linear is called with",
    FlattensAll: "a Linear is called with",
}


def trained(trainer, learners, plan):
    fitted = {one.name: one for one in trainer.fit(learners, dict.fromkeys((one.name for one in learners), plan), PACE)}
    return {name: (one.weights.arrays, one.loss) for name, one in sorted(fitted.items())}


@pytest.mark.parametrize("kind", FALL_BACK)
def test_what_cannot_be_stacked_is_said_once_and_trained_by_itself(kind, words, merchants, plans, caplog):
    learners = merchants(words(kind), sizes=(24, 16, 32))
    config = TrainerConfig(batch_size=8, optimizer="sgd")
    trainer = CohortTrainer(config)
    with caplog.at_level(logging.WARNING, "fed_distill"):
        trained(trainer, learners, plans.fedavg)
        found = trained(trainer, learners, plans.fedavg_kd)
    (record,) = caplog.records
    assert "student words cannot be trained by cohorts" in record.getMessage()
    assert "one after another, on the CPU in float32" in record.getMessage()
    assert FALL_BACK[kind] in record.getMessage()
    for name, (arrays, loss) in trained(SequentialTrainer(config), learners, plans.fedavg_kd).items():
        assert found[name][1] == loss
        assert all(torch.equal(found[name][0][key], value) for key, value in arrays.items())


@pytest.fixture
def member_of():
    """A function: a student's first merchant, prepared."""

    def make(learners, plan, **config):
        return prepare(learners[0], plan, TrainerConfig(**{"batch_size": 8, **config}))

    return make


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize("kind", ["two-tower", "static", "lstm", "bert-mini", "distilbert", "mobilebert"])
def test_every_student_can_be_stacked(kind, privacy, small_student, merchants, plans, member_of):
    """Else all tests of cohorts would compare the sequential trainer with itself."""
    options = {"dropout": 0.2} if "bert" in kind else {}
    learners = merchants(small_student(kind, **options), privacy, (1, 30))
    footprints = [examined(member_of(learners[k:], plans.turns), CPU, 2)[1] for k in range(2)]
    assert all(one.merchant > 0 and one.example > 0 for one in footprints)


class ReadsTwice(Words):
    """Reads a layer's weight beside calling it, in a way that cannot be told from the outputs."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def middle(self, values):
        own = self.gate.weight if self.gate.weight.dim() == 2 else self.gate.weight.unsqueeze(0)
        by_merchant = super().middle(values).view(len(own), -1, 6)
        return self.gate((by_merchant * own.unsqueeze(1)).flatten(0, 1))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((6,), 1.5))

    def forward(self, values):
        return values * self.weight


def test_under_dp_a_student_must_also_tell_its_examples_gradients_apart(words, merchants, plans, member_of):
    learners = merchants(words(ReadsTwice), sizes=(20,))
    assert examined(member_of(learners, plans.fedavg), CPU, 2)[1].example > 0
    reason = "per-example gradients differ from those computed from inputs and outputs of its layers"
    with pytest.raises(CannotStack, match=reason):
        examined(member_of(merchants(words(ReadsTwice), DP, (20,)), plans.fedavg), CPU, 2)


class TwoTables(Words):
    """Tables over different fields, one of them with a single number for each example."""

    def __init__(self):
        super().__init__()
        self.tables = {"words.weight": ("ids",), "first.weight": ("first",)}
        self.first = nn.Embedding(64, 6, padding_idx=0)

    def encode(self, texts, pairs):
        encoded = super().encode(texts, pairs)
        return {**encoded, "first": 1 + encoded["ids"][:, 0] % 5}

    def forward(self, batch, hidden=False):
        return Outputs(self.head(self.middle(self.pooled(batch["ids"]) + self.first(batch["first"]))))


@pytest.mark.parametrize("optimizer", [{"clip_norm": 0.1}, {"submodel": False}])
@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
def test_tables_of_different_fields_are_each_merchants_own(
    privacy, optimizer, words, merchants, plans, distance, caplog
):
    learners = merchants(words(TwoTables), privacy, (24, 5, 16))
    config = TrainerConfig(batch_size=8, optimizer="sgd", **optimizer)
    found, expected = (
        trained(one, learners, plans.turns) for one in (CohortTrainer(config), SequentialTrainer(config))
    )
    assert not caplog.records
    assert all(distance(found[name][0], arrays) < 1e-5 for name, (arrays, _) in expected.items())


def test_footprints_grow_with_the_model_the_examples_and_the_optimizer(words, merchants, plans, member_of):
    def footprint(width=6, sizes=(20,), moments=2, privacy=None, longer=0):
        learners = merchants(words(Words, width), privacy, sizes)
        for encoded in (learners[0].private, learners[0].proxy):
            encoded["ids"] = F.pad(encoded["ids"], (0, longer))
        return examined(member_of(learners, plans.fedavg), CPU, moments)[1], learners[0]

    small, learner = footprint()
    member = member_of([learner], plans.fedavg)
    rows = len(member.submodel.rows["words.weight"])
    weights = 4 * (6 * 6 + 6 + 3 * 6 + 3) + 4 * 6 * (rows - 0.5)  # two merchants share a padding row
    table_and_data = 4 * 64 + 8 * learner.private["ids"].numel()
    assert small.merchant == pytest.approx(5 * weights + table_and_data, rel=0.02)
    lighter, _ = footprint(moments=0)
    assert small.merchant - lighter.merchant == pytest.approx(2 * weights, rel=0.02)
    wide, _ = footprint(width=24)
    assert 2 * small.example < wide.example < 4 * small.example
    longer, _ = footprint(longer=30)
    assert longer.example >= small.example + 30 * 4
    private, _ = footprint(privacy=DP)
    assert private.example > 1.5 * small.example
    more, _ = footprint(sizes=(200,))
    assert more.merchant > small.merchant and more.example == pytest.approx(small.example, rel=0.3)


def test_as_many_fit_as_there_is_memory_for_and_at_least_one():
    footprint = Footprint(merchant=100, example=10)
    assert footprint.merchants(1000, 10) == 5
    assert footprint.merchants(1199, 10) == 5
    assert footprint.merchants(199, 10) == 1
    assert footprint.merchants(0, 10) == 1
    assert footprint.examples(1000, 5) == 10
    assert footprint.examples(1000, 9) == 1
    assert footprint.examples(1000, 50) == 1
    assert footprint.examples(0, 1) == 1
    assert Footprint(0, 0).merchants(10, 0) == 10
    assert Footprint(0, 0).examples(10, 3) == 10


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("budget", [500, 5_000, 123_456])
def test_what_fits_is_within_the_budget(budget, batch):
    footprint = Footprint(merchant=100, example=10)
    merchants = footprint.merchants(budget, batch)
    together = min(batch, footprint.examples(budget, merchants))
    assert merchants * (100 + together * 10) <= budget or (merchants, together) == (1, 1)


def test_processes_share_the_memory_of_machine_and_device(monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=9_000))
    assert memory_budget(CPU, 1) == int(CPU_SHARE * 4_096_000)
    assert memory_budget(CPU, 4) == int(CPU_SHARE * 4_096_000 / 4)
    assert memory_budget(torch.device("cuda"), 1) == int(GPU_SHARE * 9_000)
    assert memory_budget(torch.device("cuda"), 3) == int(GPU_SHARE * 3_000)
