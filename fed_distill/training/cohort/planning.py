"""Checks before a cohort is trained: equivalence of the stacked and the plain model, and memory per merchant.

Both use trial passes on a few examples of one merchant for each student.
"""

import copy
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.models.base import TextModel
from fed_distill.models.prediction import representation
from fed_distill.text.encoded import Encoded
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.private import example_flows, square_norms
from fed_distill.training.cohort.stacking import Skeleton, Stack, skeleton_of
from fed_distill.training.dropout import SeededDropout
from fed_distill.training.preparation import Prepared

CPU_SHARE, GPU_SHARE = 0.25, 0.8
"""Share of a machine's or device's memory for cohorts; server and system also use that of a CPU."""

_TRIED = 4
_SPREAD = 0.1
_TOLERANCE = 1e-4
_TOLERANCE_OF_NORMS = 1e-3
_PASSING = 1.5
_PASSING_PRIVATE = 3.0
"""Activations live in a backward pass, in units of those that the forward pass keeps."""


@dataclass(frozen=True)
class Footprint:
    """Memory for training in bytes: for a merchant without its batch, and for each example of a batch."""

    merchant: int
    example: int

    def merchants(self, budget: int, batch: int) -> int:
        """Return how many merchants with batches of ``batch`` examples fit in ``budget`` bytes; at least 1."""
        return max(1, budget // max(self.merchant + batch * self.example, 1))

    def examples(self, budget: int, merchants: int) -> int:
        """Return the number of examples of each of ``merchants`` that fit in ``budget`` bytes; at least 1."""
        return max(1, (budget - merchants * self.merchant) // max(merchants * self.example, 1))


def memory_budget(device: torch.device, processes: int) -> int:
    """Return the bytes for cohorts of one of ``processes``, by total memory, not by free memory."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory / processes)
    return int(CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes)


def examined(member: Prepared, device: torch.device, moments: int) -> tuple[Skeleton, Footprint]:
    """Prove the stacked model and measure its footprint; ``moments``: tensors that the optimizer keeps for a weight.

    Two merchants of other weights and other examples, in a batch padded more than theirs, must get the outputs (under
    DP also the norms of the gradients of their examples, or groups of two) that the plain model gives each of them.
    Raise CannotStack if they do not, or a trial fails. ``member`` must draw an example in some phase.
    """
    learner = member.learner
    encoded, turns = _few(member)
    hidden = any(segment.phase.hidden for segment in member.segments)
    noise = seeds.torch_stream(0, "examine")
    other = dict(learner.weights)
    for name, value in learner.student.named_parameters():
        if value.requires_grad:
            drawn = torch.randn(value.shape, generator=noise, dtype=value.dtype)
            other[name] = learner.weights[name] + _SPREAD * drawn
            if name in learner.student.tables:
                other[name][0] = learner.weights[name][0]
    both = [learner.weights, other]
    try:
        skeleton = skeleton_of(learner.student)
        stack = Stack(skeleton, both, [member.submodel] * 2, device)
        stack.model.train()
        stack.activate(2)
        examples = {name: values[torch.cat(turns)] for name, values in encoded.items()}
        found, norms, kept = _stacked(stack, member, examples, device, hidden)
        alone = [_plain(member, both[seed], encoded, turns[seed], seed, hidden) for seed in range(2)]
    except CannotStack:
        raise
    except Exception as error:  # whatever a model of the user's own does with weights of a shape that it does not know
        raise CannotStack(f"a trial of the stacked student fails: {type(error).__name__}: {error}") from error
    expected, expected_norms = (torch.cat(parts) for parts in zip(*alone, strict=True))
    if not _alike(found, expected, _TOLERANCE):
        raise CannotStack(
            "the stacked student gives other outputs than the plain one: it mixes examples, depends on padding, draws "
            "its own random numbers, or uses weights outside of their layer"
        )
    if not _alike(norms, expected_norms, _TOLERANCE_OF_NORMS):
        raise CannotStack("per-example gradients differ from those computed from inputs and outputs of its layers")
    stack.release()
    weights = sum(_bytes(value) for value in stack.stacked.values()) // 2
    data = sum(_bytes(values) for segment in member.segments for values in segment.encoded.values())
    places = sum(_bytes(value) for value in stack.places.values()) // 2
    passing = _PASSING_PRIVATE if learner.privacy is not None else _PASSING
    return skeleton, Footprint(weights * (3 + moments) + places + data, int(kept * passing / len(found)))


def _few(member: Prepared) -> tuple[Encoded, list[Tensor]]:
    """All examples of the first phase that draws any, and which few of them each of two merchants tries."""
    segment = next(segment for segment in member.segments if any(map(len, segment.batches)))
    drawn = torch.unique(torch.cat(segment.batches))[:_TRIED]
    first = drawn if len(drawn) > 1 else drawn.repeat(2)
    return segment.encoded, [first, torch.cat([first[:1], first[:-1]])]


def _plain(
    member: Prepared, weights: Mapping[str, Tensor], encoded: Encoded, index: Tensor, seed: int, hidden: bool
) -> tuple[Tensor, Tensor]:
    """What may be read of the examples ``index`` and, under DP, the norms of the gradients of trial losses, one by one:
    of the examples, or of each of the groups' mean."""
    student = copy.deepcopy(member.learner.student)  # whose own weights may be the learner's
    student.load_state_dict(dict(weights))
    model = student.narrowed(member.submodel.rows).train()
    dropout = SeededDropout([seeds.key(seed)])

    def logits(first: int, last: int) -> Tensor:
        dropout.begin([0], torch.zeros(last - first, dtype=torch.int64), torch.arange(first, last))
        with dropout:
            return _read(model, member.submodel.renumber(model.collate(encoded, index[first:last])), hidden)

    with torch.no_grad():
        whole = logits(0, len(index))
    if member.learner.privacy is None:
        return whole, torch.zeros(len(index))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    groups = _trial_groups(member, len(index))
    squares = torch.zeros(int(groups.max()) + 1)
    for place in range(len(squares)):
        examples = (groups == place).nonzero().flatten().tolist()
        loss = torch.cat([_trial_losses(logits(one, one + 1)) for one in examples]).mean()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                rows = member.submodel.trained.get(name)
                squares[place] += (gradient if rows is None else gradient[rows]).square().sum()
    return whole, squares.sqrt()


def _stacked(
    stack: Stack, member: Prepared, examples: Encoded, device: torch.device, hidden: bool
) -> tuple[Tensor, Tensor, int]:
    """Of two merchants' ``examples``: what may be read, norms as ``_plain`` gives them, and bytes that the forward pass
    keeps for the backward pass."""
    count, private = len(_rows(examples)) // 2, member.learner.privacy is not None
    owner = torch.arange(2, device=device).repeat_interleave(count)
    inputs = stack.renumbered({name: values.to(device) for name, values in examples.items()}, owner)
    weights = {value.untyped_storage().data_ptr() for value in stack.stacked.values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep the graph that keeps it

    dropout = SeededDropout([seeds.key(0), seeds.key(1)], device)
    squares = torch.zeros(2 * count)
    own = _trial_groups(member, count)
    grouped = private and member.learner.groups is not None
    stack.layout.set([count, count], owner, torch.cat([own, own + own.max() + 1]).to(device) if grouped else None)
    with stack.protected() if private else nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), dropout:
            dropout.begin([0, 0], owner, torch.arange(count, device=device).repeat(2))
            logits = _read(stack.model, inputs, hidden)
        if private:
            flows = example_flows(stack, _trial_losses(logits), torch.ones(2 * count, device=device))
            with torch.no_grad():
                squares = square_norms(flows)
    return logits.detach().cpu(), squares.sqrt().cpu(), sum(kept.values())


def _trial_groups(member: Prepared, examples: int) -> Tensor:
    """Which member of the unit each of the tried examples is, int64 ``[examples]``: if groups are, two of them each."""
    return torch.arange(examples) // (1 if member.learner.groups is None else 2)


def _read(model: TextModel, batch: Encoded, hidden: bool) -> Tensor:
    """All that an objective may read of a batch's outputs, ``[N, numbers]``: logits, those of both students of a pair,
    and with ``hidden`` representations, since hidden states differ where they are padding."""
    outputs = model(batch, hidden=True) if hidden else model(batch)
    each = [outputs] if outputs.shared is None else [outputs, outputs.shared]
    parts = [one.logits for one in each]
    return torch.cat([*parts, *map(representation, each)] if hidden else parts, dim=-1)


def _trial_losses(logits: Tensor) -> Tensor:
    """Some loss of each example."""
    return (logits + 1.0).square().sum(dim=-1)


def _alike(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether they are equal, what overflows in both aside: of such an example neither says anything."""
    if found.shape != expected.shape:
        return False
    expected = expected.to(found)
    told = torch.isfinite(found) | torch.isfinite(expected)
    return torch.allclose(found[told], expected[told], rtol=tolerance, atol=tolerance)


def _rows(examples: Encoded) -> Tensor:
    return next(iter(examples.values()))


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
