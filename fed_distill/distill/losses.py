"""Loss functions per example, for any trainer.

Each takes logits ``[batch, classes]`` and returns one loss per example, ``[batch]``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, References

_SMALLEST_VARIANCE = 1e-14
"""Added to the variance of logits, so that constant ones have finite z-scores and gradients."""


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
    return temperature**2 * _divergence(probabilities, F.log_softmax(logits / temperature, dim=-1))


def soften(probabilities: Tensor, temperature: float) -> Tensor:
    """Soften probabilities: return the softmax at ``temperature`` of logits that give them at temperature 1."""
    return torch.softmax(log_probabilities(probabilities) / temperature, dim=-1)


def standardized(logits: Tensor) -> Tensor:
    """Return the z-scores of logits ``[batch, classes]`` over the classes (logit standardization, Sun et al., CVPR
    2024, algorithm 1): the student has to match the teacher's relations between classes, not the scale of its logits.

    Constant logits have z-scores 0. Two logits always have z-scores of 1 and -1 (or 0 and 0).
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + _SMALLEST_VARIANCE).sqrt()


def standardized_probabilities(probabilities: Tensor) -> Tensor:
    """Return the softmax of the ``standardized`` logits that give ``probabilities`` ``[batch, classes]``."""
    return torch.softmax(standardized(log_probabilities(probabilities)), dim=-1)


def log_probabilities(probabilities: Tensor, floor: float = torch.finfo(torch.float32).tiny) -> Tensor:
    """Return the logarithm of ``probabilities``, with smaller ones raised to ``floor``."""
    return probabilities.clamp_min(floor).log()


def decoupled_kl(logits: Tensor, probabilities: Tensor, temperature: float, beta: float) -> Tensor:
    """Return T^2 * (TCKD + beta * NCKD), decoupled knowledge distillation (DKD, Zhao et al., CVPR 2022, eq. 7).

    TCKD is the divergence of the binary distributions (target class, all others), and NCKD that of the distributions
    among the other classes. In ``distillation_kl``, NCKD has the weight 1 - p_t (eq. 6), which is small where the
    teacher is sure. The paper's alpha is the weight of this loss (and beta times that weight is the paper's beta). Its
    target class is the true label, which proxy examples do not have: here it is the teacher's most likely class.

    :param logits: the student's logits ``[batch, classes]``, of at least three classes
    :param probabilities: the teacher's probabilities p, softened at the same temperature, ``[batch, classes]``
    :param temperature: temperature T
    :param beta: weight of NCKD
    """
    log_q: Tensor = F.log_softmax(logits / temperature, dim=-1)
    target = probabilities.argmax(dim=-1, keepdim=True)
    others = torch.arange(logits.shape[-1], device=logits.device) != target
    binary_log_q = torch.cat([log_q.gather(-1, target), _log_sum(log_q, others)], dim=-1)
    other_p = torch.where(others, probabilities, 0.0)
    other_sum = other_p.sum(dim=-1, keepdim=True)
    binary_p = torch.cat([probabilities.gather(-1, target), other_sum], dim=-1)
    other_p = other_p / other_sum.clamp_min(torch.finfo(other_p.dtype).tiny)
    other_log_q = torch.where(others, log_q - binary_log_q[..., 1:], 0.0)
    return temperature**2 * (_divergence(binary_p, binary_log_q) + beta * _divergence(other_p, other_log_q))


