"""Preparation of a training before its first step: batches, submodel and number of steps.

Both trainers use it, so that they train on the same batches of the same submodel and send the same parts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.errors import TrainingError
from fed_distill.models.pair import plain_name
from fed_distill.privacy.dp_sgd import ExampleDP, sampling_rate
from fed_distill.seeds import Keystream
from fed_distill.text.encoded import Encoded
from fed_distill.training.plan import Data, Duration, Phase, Plan, References
from fed_distill.training.robust import passes, smoothed
from fed_distill.training.submodel import Submodel, submodel_of, whole_model
from fed_distill.training.trainer import Fitted, Learner
from fed_distill.training.uncertain_labels import LABEL_PROBABILITIES, expected


@dataclass(frozen=True)
class Segment:
    """A phase with everything it runs on.

    encoded and references: all examples of its data. batches: int64 row indices of each step; Poisson sampling may
    draw none. privacy: of a private phase under DP, else None. expected_batch: mean number of members (examples or
    groups) of a Poisson-sampled batch. groups: of such a phase, ``Learner.groups``.
    """

    phase: Phase
    encoded: Encoded
    references: References
    batches: tuple[Tensor, ...]
    privacy: ExampleDP | None = None
    expected_batch: float = 0.0
    groups: Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """A learner that is ready to be trained. Its batches and its submodel are found where they are first used, so that
    a process that trains none of its steps does not spend time and memory on them.

    :param phases: of its plan, with label smoothing.
    :param batch_size: of steps without DP, and of private ones whose ``ExampleDP`` has none.
    :param partial: whether it trains and sends only the rows of tables that it touches.
    """

    learner: Learner
    phases: tuple[Phase, ...]
    batch_size: int
    partial: bool

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The phases with their batches."""
        return tuple(draw(phase, number, self.learner, self.batch_size) for number, phase in enumerate(self.phases))

    @cached_property
    def submodel(self) -> Submodel:
        """What its batches need of the student."""
        if not self.partial:
            return whole_model(self.learner.student)
        read = [_used(segment) for segment in self.segments]
        private = self.learner.privacy
        if private is None:
            return submodel_of(self.learner.student, read)
        return submodel_of(self.learner.student, read, self.learner.proxy, private.rows)

    @cached_property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(_steps(phase, self.learner, self.batch_size) for phase in self.phases)

    @cached_property
    def largest_batch(self) -> int:
        """Examples of its largest batch."""
        if self.learner.privacy is not None:  # Poisson sampling
            return max((len(index) for segment in self.segments for index in segment.batches), default=0)
        return max((min(self.batch_size, _size(phase, self.learner)) for phase in self.phases), default=0)

    @cached_property
    def rates(self) -> dict[str, Tensor]:
        """Factors on the learning rate under DP, float32, by trained weight: ``[]``, of a table ``[rows, 1]``; a weight
        that is not named has 1.

        All are public, so what they do to a noised gradient is post-processing. A rare feature's gradient is small,
        since few examples have it, and would hardly move at the rate of a common one: the proxy set's counts even that
        out, as public side information (Li et al., "Private adaptive optimization with side information", ICML 2022).
        """
        privacy, student, rates = self.learner.privacy, self.learner.student, dict[str, Tensor]()
        if privacy is None:
            return rates
        for name, value in student.named_parameters():
            plain = plain_name(student, name)
            factors = [factor for pattern, factor in privacy.rate_scales.items() if fnmatchcase(plain, pattern)]
            rate = torch.tensor(math.prod(factors))
            if privacy.row_rate_power and name in self.submodel.trained:
                counts, trained = self.submodel.counts[name].float(), self.submodel.trained[name]
                relative = torch.where(trained, counts / counts[trained].mean(), 1.0)
                rate = rate * relative.pow(-privacy.row_rate_power).unsqueeze(1)
            if value.requires_grad and bool((rate != 1.0).any()):
                rates[name] = rate
        return rates

    @cached_property
    def read_only(self) -> dict[str, Tensor]:
        """By table, bool ``[rows]``: what a learner under DP reads and may not change, on the proxy set neither; its
        private steps see to it themselves. Tables of which it may change all but padding are left out."""
        if self.learner.privacy is None:
            return {}
        return {table: ~rows for table, rows in self.submodel.trained.items() if not bool(rows[1:].all())}

    def fitted(self, arrays: Mapping[str, Tensor], losses: tuple[float, ...]) -> Fitted:
        """The trained learner, without the weights that its student freezes.

        Raise TrainingError naming it if the mean ``losses`` of its phases are not finite. Private losses are not looked
        at, since a failure would tell of single examples.
        """
        for number, (loss, phase) in enumerate(zip(losses, self.phases, strict=True), start=1):
            if (phase.data != "private" or self.learner.privacy is None) and not math.isfinite(loss):
                raise TrainingError(
                    f"{self.learner.name}: the loss of phase {number} is {loss}; lower learning_rate or set clip_norm "
                    "in [training.merchants], or for the server in [training.server]"
                )
        frozen = {name for name, value in self.learner.student.named_parameters() if not value.requires_grad}
        trained = {name: value for name, value in arrays.items() if name not in frozen}
        return Fitted(self.learner.name, self.submodel.sent(trained), losses, self.steps)


