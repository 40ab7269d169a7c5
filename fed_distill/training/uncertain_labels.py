"""Training with labels of which only probabilities are known."""

import torch
from torch import Tensor

from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, References

LABEL_PROBABILITIES = "label_probabilities"
"""Reference with the probabilities of each example's label, ``[examples, classes]``."""


def expected(objective: Objective) -> Objective:
    """Return the mean of ``objective`` over the label, by the reference ``label_probabilities``.

    For a cross-entropy this is the cross-entropy with these probabilities; the rest of a loss does not change, and what
    a method looks up by the label is looked up for each.
    """

    def mean(outputs: Outputs, references: References) -> Tensor:
        probabilities, labels = references[LABEL_PROBABILITIES], references["labels"]
        each = [
            objective(outputs, {**references, "labels": torch.full_like(labels, label)})
            for label in range(probabilities.shape[1])
        ]
        return (probabilities * torch.stack(each, dim=1)).sum(dim=1)

    return mean
