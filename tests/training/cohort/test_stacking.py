"""Which students need padded batches, and one skeleton for one stack after another."""

import dataclasses

import pytest
import torch
from transformers.models.mobilebert.modeling_mobilebert import NoNorm

from fed_distill.training.cohort.batches import joined
from fed_distill.training.cohort.stacking import Stack, skeleton_of
from tests.training.cohort.conftest import Words


class OwnLayer(Words):
    """With a layer that is mapped over merchants."""

    def __init__(self):
        super().__init__()
        self.scale = NoNorm(6)

    def middle(self, values):
        return self.scale(super().middle(values))


@pytest.mark.parametrize(
    ("kind", "plain", "private"),
    [("two-tower", False, False), ("bert-mini", False, False), ("lstm", False, True), ("own layer", True, True)],
)
def test_only_layers_that_need_it_ask_for_as_many_examples_of_each_merchant(
    kind, plain, private, words, small_student, merchants, plans, stack_of
):
    student = words(OwnLayer) if kind == "own layer" else small_student(kind)
    _, stack = stack_of(merchants(student, sizes=(5, 3)), plans.fedavg)
    assert (stack.even(private=False), stack.even(private=True)) == (plain, private)


def test_a_skeleton_serves_stacks_one_after_another(small_student, merchants, plans, stack_of):
    """The second has other weights, also those that are frozen, and another number of merchants."""
    student = small_student("bert-mini").eval()
    student.network.bert.embeddings.requires_grad_(False)
    first = merchants(student, sizes=(5, 3))
    second = [
        dataclasses.replace(one, weights={name: value * 0.5 for name, value in one.weights.items()})
        for one in merchants(student, sizes=(4, 6, 2))
    ]
    skeleton = skeleton_of(student)
    for learners in (first, second):
        members, _ = stack_of(learners, plans.fedavg)
        weights, submodels = [one.weights for one in learners], [one.submodel for one in members]
        stack = Stack(skeleton, weights, submodels, torch.device("cpu"))
        stack.activate(len(learners))
        sizes = [len(one.labels) for one in learners]
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        stack.layout.set(sizes, owner)
        found = []
        for one in learners:
            student.load_state_dict(one.weights)
            found.append(student(one.private).logits.detach())
        inputs = {name: joined([one.private[name] for one in learners]) for name in first[0].private}
        outputs = stack.model(stack.renumbered(inputs, owner)).logits
        torch.testing.assert_close(outputs.detach(), torch.cat(found))