def prepare(learner: Learner, plan: Plan, config: TrainerConfig) -> Prepared:
    """Check that ``learner`` has what its plan needs. Raise TrainingError naming it if it has not."""
    if learner.privacy is not None and passes(config) > 1:
        raise TrainingError(f"{learner.name}: adversarial training and R-Drop are not supported with DP: remove them")
    for phase in plan.phases:
        if phase.data == "unlabeled" and learner.privacy is not None:
            raise TrainingError(f"{learner.name}: phases on unlabeled examples are not supported with DP: remove them")
        made = learner.unlabeled_references if phase.data == "unlabeled" else learner.references
        missing = phase.predicted.keys() - made.keys()
        if missing:
            raise TrainingError(
                f"{learner.name}: its plan requires the reference {sorted(missing)[0]!r}, which was not computed"
            )
        if _size(phase, learner) == 0:
            raise TrainingError(f"{learner.name} has no {phase.data} examples to train on")
    phases = tuple(_with_smoothing(phase, config.label_smoothing) for phase in plan.phases)
    if learner.label_probabilities is not None:
        phases = tuple(_with_uncertain_labels(phase, learner.label_temperature) for phase in phases)
    partial = config.submodel and not any(phase.corrected for phase in plan.phases)
    return Prepared(learner, phases, config.batch_size, partial)


def _with_smoothing(phase: Phase, smoothing: float) -> Phase:
    if phase.data != "private" or smoothing == 0.0:
        return phase
    return replace(phase, objective=smoothed(phase.objective, smoothing))


def _with_uncertain_labels(phase: Phase, temperature: float) -> Phase:
    return phase if phase.data != "private" else replace(phase, objective=expected(phase.objective, temperature))


def draw(phase: Phase, number: int, learner: Learner, batch_size: int) -> Segment:
    """Draw the batches of a learner's phase ``number``.

    Without replacement within an epoch, the last batch of one short. A private phase under DP has as many steps as it
    would with an example for each member of the unit, and each step takes every member, a group with all its examples,
    with probability batch size / members (Poisson sampling, which the accountants assume; of groups, McMahan et al.,
    "Learning differentially private recurrent language models", ICLR 2018, algorithm 1).
    """
    encoded, references, privacy = learner.proxy, phase.references, None
    if phase.data == "private":
        made = {name: learner.references[name] for name in phase.predicted}
        encoded, references = learner.private, {**phase.references, **made, "labels": learner.labels}
        if learner.label_probabilities is not None:
            references = {**references, LABEL_PROBABILITIES: learner.label_probabilities}
        privacy = learner.privacy
    elif phase.data == "unlabeled":
        encoded = learner.unlabeled
        references = {**phase.references, **{name: learner.unlabeled_references[name] for name in phase.predicted}}
    steps = _steps(phase, learner, batch_size)
    if privacy is not None:
        members = learner.members()
        taken = members if privacy.examples is None else privacy.examples
        rate = sampling_rate(taken, privacy.batch_size or batch_size)
        coins = Keystream(*learner.randomness, "batches", number)  # secret, as amplification requires
        drawn = (coins.uniform(members) < rate for _ in range(steps))
        sampled = tuple((one if learner.groups is None else one[learner.groups]).nonzero().flatten() for one in drawn)
        return Segment(phase, encoded, references, sampled, privacy, rate * taken, learner.groups)
    generator, size = seeds.torch_stream(*learner.randomness, "batches", number), _size(phase, learner)
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += torch.split(torch.randperm(size, generator=generator), batch_size)
    return Segment(phase, encoded, references, tuple(batches[:steps]))


def steps_of(duration: Duration | Phase, members: int, batch_size: int) -> int:
    """Return the number of steps of a phase for a number of examples, or of members of the unit with DP."""
    if duration.steps is not None:
        return duration.steps
    return max(1, round((duration.epochs or 0.0) * math.ceil(members / batch_size)))


def _size(phase: Phase, learner: Learner) -> int:
    """Return the number of examples of a phase."""
    if phase.data == "private":
        return learner.examples()
    encoded = learner.unlabeled if phase.data == "unlabeled" else learner.proxy
    return len(next(iter(encoded.values()), ()))


def _steps(phase: Phase, learner: Learner, batch_size: int) -> int:
    """Return the number of steps of a phase for a learner."""
    privacy = learner.privacy if phase.data == "private" else None
    if privacy is None:
        return steps_of(phase, _size(phase, learner), batch_size)
    taken = learner.members() if privacy.examples is None else privacy.examples
    return steps_of(phase, taken, privacy.batch_size or batch_size)


def private_steps(plan: Plan, members: int, batch_size: int) -> int:
    """Return the number of steps of a plan on private examples with a number of ``members`` of the unit."""
    return sum(steps_of(phase, members, batch_size) for phase in plan.phases if phase.data == "private")


def public_steps(plan: Plan, data: Data, examples: int, batch_size: int) -> int:
    """Return the number of steps of a plan, without DP, on a number of ``examples`` of ``data``."""
    return sum(steps_of(phase, examples, batch_size) for phase in plan.phases if phase.data == data)


def _used(segment: Segment) -> Encoded:
    """Those examples that the batches use."""
    used = torch.unique(torch.cat(segment.batches)) if segment.batches else torch.empty(0, dtype=torch.int64)
    return {key: values[used] for key, values in segment.encoded.items()}
