"""The sequential trainer: one learner after another, for any torch model; the reference for the cohort trainer.

It trains only the embedding rows that a learner's batches use: the row numbers of a batch are converted to positions in
the learner's submodel. Private phases use Opacus; see ``training.private_steps``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.training.dropout import SeededDropout
from fed_distill.training.optimization import Pace, build_optimizer, clip, correct, set_rate
from fed_distill.training.plan import Plan, one_each
from fed_distill.training.preparation import Prepared, Segment, prepare
from fed_distill.training.robust import passes, robust_losses
from fed_distill.training.trainer import Failure, Fitted, Learner, Steps


@dataclass(frozen=True)
class SequentialTrainer:
    """Trains learners one after another; see ``training.trainer.Trainer``.

    ``clip_norm`` is for public steps; in private ones each member's gradient is clipped already.
    """

    config: TrainerConfig

    def fit(
        self,
        learners: Sequence[Learner],
        plans: Mapping[str, Plan],
        pace: Pace,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Fitted | Failure]:
        """Train every learner by its plan; yield each when it is done, in the given order."""
        ready: list[Prepared | Failure] = []
        for learner in learners:
            try:
                ready.append(prepare(learner, plans[learner.name], self.config))
            except TrainingError as error:
                ready.append(Failure(learner.name, str(error)))
        steps = Steps(sum(one.steps for one in ready if isinstance(one, Prepared)), progress)
        for one in ready:
            yield self.fit_one(one, pace, steps.take) if isinstance(one, Prepared) else one

    def fit_one(self, prepared: Prepared, pace: Pace, on_steps: Callable[[int], None]) -> Fitted | Failure:
        """Train one learner; ``on_steps(1)`` is called after each step."""
        learner = prepared.learner
        learner.student.load_state_dict(dict(learner.weights))
        model = learner.student.narrowed(prepared.submodel.rows)
        try:
            with seeds.scope(*learner.randomness, "own draws"):
                losses = self._run(model, prepared, pace, on_steps)
            return prepared.fitted({name: value.detach() for name, value in model.state_dict().items()}, losses)
        except TrainingError as error:
            return Failure(learner.name, str(error))

    def _run(
        self, model: TextModel, prepared: Prepared, pace: Pace, on_steps: Callable[[int], None]
    ) -> tuple[float, ...]:
        """Train all segments; returns each one's loss: mean over batches, of a private one over drawn examples.

        The loss of a private segment is private itself: it must not leave the merchant without noise.
        """
        optimizer = build_optimizer(model.named_parameters(), model.tables, self.config)
        steps, done = prepared.steps, 0
        losses: list[float] = []
        anchor = {key: value.detach().clone() for key, value in model.named_parameters()}
        dropout = SeededDropout([seeds.key(*prepared.learner.randomness, "dropout")])
        model.train()
        for number, segment in enumerate(prepared.segments):
            total = torch.zeros(())
            with dropout, self._steps(model, optimizer, prepared, number, anchor) as step:
                for index in segment.batches:
                    set_rate(optimizer, pace.at(done, steps) * segment.phase.learning_rate_scale)
                    dropout.begin([done])
                    total += step(index)
                    done += 1
                    on_steps(1)
            counted = len(segment.batches) if segment.privacy is None else sum(map(len, segment.batches))
            losses.append(float(total) / max(counted, 1))
        return tuple(losses)

    def _steps(
        self,
        model: TextModel,
        optimizer: torch.optim.Optimizer,
        prepared: Prepared,
        number: int,
        anchor: Mapping[str, Tensor],
    ) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """What takes one step on the examples with given indices, in segment ``number``; it returns their loss."""
        segment = prepared.segments[number]
        if segment.privacy is None:
            return nullcontext(lambda index: self._step(model, optimizer, prepared, segment, index, anchor))
        from fed_distill.training.private_steps import private_steps  # brings Opacus: a second that few runs need

        return private_steps(model, optimizer, prepared, number, anchor)

    def _step(
        self,
        model: TextModel,
        optimizer: torch.optim.Optimizer,
        prepared: Prepared,
        segment: Segment,
        index: Tensor,
        anchor: Mapping[str, Tensor],
    ) -> Tensor:
        """One optimizer step on the examples ``index``; returns their mean loss, penalty left out."""
        batch = prepared.submodel.renumber(model.collate(segment.encoded, index))
        references = {key: values[index] for key, values in segment.references.items()}

        def forward() -> Outputs:
            return segment.phase.run(model, batch)

        def losses(outputs: Outputs) -> Tensor:
            return one_each(segment.phase.objective(outputs, references), len(index))

        robust = segment.phase.data == "private" and passes(self.config) > 1
        each = robust_losses(model, forward, losses, self.config) if robust else losses(forward())
        loss: Tensor = each.mean()
        objective = loss
        if segment.phase.proximal_mu:
            distance = [(value - anchor[key]).square().sum() for key, value in model.named_parameters()]
            objective = loss + segment.phase.proximal_mu / 2 * torch.stack(distance).sum()
        optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, rows in prepared.read_only.items():
            table = model.get_parameter(name)
            if table.grad is not None:
                table.grad[rows] = 0.0
        clip(model.parameters(), self.config)
        for name, rate in prepared.rates.items():
            weight = model.get_parameter(name)
            if weight.grad is not None:
                weight.grad *= rate
        if segment.phase.corrected:
            correct(model, prepared.learner.correction)
        optimizer.step()
        return loss.detach()
