"""White-box audit of randomized labels: canaries whose label is a coin flip, randomized by the site's own code.

The attacker sees the labels that a merchant trains with in every round, which is more than it sends, and plays the
server: each round has another student, and so another prior. A canary has two possible labels, both likely by every
prior, so that its released label is as informative as epsilon allows. Drawing, storing and charging are production
code. Every second canary has several examples of equal texts and label, which are to be randomized once. A canary is
guessed by the label that its examples have most often over all rounds: labels that are randomized again in each round
or for each example, too little or predictably give more correct guesses than epsilon allows. For independent canaries
and delta = 0, Steinke's bound is a one-sided Clopper-Pearson bound on the probability of a correct guess, q <=
e^epsilon / (e^epsilon + 1).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fed_distill import seeds
from fed_distill.audit.f_dp import PureDP, best_curve_bound
from fed_distill.audit.membership import IntArray
from fed_distill.audit.one_run import best_bound
from fed_distill.audit.roc import FloatArray
from fed_distill.audit.white_box import WhiteBoxAudit
from fed_distill.config import Experiment
from fed_distill.data.examples import Examples
from fed_distill.data.tasks import RELEVANCE
from fed_distill.mechanisms.label import ByLabel
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.labels import RandomizedLabels
from fed_distill.merchant.limits import OPEN, Limits
from fed_distill.merchant.round_task import RoundTask
from fed_distill.methods import METHODS
from fed_distill.models.base import Outputs, TextModel
from fed_distill.text.encoded import Encoded
from fed_distill.training.plan import Plan
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import TrainRequest

CANARIES = 20_000
COPIES = 5
"""Number of examples of every second canary; odd, so that each has a most frequent label."""
_MERCHANT = "canaries"


class PriorStudent(TextModel):
    """A student with one weight, the logit of label 1 for every text."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1))

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Return ``row``: int32 ``[texts, 1]``."""
        return {"row": torch.ones(len(texts), 1, dtype=torch.int32)}

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Return logits ``[batch, 2]``."""
        own = self.logit.expand(len(batch["row"]))
        return Outputs(torch.stack([torch.zeros_like(own), own], dim=1))


@dataclass(frozen=True)
class LabelAudit:
    """Inputs of an audit. promised: epsilon of a label that the run's ledgers say."""

    experiment: Experiment
    mechanism: ByLabel
    promised: float

    def run(self, seed: int, confidence: float = 0.95, canaries: int = CANARIES) -> WhiteBoxAudit:
        """Return the bounds of ``canaries`` canaries over the rounds of the main federation.

        Labels are randomized in one stage: with two, each label is released by the same code, once.
        """
        truth = seeds.numpy_stream(seed, "label canaries", canaries).random(canaries) < 0.5
        releases = list(self._released(torch.from_numpy(truth.astype(np.int64))))
        copies = _copies(canaries)
        scores: FloatArray = np.zeros(canaries)
        for one in releases:
            np.add.at(scores, copies, 2.0 * one.double().numpy() - 1.0)
        positive = int((scores > 0.0).sum())
        choices = [(positive, canaries - positive)]
        steinke = best_bound(scores, truth, choices, 0.0, confidence)
        f_dp = best_curve_bound(scores, truth, choices, 0.0, confidence, PureDP())
        return WhiteBoxAudit(
            self.mechanism.name,
            self.promised,
            len(releases),
            steinke,
            f_dp,
        )

    def _released(self, labels: Tensor) -> Iterator[Tensor]:
        """Yield the labels of all examples (``_copies``) that a merchant trains with in each round.

        :param labels: labels of the canaries, int64 ``[canaries]``
        """
        copies = _copies(len(labels))
        student, count, labels = PriorStudent(), len(copies), labels[torch.from_numpy(copies)]
        texts = tuple(f"canary {number}" for number in copies)
        examples = Examples(texts, None, labels.numpy(), np.arange(count), (_MERCHANT,) * count)
        federation = self.experiment.federation
        method = METHODS.build(federation.method, federation.options)
        one_stage = replace(self.mechanism, settings=self.mechanism.settings.model_copy(update={"stages": 1}))
        request = TrainRequest(
            federation.title, self.experiment.seed, (_MERCHANT,), ("",), {}, (federation.rounds,), 1, federation="audit"
        )
        gains = (0.0, 1.0) if self.experiment.data.task == RELEVANCE.name else None
        with self._protection() as protection:
            site = RandomizedLabels(protection, one_stage, gains)
            for round in range(1, federation.rounds + 1):
                weights = {"logit": torch.tensor([1e-3 * round / federation.rounds])}
                learner = Learner(_MERCHANT, student, weights, student.encode(texts, None), labels, {}, (0,))
                task = RoundTask(request, Downlink(round), method, Plan())
                randomized, _ = site.learner(learner, examples, task)
                yield randomized.labels

    @contextmanager
    def _protection(self) -> Iterator[Protection[Limits]]:
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            privacy = self.experiment.privacy.model_copy(update={"ledger": None})
            experiment = self.experiment.model_copy(update={"privacy": privacy})
            yield Protection(experiment, Path(folder), OPEN)


def _copies(canaries: int) -> IntArray:
    """Return the canary of each example: one of each canary with an even number, then the others ``COPIES`` times."""
    numbers = np.arange(canaries)
    return np.concatenate([numbers[::2], np.tile(numbers[1::2], COPIES)])
