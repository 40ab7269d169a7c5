"""What the server's student is taught, in which order, for how long, and at which temperature."""

import torch

from fed_distill.config import DistillConfig
from fed_distill.coordinator.students import distillation_plan
from fed_distill.data.examples import Task
from fed_distill.distill.losses import distillation_kl, soften
from fed_distill.distill.transfer import DistillationTarget
from fed_distill.models.base import Outputs

TASK = Task("toy", ("same", "near", "far"), pair=True, positive="same", gains=(1.0, 0.5, 0.0))
LABELS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def plan_of(student, epochs, labelled=None, **config):
    return distillation_plan(
        DistillationTarget(DistillConfig(**config), TASK, LABELS, 4.0), student, epochs, labelled
    ).phases


def temperatures(phases):
    """At which temperature each phase of the proxy set is, found by its loss."""
    found = []
    for phase in phases:
        if phase.data == "proxy":
            loss = phase.objective(Outputs(LOGITS), phase.references)
            at = {t: distillation_kl(LOGITS, soften(LABELS, t), t) for t in (1.0, 2.0, 2.5, 3.0, 4.0)}
            found += [t for t, expected in at.items() if torch.allclose(loss, expected, atol=1e-5)]
    return found


def test_labels_and_targets_take_turns_and_a_part_of_an_epoch_is_last(student):
    phases = plan_of(student, 2.5)
    assert [(phase.data, phase.epochs) for phase in phases] == [
        ("private", 1.0), ("proxy", 1.0), ("private", 1.0), ("proxy", 1.0), ("private", 0.5), ("proxy", 0.5),
    ]  # fmt: skip
    assert temperatures(phases) == [4.0] * 3


def test_the_temperature_is_the_final_one_in_the_last_epoch(student):
    assert temperatures(plan_of(student, 3, final_temperature=1.0)) == [4.0, 2.5, 1.0]
    assert temperatures(plan_of(student, 2, final_temperature=3.0)) == [4.0, 3.0]


def test_hard_weight_leaves_the_rest_to_the_teachers_labels_of_labelled_examples(student):
    said = LABELS.flip(1)
    first = plan_of(student, 1, said, hard_weight=0.25)[0]
    truth = torch.tensor([0, 1, 2, 0, 1, 2])
    found = first.objective(Outputs(LOGITS), {**first.references, "labels": truth})
    hard = torch.nn.functional.cross_entropy(LOGITS, truth, reduction="none")
    torch.testing.assert_close(found, 0.25 * hard + 0.75 * distillation_kl(LOGITS, soften(said, 4.0), 4.0))
