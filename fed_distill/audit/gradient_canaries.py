"""Dirac canaries for DP-SGD: examples whose gradient has one entry, trained on by the trainer of the run.

Everything that protects is production code: sampling, clipping, noise, their streams, and what is sent. Only the
student is the audit's own: a table of single numbers, each of which one canary's text looks up, under an objective that
is linear in what it finds. So a canary's gradient is one entry of known sign, far longer than the clip, whatever the
weights are: the worst that an example can do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fed_distill.audit.membership import BoolArray, IntArray
from fed_distill.audit.roc import FloatArray
from fed_distill.audit.white_box import CANARIES, REFERENCES, Canaries, WhiteBoxAudit
from fed_distill.config import TrainerConfig
from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.privacy.accounting import Accountant, Spend
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.seeds import Randomness
from fed_distill.text.encoded import Encoded
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Learner, Trainer

CANARY_TRAINING = TrainerConfig(optimizer="sgd", learning_rate=1.0, schedule="constant")
"""What the audited trainer must be made with: a release is then the sum of its noised steps."""

TABLE = "numbers.weight"
_STRENGTH = 8.0
"""Length of a canary's gradient in units of the clip."""
_OF_GROUP = 2
"""Examples of a canary that is a group."""
_RESOLUTION = 1 << 20
"""Examples that the learner is taken to have: sampling rates are multiples of its inverse."""


class CanaryStudent(TextModel):
    """A table of ``numbers``; a text is the number of a row, from 1 on, and its only logit what stands there."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.tables = {TABLE: ("row",)}
        self.numbers = nn.Embedding(numbers + 1, 1, padding_idx=0)
        with torch.no_grad():
            self.numbers.weight.zero_()

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``row``: int32 ``[texts, 1]``."""
        return {"row": torch.tensor([[int(text)] for text in texts], dtype=torch.int32).view(-1, 1)}

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Logits ``[batch, 1]``."""
        return Outputs(self.numbers(batch["row"]).sum(dim=1))


def directed(strength: float) -> Objective:
    """The loss whose gradient by an example's logit is ``strength`` for label 0 and -``strength`` for label 1: a step
    moves the number of an example with label 1 up."""

    def losses(outputs: Outputs, references: References) -> Tensor:
        return strength * (1.0 - 2.0 * references["labels"].to(outputs.logits.dtype)) * outputs.logits[:, 0]

    return losses


@dataclass(frozen=True)
class TrainerAudit:
    """What an audit of DP-SGD needs.

    trainer: made with ``CANARY_TRAINING``. spend: of one release: noise multiplier, sampling rate and steps. releases:
    how many the merchant makes. names: of a release, from 0 on, the learner's randomness, as production has it.
    outsider: the same as somebody would guess it who knows the run's seed and no secret; None for no such attack.
    max_grad_norm: the clip. unit: its name. grouped: whether its members are groups: a canary is then one of two equal
    examples.
    """

    trainer: Trainer
    spend: Spend
    releases: int
    names: Callable[[int], Randomness]
    outsider: Callable[[int], Randomness] | None = None
    max_grad_norm: float = 1.0
    unit: str = "example"
    grouped: bool = False

    def run(
        self,
        *,
        seed: int,
        delta: float = 1e-5,
        confidence: float = 0.95,
        canaries: int = CANARIES,
        references: int = REFERENCES,
        accountant: Accountant = "pld",
    ) -> WhiteBoxAudit:
        """Train on a random half of the canaries and bound epsilon at ``delta`` from below.

        seed: of the coins. Raises TrainingError if the trainer cannot train them, DataError for too few canaries.
        """
        secret = Canaries.drawn(canaries, self.releases, seed)
        student = CanaryStudent(canaries + references + 1)
        rows = np.flatnonzero(secret.included).repeat(self._examples) + 1
        up = [direction[rows - 1] > 0 for direction in secret.directions]
        seen = self._released(student, rows, up, self.names)[:, : canaries + references]
        foreseen = None
        if (
            self.outsider is not None
        ):  # whoever foresees noise needs no canary: one example, in a place that is not read
            last, label = np.array([canaries + references + 1]), [np.array([True])] * self.releases
            foreseen = self._released(student, last, label, self.outsider)[:, : canaries + references]
        scores = secret.scores(seen, foreseen, self.spend)
        return secret.bounds(self.unit, scores, [self.spend] * self.releases, delta, confidence, accountant)

    @property
    def _examples(self) -> int:
        """Of one canary."""
        return _OF_GROUP if self.grouped else 1

    def _released(
        self, student: CanaryStudent, rows: IntArray, up: Sequence[BoolArray], names: Callable[[int], Randomness]
    ) -> FloatArray:
        """How each release moves each number, ``[releases, numbers]``, in units of the clip and of one example."""
        batch = max(1, round(self.spend.sampling_rate * _RESOLUTION))
        privacy = ExampleDP(self.spend.noise_multiplier, self.max_grad_norm, batch, examples=_RESOLUTION)
        start = {TABLE: torch.zeros(student.numbers.weight.shape)}
        every = {"row": torch.arange(1, len(start[TABLE]), dtype=torch.int32).view(-1, 1)}
        plan = Plan((Phase(directed(_STRENGTH * self.max_grad_norm), steps=self.spend.steps),))
        learners = [
            Learner(
                f"release {number}",
                student,
                start,
                private={"row": torch.from_numpy(rows.astype(np.int32)).view(-1, 1)},
                labels=torch.from_numpy(up[number].astype(np.int64)),
                proxy=every,
                randomness=names(number),
                privacy=privacy,
                groups=torch.from_numpy(np.unique(rows, return_inverse=True)[1]) if self.grouped else None,
            )
            for number in range(self.releases)
        ]
        moved = np.zeros((self.releases, len(start[TABLE]) - 1))
        places = {learner.name: number for number, learner in enumerate(learners)}
        for fitted in self.trainer.fit(learners, dict.fromkeys(places, plan), Pace(1.0)):
            if isinstance(fitted, Failure):
                raise TrainingError(fitted.reason)
            numbers = completed(fitted.weights, start)[TABLE][1:, 0]
            moved[places[fitted.name]] = numbers.double().numpy() * (batch / self.max_grad_norm)
        return moved
