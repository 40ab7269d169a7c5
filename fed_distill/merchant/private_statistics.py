"""Statistics of a merchant's private examples that a method may send after training, where privacy covers them."""

from dataclasses import dataclass

from torch import Tensor

from fed_distill.mechanisms.base import Mechanism
from fed_distill.merchant.holdings import Holdings
from fed_distill.models import predict
from fed_distill.models.prediction import represent
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.training.trainer import Learner
from fed_distill.transport.requests import TrainRequest


@dataclass(frozen=True)
class PrivateStatistics:
    """Each function raises ConfigError if the arm's mechanism does not cover the payload that its result is for.

    learner: the merchant, whose student has its trained weights. classes: their number.
    """

    mechanism: Mechanism
    holdings: Holdings
    learner: Learner
    request: TrainRequest
    classes: int

    def class_means(self) -> ClassMeans:
        """Return the mean predictions of the trained student by class."""
        self.mechanism.check_covered(self.request.arm, (ClassMeans,))
        return ClassMeans.over(predict(self.learner.student, self.learner.private), self.learner.labels)

    def prototypes(self) -> Prototypes:
        """Return the mean representations of the trained student by class."""
        self.mechanism.check_covered(self.request.arm, (Prototypes,))
        represented = represent(self.learner.student, self.learner.private)
        return Prototypes.over(represented, self.learner.labels, self.classes)

    def expertise(self) -> Tensor:
        """Return the largest cosine of each proxy example with a private example, float32 ``[proxy]``."""
        self.mechanism.check_covered(self.request.arm, (ExpertSoftLabels,))
        return self.holdings.expertise(self.learner.name, self.request)

    def density_ratio(self) -> Tensor:
        """Return the density of private examples relative to the proxy set, at each proxy example, ``[proxy]``."""
        self.mechanism.check_covered(self.request.arm, (DensitySelectedSoftLabels,))
        return self.holdings.density_ratio(self.learner.name, self.request)
