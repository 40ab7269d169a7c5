"""White-box audit of DP-SGD with Dirac canaries: examples with a one-entry gradient, trained by the run's trainer.

Sampling, clipping, noise, their random streams and the release are production code. Only the student is specific to the
audit: a table of numbers, of which each canary's text selects one, and a linear objective. A canary's gradient is one
entry of known sign, with a norm far above the clipping norm for any weights: the worst case.
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
"""Required settings of the audited trainer: a release is then the sum of its noised steps."""

TABLE = "numbers.weight"
_STRENGTH = 8.0
"""Norm of a canary's gradient relative to the clipping norm."""
_OF_GROUP = 2
"""Number of examples of a canary group."""
_RESOLUTION = 1 << 20
"""Assumed number of examples of the learner: sampling rates are multiples of its inverse."""


class CanaryStudent(TextModel):
    """A table of ``numbers``; a text is a row number, from 1 on, and the row's value is the only logit."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.tables = {TABLE: ("row",)}
        self.numbers = nn.Embedding(numbers + 1, 1, padding_idx=0)
        with torch.no_grad():
            self.numbers.weight.zero_()

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Return ``row``: int32 ``[texts, 1]``."""
        return {"row": torch.tensor([[int(text)] for text in texts], dtype=torch.int32).view(-1, 1)}

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Return logits ``[batch, 1]``."""
        return Outputs(self.numbers(batch["row"]).sum(dim=1))


def directed(strength: float) -> Objective:
    """Return the loss with gradient ``strength`` for label 0 and -``strength`` for label 1 with respect to the logit: a
    step increases the number of an example with label 1."""

    def losses(outputs: Outputs, references: References) -> Tensor:
        return strength * (1.0 - 2.0 * references["labels"].to(outputs.logits.dtype)) * outputs.logits[:, 0]

    return losses


@dataclass(frozen=True)
class TrainerAudit:
    """Inputs of an audit of DP-SGD.

    trainer: built with ``CANARY_TRAINING``. spend: noise multiplier, sampling rate and steps of one release. releases:
    number of releases. names: the learner's randomness for a release, from 0 on, as in production. outsider: ``names``
    as guessed by an attacker with the run's seed and without its secrets; None for no such attack. max_grad_norm:
    clipping norm. unit: name of the privacy unit. grouped: whether members are groups: a canary then has two equal
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
        """Train on a random half of the canaries and return lower bounds on epsilon at ``delta``.

        :param seed: seed of the inclusion
        :raises TrainingError: training failed
        :raises DataError: there are too few canaries
        """
        secret = Canaries.drawn(canaries, self.releases, seed)
        student = CanaryStudent(canaries + references + 1)
        rows = np.flatnonzero(secret.included).repeat(self._examples) + 1
        up = [direction[rows - 1] > 0 for direction in secret.directions]
        seen = self._released(student, rows, up, self.names)[:, : canaries + references]
        foreseen = None
        if self.outsider is not None:  # predicting noise requires no canary: use one example in an unused row
            last, label = np.array([canaries + references + 1]), [np.array([True])] * self.releases
            foreseen = self._released(student, last, label, self.outsider)[:, : canaries + references]
        scores = secret.scores(seen, foreseen, self.spend)
        return secret.bounds(self.unit, scores, [self.spend] * self.releases, delta, confidence, accountant)

    @property
    def _examples(self) -> int:
        """Number of examples per canary."""
        return _OF_GROUP if self.grouped else 1

    def _released(
        self, student: CanaryStudent, rows: IntArray, up: Sequence[BoolArray], names: Callable[[int], Randomness]
    ) -> FloatArray:
        """Return the change of each number by each release, ``[releases, numbers]``, per clipping norm and example."""
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
