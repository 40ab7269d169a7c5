"""Means over a merchant's private examples of each class, computed by its trained student."""

from dataclasses import dataclass

from fed_distill.mechanisms.base import Mechanism
from fed_distill.models import predict
from fed_distill.models.prediction import represent
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.training.trainer import Learner


@dataclass(frozen=True)
class ByClass:
    """learner: the merchant, whose student has its trained weights. mechanism: that of the arm. classes: their number.

    Each function raises ConfigError in a private federation: no mechanism covers what is computed after training.
    """

    learner: Learner
    mechanism: Mechanism
    arm: str
    classes: int

    def predictions(self) -> ClassMeans:
        """Return the mean predictions."""
        self.mechanism.check_covered(self.arm, (ClassMeans,))
        return ClassMeans.over(predict(self.learner.student, self.learner.private), self.learner.labels)

    def representations(self) -> Prototypes:
        """Return the mean representations."""
        self.mechanism.check_covered(self.arm, (Prototypes,))
        represented = represent(self.learner.student, self.learner.private)
        return Prototypes.over(represented, self.learner.labels, self.classes)
