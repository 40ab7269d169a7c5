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


def decision_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision, the class of its largest probability; of equals the first."""
    return cross_entropy(logits, probabilities.argmax(dim=-1))


def softened_cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """T^2 * CE(p_T, q_T): as ``distillation_kl``, with the teacher's entropy left in. ``probabilities`` are at 1."""
    return temperature**2 * soft_cross_entropy(logits / temperature, soften(probabilities, temperature))


def hint_loss(guided: Tensor, hint: Tensor) -> Tensor:
    """1/2 ||hint - guided||^2, both ``[batch, width]`` (FitNets, Romero et al. 2015, eq. 3).

    ``guided`` is the student's state after the learned regressor. The paper trains the guided layer by it first and
    distils then; here it is added to the other losses throughout, of states that are means over a text's positions.
    """
    return 0.5 * (hint - guided).square().sum(dim=-1)


def hidden_loss(states: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of projected hidden states, both ``[batch, layers, width]``: a mean over the width
    (TinyBERT, Jiao et al. 2020, eq. 8), summed over the layers (eq. 6)."""
    return (states - targets).square().mean(dim=-1).sum(dim=-1)


def attention_loss(maps: Tensor, targets: Tensor) -> Tensor:
    """1/2 * sum over layers of the distance of two activation maps of length 1, both ``[batch, layers, positions]``
    (attention transfer, Zagoruyko and Komodakis 2017, eq. 2, with p = 2; its beta is the weight of this loss)."""
    apart = F.normalize(maps, dim=-1) - F.normalize(targets, dim=-1)
    distance: Tensor = torch.linalg.vector_norm(apart, dim=-1).sum(dim=-1)
    return 0.5 * distance


def relation_loss(similarities: Tensor, targets: Tensor) -> Tensor:
    """Squared difference of two examples' similarity to the student and to the teacher, both ``[batch]``.

    After Tung and Mori 2019, sec. 3.1, whose similarities are inner products with the others of a batch, each row of
    them scaled to length 1; here an example has one fixed partner, and the similarity is a cosine."""
    return (similarities - targets).square()


def margin_loss(margins: Tensor, targets: Tensor) -> Tensor:
    """Margin MSE: squared difference of two candidates' margin by the student and by the teacher, both ``[batch]``
    (Hofstätter et al. 2020, sec. 3). Which of the two is the better one does not matter."""
    return (margins - targets).square()


def listwise_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """KL divergence of two lists' top-one probabilities, the softmax of scores ``[batch, candidates]`` (ListNet, Cao et
    al. 2007, with the teacher's scores as the list to learn; less that list's entropy: it is 0 where both agree)."""
    return distillation_kl(scores, targets.softmax(dim=-1), 1.0)


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


def hard_and_soft_labels(temperature: float, hard_weight: float) -> Objective:
    """Objective: ``hard_weight`` * cross-entropy with ``labels`` + (1 - ``hard_weight``) * distillation from
    ``soft_labels`` (Hinton et al. 2015, sec. 2)."""
    hard, soft = hard_labels(), soft_labels(temperature)

    def objective(outputs: Outputs, references: References) -> Tensor:
        return hard_weight * hard(outputs, references) + (1.0 - hard_weight) * soft(outputs, references)

    return objective
