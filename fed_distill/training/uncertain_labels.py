"""Training with labels of which only probabilities are known."""

from dataclasses import replace

import torch
from torch import Tensor

from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, References

LABEL_PROBABILITIES = "label_probabilities"
"""Reference with the probabilities of each example's label, ``[examples, classes]``."""


def expected(objective: Objective, temperature: float = 1.0) -> Objective:
    """Return the mean of ``objective`` over the label, by the reference ``label_probabilities``.

    For a cross-entropy this is the cross-entropy with these probabilities q; the rest of a loss does not change, and
    what a method looks up by the label is looked up for each.

    At another temperature T than 1, which is for a cross-entropy alone, the objective gets logits divided by T and is
    multiplied by T, so that the gradient by a logit is ``p_T - q``, with predictions p_T at that temperature. At 1, an
    example of which the student is sure has a gradient near 0 if q is a posterior of a randomized label, whether the
    student is right or not. At a high T, q is a nearly uniform prior that the randomized label moves, and every
    example counts.
    """

    def mean(outputs: Outputs, references: References) -> Tensor:
        probabilities, labels = references[LABEL_PROBABILITIES], references["labels"]
        outputs = replace(outputs, logits=outputs.logits / temperature)
        each = [
            objective(outputs, {**references, "labels": torch.full_like(labels, label)})
            for label in range(probabilities.shape[1])
        ]
        return temperature * (probabilities * torch.stack(each, dim=1)).sum(dim=1)

    return mean
