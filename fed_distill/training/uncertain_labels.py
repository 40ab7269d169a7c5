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

    At another temperature T than 1 the objective gets logits divided by T, and is multiplied by T. The gradient of a
    cross-entropy by a logit is then ``p_T - q``, of predictions p_T at that temperature. At 1, an example of which the
    student is sure has a gradient near 0 if q is a posterior of a randomized label, whether the student is right or
    not; at a high T, q is a prior near 1/2 that the randomized label moves, and the gradient of every example counts.
    """

    def mean(outputs: Outputs, references: References) -> Tensor:
        probabilities, labels = references[LABEL_PROBABILITIES], references["labels"]
        outputs = _divided(outputs, temperature)
        each = [
            objective(outputs, {**references, "labels": torch.full_like(labels, label)})
            for label in range(probabilities.shape[1])
        ]
        return temperature * (probabilities * torch.stack(each, dim=1)).sum(dim=1)

    return mean


def _divided(outputs: Outputs, temperature: float) -> Outputs:
    """Return the outputs with logits divided by the temperature, those of both students of a pair."""
    shared = None if outputs.shared is None else _divided(outputs.shared, temperature)
    return replace(outputs, logits=outputs.logits / temperature, shared=shared)
