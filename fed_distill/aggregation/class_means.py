"""Mean soft labels of each class, averaged over merchants.

Jeong et al., "Communication-efficient on-device machine learning: federated distillation and augmentation under
non-IID private data", 2018, algorithm 1: a device sends the means of its outputs by label, and the server
averages them with equal weights over the devices that have the class.
"""

import torch

from fed_distill.errors import UplinkRejected
from fed_distill.payloads.class_means import ClassMeans


class RunningClassMeans:
    """Running mean of class means, by class over those in which it is present."""

    def __init__(self, classes: int) -> None:
        self._sum = torch.zeros(classes, classes, dtype=torch.float64)
        self._counts = torch.zeros(classes, dtype=torch.int64)
        self._merchants = 0

    def add(self, means: ClassMeans) -> None:
        """Add the class means of one merchant."""
        self._sum += means.probabilities * means.present.unsqueeze(1)
        self._counts += means.present
        self._merchants += 1

    def mean(self, before: ClassMeans | None = None) -> ClassMeans:
        """Return the means so far, float64; ``before`` for a class that no merchant has.

        :raises UplinkRejected: no class means were added
        """
        if not self._merchants:
            raise UplinkRejected("no merchant sent class means that could be merged")
        present = self._counts > 0
        means = self._sum / self._counts.clamp_min(1).unsqueeze(1)
        if before is None:
            return ClassMeans(means, present)
        return ClassMeans(torch.where(present.unsqueeze(1), means, before.probabilities), present | before.present)
