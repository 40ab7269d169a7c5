"""Losses per example, as pure functions that any trainer can run.

Each takes logits ``[batch, classes]`` and returns one loss for each example, ``[batch]``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, References


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with class indices ``labels`` ``[batch]``."""
    losses: Tensor = F.cross_entropy(logits, labels, reduction="none")
    return losses


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy with class probabilities ``[batch, classes]``: -sum p log q."""
    return -(probabilities * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def distillation_kl(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(p || q_T), q_T the student's softened distribution (Hinton et al. 2015, sec. 2).

    ``probabilities`` are the teacher's, already softened at the same ``temperature``. The factor T^2 keeps
    the gradient's size independent of the temperature.
    """
    log_q: Tensor = F.log_softmax(logits / temperature, dim=-1)
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return temperature**2 * (-(probabilities * log_q).sum(dim=-1) - entropy)


def soften(probabilities: Tensor, temperature: float) -> Tensor:
    """Soften class probabilities: the softmax at ``temperature`` of the logits that gave them at 1."""
    powered = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log() / temperature
    return torch.softmax(powered, dim=-1)


def hard_labels() -> Objective:
    """Objective: cross-entropy with the reference ``labels``."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        return cross_entropy(outputs.logits, references["labels"])

    return objective


def soft_labels(temperature: float) -> Objective:
    """Objective: distillation from the reference ``soft_labels`` (probabilities at temperature 1)."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        return distillation_kl(outputs.logits, soften(references["soft_labels"], temperature), temperature)

    return objective
