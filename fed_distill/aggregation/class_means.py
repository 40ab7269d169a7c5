"""Mean soft labels of each class, averaged over merchants.

Jeong et al., "Communication-efficient on-device machine learning: federated distillation and augmentation under
non-IID private data", 2018, algorithm 1: what a device tells of its data are the means of its outputs by label, and
the server averages them, each device counting the same in every class that it has.
"""

import torch

from fed_distill.errors import UplinkRejected
from fed_distill.payloads.class_means import ClassMeans


class RunningClassMeans:
    """Mean of class means that are given one after another, over those in which a class is present."""

    def __init__(self, classes: int) -> None:
        self._sum = torch.zeros(classes, classes, dtype=torch.float64)
        self._counts = torch.zeros(classes, dtype=torch.int64)
        self._merchants = 0

    def add(self, means: ClassMeans) -> None:
        """Take in one merchant's."""
        self._sum += means.probabilities * means.present.unsqueeze(1)
        self._counts += means.present
        self._merchants += 1

    def mean(self, before: ClassMeans | None = None) -> ClassMeans:
        """The means so far, float64; of a class that nobody has, what it was ``before``.

        Raises UplinkRejected if there was nothing to average.
        """
        if not self._merchants:
            raise UplinkRejected("no merchant sent class means that could be merged")
        present = self._counts > 0
        means = self._sum / self._counts.clamp_min(1).unsqueeze(1)
        if before is None:
            return ClassMeans(means, present)
        return ClassMeans(torch.where(present.unsqueeze(1), means, before.probabilities), present | before.present)
