"""Loss functions per example, for any trainer.

Each takes logits ``[batch, classes]`` and returns one loss per example, ``[batch]``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, References


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy with class indices ``labels`` ``[batch]``."""
    losses: Tensor = F.cross_entropy(logits, labels, reduction="none")
    return losses


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the cross-entropy with class probabilities ``[batch, classes]``: -sum p log q."""
    return -(probabilities * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def distillation_kl(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(p || q_T) with the student's softened distribution q_T (Hinton et al. 2015, section 2).

    The factor T^2 makes the size of the gradient independent of the temperature.

    :param logits: the student's logits ``[batch, classes]``
    :param probabilities: the teacher's probabilities p, softened at the same temperature, ``[batch, classes]``
    :param temperature: temperature T
    """
    log_q: Tensor = F.log_softmax(logits / temperature, dim=-1)
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return temperature**2 * (-(probabilities * log_q).sum(dim=-1) - entropy)


def soften(probabilities: Tensor, temperature: float) -> Tensor:
    """Soften probabilities: return the softmax at ``temperature`` of logits that give them at temperature 1."""
    powered = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log() / temperature
    return torch.softmax(powered, dim=-1)


def decision_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the cross-entropy with the teacher's decision, the class of highest probability (the first of ties)."""
    return cross_entropy(logits, probabilities.argmax(dim=-1))


def softened_cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """Return T^2 * CE(p_T, q_T): ``distillation_kl`` plus the teacher's entropy; ``probabilities`` at temperature 1."""
    return temperature**2 * soft_cross_entropy(logits / temperature, soften(probabilities, temperature))


def hint_loss(guided: Tensor, hint: Tensor) -> Tensor:
    """Return 1/2 ||hint - guided||^2 (FitNets, Romero et al. 2015, eq. 3).

    The paper trains the guided layer first and distils afterwards; here this loss is added to the others throughout,
    and states are means over the positions of a text.

    :param guided: the student's state after the learned regressor, ``[batch, width]``
    :param hint: the teacher's state ``[batch, width]``
    """
    return 0.5 * (hint - guided).square().sum(dim=-1)


def hidden_loss(states: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of projected hidden states, both ``[batch, layers, width]``: a mean over the width
    (TinyBERT, Jiao et al. 2020, eq. 8), summed over the layers (eq. 6)."""
    return (states - targets).square().mean(dim=-1).sum(dim=-1)


def attention_loss(maps: Tensor, targets: Tensor) -> Tensor:
    """Return 1/2 * sum over layers of the distance of normalized activation maps, both ``[batch, layers, positions]``
    (attention transfer, Zagoruyko and Komodakis 2017, eq. 2, with p = 2; its beta is the weight of this loss)."""
    apart = F.normalize(maps, dim=-1) - F.normalize(targets, dim=-1)
    distance: Tensor = torch.linalg.vector_norm(apart, dim=-1).sum(dim=-1)
    return 0.5 * distance


def relation_loss(similarities: Tensor, targets: Tensor) -> Tensor:
    """Return the squared difference of two examples' similarity for student and teacher, both ``[batch]``.

    After Tung and Mori 2019, section 3.1, with row-normalized inner products over a batch; here an example has one
    fixed partner, and the similarity is a cosine."""
    return (similarities - targets).square()


def margin_loss(margins: Tensor, targets: Tensor) -> Tensor:
    """Return the squared difference of the score margins of two candidates, both ``[batch]`` (Margin MSE, Hofstätter et
    al. 2020, section 3). The order of the candidates is irrelevant."""
    return (margins - targets).square()


def listwise_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the KL divergence of top-one probabilities, the softmax of scores ``[batch, candidates]`` (ListNet, Cao et
    al. 2007, with the teacher's scores as targets; the targets' entropy is subtracted, so that equal lists give 0)."""
    return distillation_kl(scores, targets.softmax(dim=-1), 1.0)


def hard_labels() -> Objective:
    """Return the objective: cross-entropy with the reference ``labels``."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        return cross_entropy(outputs.logits, references["labels"])

    return objective


def soft_labels(temperature: float) -> Objective:
    """Return the objective: distillation from the reference ``soft_labels`` (probabilities at temperature 1)."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        return distillation_kl(outputs.logits, soften(references["soft_labels"], temperature), temperature)

    return objective


def hard_and_soft_labels(temperature: float, hard_weight: float) -> Objective:
    """Return the objective: ``hard_weight`` * cross-entropy with ``labels`` + (1 - ``hard_weight``) * distillation from
    ``soft_labels`` (Hinton et al. 2015, section 2)."""
    hard, soft = hard_labels(), soft_labels(temperature)

    def objective(outputs: Outputs, references: References) -> Tensor:
        return hard_weight * hard(outputs, references) + (1.0 - hard_weight) * soft(outputs, references)

    return objective


PSEUDO_LABELS = "pseudo_labels"
"""Reference of ``pseudo_labels``: probabilities ``[batch, classes]``."""


def pseudo_labels(confidence: float, soft: bool) -> Objective:
    """Return the objective on unlabeled examples: cross-entropy with what a student predicted for them, 0 where its
    largest probability is below ``confidence``.

    :param confidence: tau in FixMatch (Sohn et al., NeurIPS 2020, eq. 4), beta in UDA
    :param soft: train on the predicted probabilities (UDA, Xie et al., NeurIPS 2020, section 2.4, without sharpening)
        instead of the most probable class (FixMatch)
    """

    def objective(outputs: Outputs, references: References) -> Tensor:
        predicted = references[PSEUDO_LABELS]
        most, label = predicted.max(dim=-1)
        loss = soft_cross_entropy(outputs.logits, predicted) if soft else cross_entropy(outputs.logits, label)
        return torch.where(most >= confidence, loss, 0.0)

    return objective
