"""The steps of one cohort: a phase at a time, a batch of all its merchants at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs
from fed_distill.models.precision import autocast, products
from fed_distill.training.cohort.batches import Batch, PhaseData
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.optimizers import StackedOptimizer, clipped
from fed_distill.training.cohort.private import Noise, clipped_sums, example_flows, stacked_rates
from fed_distill.training.cohort.stacking import Skeleton, Stack
from fed_distill.training.dropout import SeededDropout
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, References, one_each
from fed_distill.training.preparation import Prepared
from fed_distill.training.robust import passes, robust_losses
from fed_distill.training.trainer import Failure, Fitted, Learner


class Cohort:
    """Merchants that train together: of one student and plan, ordered by falling number of steps."""

    def __init__(
        self,
        members: Sequence[Prepared],
        skeleton: Skeleton,
        config: TrainerConfig,
        device: torch.device,
        together: int,
    ) -> None:
        """together: examples of each merchant that go through the model at a time; more of a batch go in turns, members
        of the unit whole."""
        learners = [member.learner for member in members]
        self._members, self._config, self._together = members, config, together
        self._student = learners[0].student
        self._stack = Stack(
            skeleton, [one.weights for one in learners], [member.submodel for member in members], device
        )
        self._stack.model.train()
        self._corrections = _corrections(self._stack, learners)
        self._optimizer = StackedOptimizer(self._stack, config, list(self._student.tables))
        self._dropout = SeededDropout([seeds.key(*one.randomness, "dropout") for one in learners], device)
        self._rates = stacked_rates(self._stack, members)
        self._guarded = {name for member in members for name in member.read_only}
        self._done = [0] * len(members)
        self._trusted: Phase | None = None

    def run(self, pace: Pace, on_steps: Callable[[int], None]) -> Iterator[Fitted | Failure]:
        """Train all phases, then give every member's weights; ``on_steps`` is told how many merchants took a step."""
        segments = self._members[0].segments
        pulled = any(segment.phase.proximal_mu for segment in segments)
        anchor = {name: value.clone() for name, value in self._stack.stacked.items()} if pulled else {}
        try:
            losses = [self._phase(number, anchor, pace, on_steps) for number in range(len(segments))]
        finally:
            self._stack.release()
        for place, member in enumerate(self._members):
            try:
                yield member.fitted(self._stack.member(place), tuple(float(one[place]) for one in losses))
            except TrainingError as error:
                yield Failure(member.learner.name, str(error))

    def _phase(self, number: int, anchor: Mapping[str, Tensor], pace: Pace, on_steps: Callable[[int], None]) -> Tensor:
        """Train one phase; returns each member's mean loss, over steps, of a private phase over drawn examples."""
        stack = self._stack
        segments = [member.segments[number] for member in self._members]
        data = PhaseData(segments, stack.device)
        noise = Noise(stack, self._members, segments, number) if data.private else None
        total, weights = torch.zeros(2, len(segments), device=stack.device)
        even = stack.even(data.private)
        for step in range(max(data.steps, default=0)):
            active = data.active(step)
            stack.activate(active)
            batch = data.batch(step, active, even)
            summed, gradients = self._mean(data, batch) if noise is None else self._private(data, batch, noise)
            weight = torch.ones_like(summed) if noise is None else batch.counted
            total[:active] += summed / batch.counted.clamp_min(1) * weight
            weights[:active] += weight
            self._update(gradients, data, anchor, active, pace)
            on_steps(active)
        mean: Tensor = total / weights.clamp_min(1)
        return mean.cpu()

    def _mean(self, data: PhaseData, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Each merchant's summed loss, and the gradient of its mean."""
        names, weights = list(self._stack.parameters), list(self._stack.parameters.values())
        summed = torch.zeros(len(batch.sizes), device=self._stack.device)
        gradients: dict[str, Tensor] = {}
        for part in batch.parts(self._together):
            with products(self._config.precision):
                losses = self._losses(data, part)
                mean = (losses * (part.mask / batch.counted[part.owner])).sum()
                found = torch.autograd.grad(mean, weights, allow_unused=True)
            summed.index_add_(0, part.owner, (losses.detach() * part.mask).to(summed.dtype))
            for name, value in zip(names, found, strict=True):
                if value is not None:
                    gradients[name] = gradients[name] + value if name in gradients else value
        return summed, gradients

    def _private(self, data: PhaseData, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Each merchant's summed loss, and its noised sum of members' clipped gradients by its expected batch size."""
        stack, segments = self._stack, data.segments[: len(batch.sizes)]
        largest = torch.tensor([one.privacy.max_grad_norm for one in segments if one.privacy], device=stack.device)
        expected = torch.tensor([one.expected_batch for one in segments], device=stack.device)
        summed = torch.zeros(len(segments), device=stack.device)
        sums: dict[str, Tensor] = {}
        for part in batch.parts(self._together) if len(batch.index) else ():
            with stack.protected():
                with products(self._config.precision):
                    losses = self._losses(data, part)
                    flows = example_flows(stack, losses, part.mask)
                found = clipped_sums(stack, flows, part.mask, largest)
            summed.index_add_(0, part.owner, (losses.detach() * part.mask).to(summed.dtype))
            sums = {name: sums[name] + value if sums else value for name, value in found.items()}
        if not sums:
            sums = {name: torch.zeros_like(value) for name, value in stack.parameters.items()}
        noise.add(sums, len(segments))
        return summed, {name: value / stack.spread(name, expected, value.dim()) for name, value in sums.items()}

    def _losses(self, data: PhaseData, batch: Batch) -> Tensor:
        """Loss of each example, ``[N]``."""
        inputs = self._stack.renumbered(self._student.collate(data.encoded, batch.index), batch.owner)
        self._stack.layout.set(batch.sizes, batch.owner, batch.member)
        self._dropout.begin(self._done[: len(batch.sizes)], batch.owner, batch.column)
        references = data.taken(batch.index)

        def forward() -> Outputs:
            with self._dropout, autocast(self._config.precision, self._stack.device):
                outputs = data.phase.run(self._stack.model, inputs)
            return outputs.to(self._stack.dtype)

        def losses(outputs: Outputs) -> Tensor:
            found = one_each(data.phase.objective(outputs, references), len(batch.index))
            if self._trusted is not data.phase:
                self._check_objective(data, batch, outputs, references, found)
            return found

        if data.phase.data == "private" and passes(self._config) > 1:
            return robust_losses(self._stack.model, forward, losses, self._config)
        return losses(forward())

    def _check_objective(
        self, data: PhaseData, batch: Batch, outputs: Outputs, references: References, losses: Tensor
    ) -> None:
        """Once a phase: the first merchant's losses (under DP its first example's) must not depend on the others.

        Raise CannotStack if they do, TrainingError under DP, where no trainer could bound what an example changes.
        """
        count = 1 if data.private else next((size for size in batch.sizes if size), 1)
        own, objective = outputs.first(count), data.phase.objective
        alone = one_each(objective(own, {name: one[:count] for name, one in references.items()}), count)
        if not torch.allclose(alone.detach(), losses[:count].detach(), rtol=1e-4, atol=1e-5, equal_nan=True):
            if data.private:
                raise TrainingError("an objective that looks across the batch cannot be trained with DP")
            raise CannotStack("an objective looks across the batch, which would mix merchants")
        self._trusted = data.phase

    def _update(
        self, gradients: dict[str, Tensor], data: PhaseData, anchor: Mapping[str, Tensor], active: int, pace: Pace
    ) -> None:
        stack = self._stack
        for name in gradients.keys() & self._guarded if not data.private else ():
            gradients[name] = gradients[name] * stack.trained_rows[name][: stack.end(name, active)].unsqueeze(1)
        for name, start in anchor.items() if data.phase.proximal_mu else ():
            end = stack.end(name, active)
            pull = (stack.stacked[name][:end] - start[:end]) * data.phase.proximal_mu
            gradients[name] = gradients[name] + pull if name in gradients else pull
        if self._config.clips and not data.private:
            gradients = clipped(stack, gradients, active, self._config.clip_norm)
        for name in gradients.keys() & self._rates.keys():
            gradients[name] = gradients[name] * self._rates[name][: stack.end(name, active)]
        for name in gradients.keys() & self._corrections.keys() if data.phase.corrected else ():
            gradients[name] = gradients[name] + self._corrections[name][: stack.end(name, active)]
        scale = data.phase.learning_rate_scale
        rates = [pace.at(self._done[place], self._members[place].steps) * scale for place in range(active)]
        self._optimizer.step(gradients, rates)
        for place in range(active):
            self._done[place] += 1


def _corrections(stack: Stack, learners: Sequence[Learner]) -> dict[str, Tensor]:
    """What corrected phases add to the gradients, laid out as the weights are; nothing if no learner has any."""
    if not any(learner.correction for learner in learners):
        return {}
    none = {name: torch.zeros_like(learners[0].weights[name]) for name in stack.layers}
    return stack.laid([{**none, **learner.correction} for learner in learners])
