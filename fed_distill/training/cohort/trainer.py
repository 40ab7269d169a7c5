"""Trains hundreds of merchants as one tensor program, to the same weights as one after another.

Merchants are ordered by their number of steps and cut into cohorts that fit into memory. In a cohort all take a step
at once: one forward and one backward pass of a stacked model, one optimizer step.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fed_distill.config import TrainingConfig
from fed_distill.models.base import TextModel
from fed_distill.training.cohort.batches import Batch, PhaseData
from fed_distill.training.cohort.optimizers import StackedOptimizer, clip
from fed_distill.training.cohort.private import Noise, clipped_gradients
from fed_distill.training.cohort.stacking import Stack
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Plan
from fed_distill.training.preparation import Prepared, prepare
from fed_distill.training.trainer import Fitted, Learner

_log = logging.getLogger(__name__)


@dataclass
class CohortTrainer:
    """Trains learners together; see ``training.trainer.Trainer``."""

    config: TrainingConfig
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cohort: int = 8

    def fit(
        self,
        learners: Sequence[Learner],
        plans: Mapping[str, Plan],
        pace: Pace,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Fitted]:
        """Train every learner by its plan; yield each when it is done, those with the most steps first."""
        ready = [prepare(learner, plans[learner.name], self.config) for learner in learners]
        ready.sort(key=lambda one: one.steps, reverse=True)
        for start in range(0, len(ready), self.cohort):
            yield from _Cohort(ready[start : start + self.cohort], self.config, self.device).run(pace)


class _Cohort:
    """Merchants that train together."""

    def __init__(self, members: Sequence[Prepared], config: TrainingConfig, device: torch.device) -> None:
        self.members, self.config = members, config
        self.student: TextModel = members[0].learner.student
        self.stack = Stack(
            self.student,
            [member.learner.weights for member in members],
            [member.submodel for member in members],
            device,
        )
        self.stack.model.train()
        self.optimizer = StackedOptimizer(self.stack, config, list(self.student.tables))
        self.done = [0] * len(members)

    def run(self, pace: Pace) -> Iterator[Fitted]:
        """All phases of all members."""
        losses = [self._phase(number, pace) for number in range(len(self.members[0].segments))]
        for place, member in enumerate(self.members):
            yield member.fitted(self.stack.member(place), tuple(float(one[place]) for one in losses))

    def _phase(self, number: int, pace: Pace) -> Tensor:
        """Train one phase; returns each member's mean loss, over steps, of a private phase over drawn examples."""
        segments = [member.segments[number] for member in self.members]
        data = PhaseData(segments, self.stack.device)
        anchor = {name: value.clone() for name, value in self.stack.stacked.items()} if data.phase.proximal_mu else {}
        noise = Noise(self.stack, self.members, segments, number) if data.private else None
        total = torch.zeros(len(segments), device=self.stack.device)
        weights = torch.zeros(len(segments), device=self.stack.device)
        for step in range(max(data.steps)):
            active = data.active(step)
            self.stack.activate(active)
            batch = data.batch(step, active)
            losses, gradients = self._gradients(data, batch) if noise is None else self._private(data, batch, noise)
            weight = batch.sizes if data.private else torch.ones_like(batch.sizes)
            total[:active] += (losses * batch.mask).sum(dim=1) / batch.sizes.clamp_min(1) * weight
            weights[:active] += weight
            self._update(gradients, data, anchor, active, pace)
        return (total / weights.clamp_min(1)).cpu()

    def _forward(self, data: PhaseData, batch: Batch) -> Tensor:
        """Loss of each example, ``[merchants, B]``."""
        index = batch.index.flatten()
        owner = torch.arange(len(batch.index), device=index.device).repeat_interleave(batch.index.shape[1])
        inputs = self.stack.renumbered(self.student.collate(data.encoded, index), owner)
        losses: Tensor = data.phase.objective(self.stack.model(inputs), data.taken(index))
        return losses.view(batch.mask.shape)

    def _gradients(self, data: PhaseData, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self._forward(data, batch)
        mean = (losses * (batch.mask / batch.sizes.unsqueeze(1))).sum()
        found = torch.autograd.grad(mean, list(self.stack.parameters.values()), allow_unused=True)
        gradients = dict(zip(self.stack.parameters, found, strict=True))
        return losses.detach(), {name: value for name, value in gradients.items() if value is not None}

    def _private(self, data: PhaseData, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        segments, device = data.segments[: len(batch.mask)], self.stack.device
        largest = torch.tensor([one.privacy.max_grad_norm for one in segments if one.privacy], device=device)
        self.stack.protect()
        losses = self._forward(data, batch)
        sums = clipped_gradients(self.stack, losses, batch.mask, largest)
        self.stack.expose()
        noise.add(sums, len(segments))
        expected = torch.tensor([one.expected_batch for one in segments], device=device)
        return losses.detach(), self._divided(sums, expected)

    def _divided(self, sums: Mapping[str, Tensor], by: Tensor) -> dict[str, Tensor]:
        owners = self.stack.owners(len(by)) if self.stack.tables else None
        return {
            name: value / (by[owners] if name in self.stack.tables else by).view(-1, *[1] * (value.dim() - 1))
            for name, value in sums.items()
        }

    def _update(
        self, gradients: dict[str, Tensor], data: PhaseData, anchor: Mapping[str, Tensor], active: int, pace: Pace
    ) -> None:
        for name, start in anchor.items():
            end = self.stack.end(name, active)
            pull = (self.stack.stacked[name][:end] - start[:end]) * data.phase.proximal_mu
            gradients[name] = gradients[name] + pull if name in gradients else pull
        if self.config.clip_norm is not None and not data.private:
            clip(self.stack, gradients, active, self.config.clip_norm)
        rates = [
            pace.at(self.done[place], self.members[place].steps) * data.phase.learning_rate_scale
            for place in range(active)
        ]
        self.optimizer.step(gradients, rates)
        for place in range(active):
            self.done[place] += 1
