"""Before a cohort is trained: does the stacked model compute what the plain one does, and how many fit into memory?

Both are found by trying, on a few examples of the first merchant of each kind of student.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill.models.base import Encoded
from fed_distill.runtime import seeds
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.stacking import Stack
from fed_distill.training.dropout import SeededDropout
from fed_distill.training.preparation import Prepared

CPU_SHARE, GPU_SHARE = 0.25, 0.8
"""Share of a machine's or a device's memory that cohorts may take; a CPU's is for the server and the system as well."""

_TRIED = 4
_SPREAD = 0.1
_TOLERANCE = 1e-4
_PASSING = 1.5
_PASSING_PRIVATE = 3.0
"""Activations live in a backward pass, in units of those that the forward pass keeps."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that training takes: of a merchant beside its batch, and of each example of a batch."""

    merchant: int
    example: int

    def merchants(self, budget: int, batch: int) -> int:
        """How many merchants with batches of ``batch`` examples fit into ``budget`` bytes; at least 1."""
        return max(1, budget // max(self.merchant + batch * self.example, 1))

    def examples(self, budget: int, merchants: int) -> int:
        """How many examples of each of ``merchants`` fit into ``budget`` bytes at a time; at least 1."""
        return max(1, (budget - merchants * self.merchant) // max(merchants * self.example, 1))


def memory_budget(device: torch.device, workers: int) -> int:
    """Bytes that cohorts may take, by the size of the memory: not by what is free, so that a resumed run cuts the same
    cohorts."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / workers)


def examined(member: Prepared, device: torch.device, moments: int) -> Footprint:
    """Prove the stacked model and measure its footprint; ``moments``: tensors that the optimizer keeps for a weight.

    Two merchants, one with the learner's weights and one with others, must get the outputs that the plain model gives
    each. Raise CannotStack if they do not, or the stacked model fails.
    """
    learner, examples = member.learner, _few(member)
    noise = seeds.torch_stream(0, "examine")
    other = {
        name: value + _SPREAD * torch.randn(value.shape, generator=noise) if value.is_floating_point() else value
        for name, value in learner.weights.items()
    }
    for table in learner.student.tables:
        other[table][0] = learner.weights[table][0]
    both = [learner.weights, other]
    expected = torch.cat([_plain(member, weights, examples, seed) for seed, weights in enumerate(both)])
    try:
        stack = Stack(learner.student, both, [member.submodel] * 2, device)
        stack.model.train()
        stack.activate(2)
        found, kept = _stacked(stack, examples, device)
    except CannotStack:
        raise
    except Exception as error:  # whatever a model of the user's own does with weights of a shape that it does not know
        raise CannotStack(f"its stacked forward pass fails: {type(error).__name__}: {error}") from error
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise CannotStack(
            "stacked, it computes something else than alone: it mixes examples, draws random numbers by itself, "
            "or uses weights outside the layer that they belong to"
        )
    weights = sum(_bytes(value) for value in stack.stacked.values()) // 2
    data = sum(_bytes(values) for segment in member.segments for values in segment.encoded.values())
    places = sum(_bytes(value) for value in stack.places.values()) // 2
    passing = _PASSING_PRIVATE if learner.privacy is not None else _PASSING
    return Footprint(weights * (3 + moments) + places + data, int(kept * passing / (2 * len(_rows(examples)))))


def _few(member: Prepared) -> Encoded:
    """Few examples of the first batch that has any, collated."""
    for segment in member.segments:
        for index in segment.batches:
            if len(index):
                return member.learner.student.collate(segment.encoded, index[:_TRIED])
    raise CannotStack("it has no examples to try it with")


def _plain(member: Prepared, weights: Mapping[str, Tensor], examples: Encoded, seed: int) -> Tensor:
    student = copy.deepcopy(member.learner.student)  # whose own weights may be the learner's
    student.load_state_dict(dict(weights))
    model = student.narrowed(member.submodel.rows).train()
    dropout = SeededDropout([seed])
    with torch.no_grad(), dropout:
        dropout.begin([0])
        logits: Tensor = model(member.submodel.renumber(examples)).logits
    return logits


def _stacked(stack: Stack, examples: Encoded, device: torch.device) -> tuple[Tensor, int]:
    """Logits of both merchants, and bytes that the forward pass keeps for the backward pass."""
    count = len(_rows(examples))
    owner = torch.arange(2, device=device).repeat_interleave(count)
    twice = {name: torch.cat([values, values]).to(device) for name, values in examples.items()}
    weights = {value.untyped_storage().data_ptr() for value in stack.stacked.values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dropout = SeededDropout([0, 1], device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), dropout:
        dropout.begin([0, 0])
        logits = stack.model(stack.renumbered(twice, owner)).logits
    return logits.detach().cpu(), sum(kept.values())


def _rows(examples: Encoded) -> Tensor:
    return next(iter(examples.values()))


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
