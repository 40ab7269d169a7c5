"""Statistics of a merchant's private examples that a method may send after training, where privacy covers them."""

from dataclasses import dataclass

from torch import Tensor

from fed_distill.data.examples import Task
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.base import Mechanism
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.drawn_labels import Drawn
from fed_distill.merchant.holdings import Holdings
from fed_distill.merchant.limits import Limits
from fed_distill.models import predict
from fed_distill.models.prediction import represent
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.privacy.text_sum import closeness, text_sum
from fed_distill.training.trainer import Learner
from fed_distill.transport.requests import TrainRequest


@dataclass(frozen=True)
class PrivateStatistics:
    """Each function raises ConfigError if the arm's mechanism does not cover the payload that its result is for.

    learner: the merchant, whose student has its trained weights. members: the merchant's number
    of members of the privacy unit, noised if it is private. drawn: its randomized labels, if privacy has them.
    """

    protection: Protection[Limits]
    holdings: Holdings
    learner: Learner
    request: TrainRequest
    task: Task
    members: int
    drawn: Drawn | None = None

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism of the request's arm."""
        return self.protection.mechanism(self.request.arm)

    def class_means(self) -> ClassMeans:
        """Return the mean predictions of the trained student by class."""
        self.mechanism.check_covered(self.request.arm, (ClassMeans,))
        return ClassMeans.over(predict(self.learner.student, self.learner.private), self.learner.labels)

    def prototypes(self) -> Prototypes:
        """Return the mean representations of the trained student by class."""
        self.mechanism.check_covered(self.request.arm, (Prototypes,))
        represented = represent(self.learner.student, self.learner.private)
        return Prototypes.over(represented, self.learner.labels, len(self.task.classes))

    def expertise(self) -> Tensor:
        """Return how close each proxy example is to the private ones, in [0, 1], float32 ``[proxy]``.

        The largest cosine with one of them; with noise added by merchants, a function of public texts and of a noised
        sum of the features of labelled examples (``privacy.text_sum``), which is charged before it is used. Raises
        BudgetExceeded if it cannot be.
        """
        mechanism, learner = self.mechanism, self.learner
        mechanism.check_covered(self.request.arm, (ExpertSoftLabels,))
        if not isinstance(mechanism, AtMerchants):
            return self.holdings.expertise(learner.name, self.request)
        total = text_sum(self.holdings.bags_of(learner.name), learner.groups)
        noised = self.protection.noised_texts(learner.name, self.request, total, self.members)
        noise = mechanism.expertise_spend().noise_multiplier
        return closeness(noised, self.members, noise, self.holdings.bags_of_proxy(self.request))

    def density_ratio(self) -> Tensor:
        """Return the density of private examples relative to the proxy set, at each proxy example, ``[proxy]``."""
        self.mechanism.check_covered(self.request.arm, (DensitySelectedSoftLabels,))
        return self.holdings.density_ratio(self.learner.name, self.request)

    def released_labels(self) -> ReleasedLabels:
        """Return the merchant's randomized labels, which were charged before it trained, with their texts.

        :raises NotAllowed: the site's rules do not allow the task's texts to be sent
        """
        self.protection.limits.rules.check_texts(self.task)
        self.mechanism.check_covered(self.request.arm, (ReleasedLabels,))
        if self.drawn is None:
            raise ConfigError(f"federation {self.request.arm} has a privacy unit that does not randomize labels")
        return self.drawn.released()
