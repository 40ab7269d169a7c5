"""A toy round: two weights, three proxy examples, three classes, and merchants whose trained parts are given."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from fed_distill.aggregation.votes import counted_plainly
from fed_distill.data.examples import Examples
from fed_distill.methods.base import GlobalState, Trained
from fed_distill.models.base import Outputs
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.early_stopping import EarlyStopping
from fed_distill.training.plan import Plan
from fed_distill.transport.messages import Uplink

PAIRS = Examples(("tent", "shoes"), None, np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64), ("a", "a"))
TEACHER = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])


@pytest.fixture
def state():
    """After round 4."""
    return GlobalState(4, {"w": torch.tensor([1.0, 2.0])}, TEACHER)


@dataclass
class Recording:
    """Services that leave traces: the aggregator adds all merchants' updates, a student that is distilled anew is
    what it is distilled from, and of what is trained onwards the plans are kept, students and teacher as they were."""

    answers: torch.Tensor | None = None
    plans: list[Plan] = field(default_factory=list)
    stoppings: list[EarlyStopping | None] = field(default_factory=list)
    teacher_plans: list[Plan] = field(default_factory=list)
    counted: list[torch.Tensor] = field(default_factory=list)
    released: list[tuple] = field(default_factory=list)

    def average(self, current, up):
        up = list(up)
        return {
            name: value + sum(one.need(StudentUpdate).arrays[name] for one in up) for name, value in current.items()
        }

    def tally(self, votes):
        self.counted.append(votes)
        return counted_plainly(votes) if self.answers is None else self.answers

    def distil(self, weights, plan, stopping=None):
        self.plans.append(plan)
        self.stoppings.append(stopping)
        return weights

    def distil_anew(self, soft_labels, temperature=None):
        return {"w": soft_labels} if temperature is None else {"w": soft_labels, "at": torch.tensor(temperature)}

    def distil_onwards(self, weights, soft_labels):
        return {"w": soft_labels, "from": weights["w"]}

    def train_on_released(self, weights, released, passes, learning_rate_scale):
        self.released.append((released, passes, learning_rate_scale))
        return {"w": weights["w"] + 1.0}

    def train_teacher(self, state, plan):
        self.teacher_plans.append(plan)
        return state


@pytest.fixture
def server():
    return Recording()


@pytest.fixture
def uplinks():
    """Two merchants with weights, proxy probabilities and unequal numbers of examples."""
    return [
        Uplink(
            "a",
            10,
            (StudentUpdate({"w": torch.tensor([10.0, 20.0])}), SoftLabels(torch.tensor([[0.5, 0.3, 0.2]] * 3))),
        ),
        Uplink(
            "b",
            90,
            (StudentUpdate({"w": torch.tensor([100.0, 200.0])}), SoftLabels(torch.tensor([[0.1, 0.1, 0.8]] * 3))),
        ),
    ]


@pytest.fixture
def trained(state):
    """A merchant that moved both weights by 2 in different directions."""
    return Trained(
        "a",
        10,
        PartialWeights({"w": torch.tensor([3.0, 0.0])}),
        state.weights,
        lambda: torch.tensor([[0.5, 0.3, 0.2]] * 3),
        lambda: ClassMeans(
            torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.0, 0.0], [0.2, 0.2, 0.6]]), torch.tensor([1, 0, 1]) > 0
        ),
        lambda: Prototypes(torch.tensor([[4.0, 2.0], [0.0, 0.0], [1.0, -1.0]]), torch.tensor([1, 0, 1]) > 0),
        lambda: torch.tensor([0.2, 1.0, 0.5]),
        lambda: torch.tensor([0.0, 3.0, 0.7], dtype=torch.float64),
        lambda: ReleasedLabels.of(PAIRS, torch.tensor([0, 2]), torch.tensor([[0, 0, 2], [-1, 1, 2]])),
    )


@pytest.fixture
def loss_of():
    """A function: the loss of a phase's objective for logits, with the phase's own or the given references."""

    def loss(phase, logits, **references):
        return phase.objective(Outputs(logits), {**phase.references, **references})

    return loss