def correlation_loss(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """Return T^2 * (1 - Pearson correlation of p and q_T over the classes): the inter-class relation of DIST (Huang et
    al., NeurIPS 2022, eq. 8, with the factor T^2 of the authors' code).

    The paper's second term, the intra-class relation (eq. 9), correlates a class's probabilities over the examples of a
    batch. It is left out, as an example's loss must not depend on its batch (see ``training.plan.Objective``).

    :param logits: the student's logits ``[batch, classes]``, of at least three classes
    :param probabilities: the teacher's probabilities p, softened at the same temperature, ``[batch, classes]``
    :param temperature: temperature T of the student's distribution q_T
    """
    q = torch.softmax(logits / temperature, dim=-1)
    centred_q, centred_p = (values - values.mean(dim=-1, keepdim=True) for values in (q, probabilities))
    return temperature**2 * (1.0 - torch.cosine_similarity(centred_q, centred_p, dim=-1))


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


def graded_log_odds(logits: Tensor, gains: Sequence[float]) -> Tensor:
    """Return the raw ranking score of logits ``[..., classes]``: log(E / (1 - E)), with the expected gain E rescaled to
    [0, 1], shape ``[...]``.

    Margin MSE (Hofstätter et al. 2020) compares raw scores of a ranker with one output, which are unbounded. A graded
    classifier has no such output. Its ranking is by E, and so is that by any increasing function of E; of these, the
    log-odds is the one that is the ranker's raw score, z_relevant - z_irrelevant, if there are two grades. The log-odds
    of one class would not do: it ignores how the other grades share the rest, and ranks differently from E.

    :param logits: logits, or logarithms of probabilities
    :param gains: gain of each class, of which at least two differ
    """
    values = torch.tensor(gains, dtype=logits.dtype, device=logits.device)
    share = (values - values.min()) / (values.max() - values.min())
    return torch.logsumexp(logits + share.log(), dim=-1) - torch.logsumexp(logits + (1.0 - share).log(), dim=-1)


def margin_loss(margins: Tensor, targets: Tensor) -> Tensor:
    """Return the squared difference of the margins of two candidates' raw scores, both ``[batch]`` (Margin MSE,
    Hofstätter et al. 2020, section 3). The order of the candidates is irrelevant."""
    return (margins - targets).square()


def listwise_loss(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL divergence of top-one probabilities, the softmax of raw scores over the temperature T, both
    ``[batch, candidates]`` (ListNet, Cao et al. 2007, with the teacher's scores as targets; the targets' entropy is
    subtracted, so that equal lists give 0)."""
    return distillation_kl(scores, (targets / temperature).softmax(dim=-1), temperature)


def contrastive_loss(scores: Tensor, relevance: Tensor) -> Tensor:
    """Return -r * log softmax(scores)_0, the multiple negatives ranking loss (Henderson et al. 2017, section 4.4, with
    a weight).

    The paper's negatives are the other responses of a batch; here each example has its own, drawn in advance, as its
    loss must not depend on its batch. The proxy set does not say which pairs are positive: each counts as far as the
    teacher finds it relevant.

    :param scores: raw scores of the example's pair, first, and of its first text with sampled other second texts,
        ``[batch, 1 + negatives]``
    :param relevance: the teacher's expected gain r of the example's pair, from 0 to 1, ``[batch]``
    """
    return -relevance * F.log_softmax(scores, dim=-1)[..., 0]


def embedding_loss(vectors: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance of unit vectors, 2 - 2 * cosine, as a mean over the texts of an example; both
    ``[batch, texts, width]`` (Reimers and Gurevych 2020, eq. 1, for normalized embeddings).

    :param vectors: the student's vectors of single texts after the learned projection
    :param targets: the teacher's sentence embeddings
    """
    apart = F.normalize(vectors, dim=-1) - F.normalize(targets, dim=-1)
    return apart.square().sum(dim=-1).mean(dim=-1)


def hard_labels() -> Objective:
    """Return the objective: cross-entropy with the reference ``labels``; the same function each time."""
    return _hard_labels


def _hard_labels(outputs: Outputs, references: References) -> Tensor:
    return cross_entropy(outputs.logits, references["labels"])


def soft_labels(temperature: float) -> Objective:
    """Return the objective: distillation from the reference ``soft_labels`` (probabilities at temperature 1)."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        return distillation_kl(outputs.logits, soften(references["soft_labels"], temperature), temperature)

    return objective


def hard_and_soft_labels(temperature: float, hard_weight: float, standardize: bool = False) -> Objective:
    """Return the objective: ``hard_weight`` * cross-entropy with ``labels`` + (1 - ``hard_weight``) * distillation from
    ``soft_labels`` (Hinton et al. 2015, section 2), of ``standardized`` logits if ``standardize``."""
    hard = hard_labels()

    def objective(outputs: Outputs, references: References) -> Tensor:
        logits, probabilities = outputs.logits, references["soft_labels"]
        if standardize:
            logits, probabilities = standardized(logits), standardized_probabilities(probabilities)
        soft = distillation_kl(logits, soften(probabilities, temperature), temperature)
        return hard_weight * hard(outputs, references) + (1.0 - hard_weight) * soft

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


def _divergence(probabilities: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) ``[batch]`` for p and log q, both ``[batch, classes]``."""
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return -(probabilities * log_q).sum(dim=-1) - entropy


def _log_sum(log_q: Tensor, of: Tensor) -> Tensor:
    """Return the logarithm of the sum of the probabilities selected by ``of``, ``[batch, 1]``."""
    return torch.logsumexp(log_q.masked_fill(~of, -torch.inf), dim=-1, keepdim=True)
