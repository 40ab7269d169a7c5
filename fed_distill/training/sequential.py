"""The plain trainer: one learner after another, any torch model, and the reference for every faster one.

The batches of all phases are drawn first, so that it is known which embedding rows they touch; then only
those rows are trained.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fed_distill.config import TrainingConfig
from fed_distill.errors import TrainingError
from fed_distill.models.base import Encoded, TextModel
from fed_distill.runtime import seeds
from fed_distill.training.optimization import Pace, build_optimizer
from fed_distill.training.plan import Phase, Plan, References
from fed_distill.training.submodel import renumber, row_counts, touched_rows
from fed_distill.training.trainer import Fitted, Learner
from fed_distill.transport.messages import PartialWeights


@dataclass(frozen=True)
class Segment:
    """A phase with everything it runs on: examples, row-aligned references, and batches of row indices."""

    phase: Phase
    encoded: Encoded
    references: References
    batches: tuple[Tensor, ...]


@dataclass(frozen=True)
class SequentialTrainer:
    """Trains learners one after another; see ``training.trainer.Trainer``."""

    config: TrainingConfig

    def fit(
        self,
        learners: Sequence[Learner],
        plans: Mapping[str, Plan],
        pace: Pace,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Fitted]:
        """Train every learner by its plan; yield each when it is done, in the given order."""
        for learner in learners:
            yield self._fit_one(learner, plans[learner.name], pace, progress)

    def _fit_one(self, learner: Learner, plan: Plan, pace: Pace, progress: Callable[[int, int], None] | None) -> Fitted:
        segments = [draw(phase, number, learner, self.config.batch_size) for number, phase in enumerate(plan.phases)]
        model, rows, counts = learner.student, {}, {}
        if self.config.submodel and learner.student.tables:
            segments = [_only_used(segment) for segment in segments]
            used = row_counts(model, [segment.encoded for segment in segments])
            rows = touched_rows(used)
            counts = {table: used[table][index] for table, index in rows.items()}
            segments = [replace(segment, encoded=renumber(model, segment.encoded, rows)) for segment in segments]
            model = model.narrowed(rows)
        else:
            model = copy.deepcopy(model)
        with seeds.scope(*learner.randomness, "dropout"):
            losses = self._run(model, segments, pace, learner.name, progress)
        arrays = {name: value.detach() for name, value in model.state_dict().items()}
        return Fitted(learner.name, PartialWeights(arrays, rows, counts), losses)

    def _run(
        self,
        model: TextModel,
        segments: Sequence[Segment],
        pace: Pace,
        name: str,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[float, ...]:
        optimizer = build_optimizer(model, model.tables, self.config, pace.learning_rate)
        steps = sum(len(segment.batches) for segment in segments)
        losses: list[float] = []
        done = 0
        anchor = {key: value.detach().clone() for key, value in model.named_parameters()}
        model.train()
        for segment in segments:
            total = torch.zeros(())
            for index in segment.batches:
                for group in optimizer.param_groups:
                    group["lr"] = pace.at(done, steps) * segment.phase.learning_rate_scale
                total += self._step(model, optimizer, segment, index, anchor)
                done += 1
                if progress is not None:
                    progress(done, steps)
            losses.append(_checked_mean(total, len(segment.batches), name, len(losses)))
        return tuple(losses)

    def _step(
        self,
        model: TextModel,
        optimizer: torch.optim.Optimizer,
        segment: Segment,
        index: Tensor,
        anchor: Mapping[str, Tensor],
    ) -> Tensor:
        """One optimizer step on the examples ``index``; returns their mean loss, penalty left out."""
        outputs = model(model.collate(segment.encoded, index))
        references = {key: values[index] for key, values in segment.references.items()}
        loss: Tensor = segment.phase.objective(outputs, references).mean()
        objective = loss
        if segment.phase.proximal_mu:
            distance = [(value - anchor[key]).square().sum() for key, value in model.named_parameters()]
            objective = loss + segment.phase.proximal_mu / 2 * torch.stack(distance).sum()
        optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.clip_norm)
        optimizer.step()
        return loss.detach()


def draw(phase: Phase, number: int, learner: Learner, batch_size: int) -> Segment:
    """Draw the batches of a learner's phase ``number``: without replacement within an epoch, the last one short."""
    encoded, references = learner.proxy, phase.references
    if phase.data == "private":
        encoded, references = learner.private, {**phase.references, "labels": learner.labels}
    size = len(next(iter(encoded.values())))
    if size == 0:
        raise TrainingError(f"{learner.name} has no {phase.data} examples to train on")
    generator = seeds.torch_stream(*learner.randomness, "batches", number)
    per_epoch = math.ceil(size / batch_size)
    steps = phase.steps if phase.steps is not None else max(1, round((phase.epochs or 0.0) * per_epoch))
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += torch.split(torch.randperm(size, generator=generator), batch_size)
    return Segment(phase, encoded, references, tuple(batches[:steps]))


def _only_used(segment: Segment) -> Segment:
    """The same segment over only those examples that its batches use."""
    if not segment.batches:
        return segment
    used, inverse = torch.unique(torch.cat(segment.batches), return_inverse=True)
    return replace(
        segment,
        encoded={key: values[used] for key, values in segment.encoded.items()},
        references={key: values[used] for key, values in segment.references.items()},
        batches=torch.split(inverse, [len(batch) for batch in segment.batches]),
    )


def _checked_mean(total: Tensor, steps: int, name: str, phase: int) -> float:
    mean = float(total) / max(steps, 1)
    if not math.isfinite(mean):
        raise TrainingError(
            f"{name}: the loss of phase {phase + 1} is {mean}; lower training.learning_rate or set training.clip_norm"
        )
    return mean
