"""Randomized labels at a site: drawn once, charged before they are used, and the same in all rounds of a federation.

A prior is known in a merchant's first round only, so the draw is stored, beside the ledgers and not in a run's state,
which users may delete. It is stored before it is charged, and charged before it is used: a process that is killed in
between finds it and charges it. Without the file, an equal draw is computed again if the received student has the same
candidates; else it is another release with a charge of its own. So the file saves budget, and nothing depends on it.

Two federations of the same data whose priors have the same candidates use the same draw, charged once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fed_distill.data.examples import Examples
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import BudgetExceeded, TrainingError
from fed_distill.mechanisms.label import ByLabel, Draw
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.drawn_labels import Drawn
from fed_distill.merchant.limits import Limits
from fed_distill.merchant.round_task import RoundTask
from fed_distill.models import predict
from fed_distill.privacy.exposure import LabelSpend
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.storage.files import as_file_name
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.training.plan import Plan
from fed_distill.training.trainer import Learner
from fed_distill.transport.requests import TrainRequest

LABELS = "labels"
"""Folder of the draws beside the ledgers."""
_FORMAT = 2
"""Version of a draw's file. With another one, labels are drawn and charged again."""
_REMEDY = "delete it; if the labels cannot be drawn equally again, they are charged again"


@dataclass(frozen=True)
class RandomizedLabels:
    """The randomized labels of a site's merchants.

    gains: gain of each class, None for a task without.
    """

    protection: Protection[Limits]
    mechanism: ByLabel
    gains: tuple[float, ...] | None

    def learner(self, learner: Learner, examples: Examples, task: RoundTask) -> tuple[Learner, Drawn]:
        """Return ``learner`` with randomized labels in place of its own, and only with examples that have any yet; and
        the labels that were drawn.

        :param learner: with true labels
        :param examples: its training examples
        :param task: the round's task
        :raises BudgetExceeded: the merchant's limits or the target epsilon do not allow the release
        """
        epsilon = self.protection.experiment.promise.epsilon
        assert epsilon is not None
        temperature = self.mechanism.label_temperature(epsilon) if _labels_alone(task.plan) else 1.0
        rounds = self.protection.experiment.arms()[task.request.arm].rounds
        rows, labels, targets, drawn = [], [], [], []
        for part, own in self.mechanism.due(examples, task.down.round, rounds):
            first, of, true = self.mechanism.distinct(examples.take(own.numpy()), learner.labels[own])
            distinct, of_row = own[torch.from_numpy(first)], torch.from_numpy(of)
            predicted = self._predicted(learner, distinct, temperature)  # before labels are charged, as it can fail
            prior = self._predicted(learner, distinct, self.mechanism.settings.prior_temperature)
            draw = self._draw(learner.name, examples, distinct, true, prior, task.request, LabelSpend(epsilon, part))
            drawn.append((distinct, draw))
            rows.append(own)
            labels.append(draw.labels[of_row])
            targets.append(self.mechanism.targets(draw.labels, draw.outputs, predicted, epsilon)[of_row])
        order = torch.argsort(torch.cat(rows))
        place = torch.cat(rows)[order]
        randomized = replace(
            learner,
            private={name: values[place] for name, values in learner.private.items()},
            references={name: values[place] for name, values in learner.references.items()},
            labels=torch.cat(labels)[order],
            label_probabilities=torch.cat(targets)[order] if self.mechanism.trains_on_posterior else None,
            label_temperature=temperature,
        )
        return randomized, Drawn(examples, tuple(drawn))

    def _predicted(self, learner: Learner, rows: Tensor, temperature: float) -> Tensor:
        """Return the probabilities that the round's received student predicts for ``rows``, ``[rows, classes]``."""
        learner.student.load_state_dict(dict(learner.weights))
        texts = {name: values[rows] for name, values in learner.private.items()}
        predicted = predict(learner.student, texts, temperature=temperature)
        if not bool(predicted.isfinite().all()):
            raise TrainingError("the received student cannot be a prior of labels: it predicts NaN")
        return predicted

    def _draw(
        self,
        merchant: str,
        examples: Examples,
        rows: Tensor,
        labels: Tensor,
        prior: Tensor,
        request: TrainRequest,
        spend: LabelSpend,
    ) -> Draw:
        """Return the charged draw for ``rows``, of distinct texts, from the store or new.

        :param labels: true labels, int64 ``[rows]``
        :param prior: probabilities ``[rows, classes]``, if it is a new one
        """
        basis = self.mechanism.basis(examples.take(rows.numpy()), labels, spend.epsilon)
        path = self._path(request, merchant, spend, basis)
        draw = _read(path)
        if draw is None:
            own = self.protection.own_randomness(request.seed)
            draw = self.mechanism.randomize(labels, prior, spend, basis, own, merchant, self.gains)
            tensors = {"outputs": draw.outputs, "labels": draw.labels}
            write_checkpoint(path, tensors, {"digest": draw.digest}, private=True)
        try:
            self.protection.charge_labels(request, merchant, draw.digest, spend)
        except BudgetExceeded:
            path.unlink(missing_ok=True)  # many refused draws would together tell the labels to whoever reads them
            raise
        return draw

    def _path(self, request: TrainRequest, merchant: str, spend: LabelSpend, basis: str) -> Path:
        """Return the file of a draw: of one federation, for the same data and epsilon."""
        experiment = self.protection.experiment
        ledgers = self.protection.folder if experiment.privacy.ledger is None else experiment.privacy.ledger
        own = str(self.protection.own_randomness(request.seed))
        of = fingerprint(basis=basis, federation=request.federation, own=own, format=_FORMAT)
        folder = ledgers / LABELS / as_file_name(experiment.name) / f"seed-{request.seed}" / as_file_name(request.arm)
        return folder / as_file_name(merchant) / f"{spend.part}-{of}.safetensors"


def _labels_alone(plan: Plan) -> bool:
    """Whether private examples have the cross-entropy with their labels, and no other term of the method."""
    return all(phase.objective is hard_labels() for phase in plan.phases if phase.data == "private")


def _read(path: Path) -> Draw | None:
    found = read_checkpoint(path, _REMEDY)
    if found is None:
        return None
    tensors, values = found
    return Draw(str(values["digest"]), tensors["outputs"], tensors["labels"])
