"""Randomized response on labels, with and without a prior.

Ghazi, Golowich, Kumar, Manurangsi and Zhang, "Deep learning with label differential privacy", NeurIPS 2021: algorithm 1
(RRTop-k) and algorithm 2 (RRWithPrior); Warner 1965 for the case of a uniform prior, k-ary randomized response. A
released label is epsilon-DP under a change of that label, with delta = 0, for any prior that does not depend on it.

Probabilities are integer multiples of 2^-53, the resolution of ``Keystream``, and rounded such that the bound e^epsilon
holds for them exactly and not only before rounding (Mironov 2012).
"""

import math

import torch
from torch import Tensor

from fed_distill.seeds import Keystream

RESOLUTION = 2**53
"""Sum of the integer weights of a distribution."""
_MARGIN = 4
"""Added to the weight of a wrong label, more than the error of its computation in float64."""
_MOST_CLASSES = 2**20


def candidates(prior: Tensor, epsilon: float) -> Tensor:
    """Return the labels that RRWithPrior chooses among, bool ``[examples, classes]``.

    These are the k labels of largest prior, with the smallest k that maximizes the probability that the output is the
    true label, ``w_k = e^epsilon / (e^epsilon + k - 1) * (sum of the k largest priors)`` (algorithm 2, lines 1 to 4;
    theorem 3). Of equal priors the first ones are chosen.

    :param prior: probabilities ``[examples, classes]``, float64
    :param epsilon: epsilon of a label
    :raises ValueError: the prior is not a distribution over at least two classes, or epsilon is not positive and finite
    """
    _check(prior, epsilon)
    ordered, places = torch.sort(prior, dim=1, descending=True, stable=True)
    others = torch.arange(prior.shape[1], dtype=torch.float64)
    utility = ordered.cumsum(dim=1) / (1.0 + others * math.exp(-epsilon))
    chosen = utility.argmax(dim=1, keepdim=True)
    return torch.zeros_like(prior, dtype=torch.bool).scatter_(1, places, others.long() <= chosen)


def output_weights(labels: Tensor, among: Tensor, epsilon: float) -> Tensor:
    """Return the distribution of the output of RRTop-k, int64 ``[examples, classes]``, in units of 2^-53.

    A true label among the k candidates is kept with probability ``e^epsilon / (e^epsilon + k - 1)``, and each other
    candidate is drawn with probability ``1 / (e^epsilon + k - 1)``. For any other true label, all candidates are
    equally likely (algorithm 1). A weight of a wrong label is rounded up, which takes from the true label's: the ratio
    of both is at most e^epsilon.

    :param labels: true labels, int64 ``[examples]``
    :param among: candidates, bool ``[examples, classes]``
    :param epsilon: epsilon of a label
    """
    counts = among.sum(dim=1, keepdim=True)
    own = torch.nn.functional.one_hot(labels, among.shape[1]).bool()
    wrong = (RESOLUTION / (math.exp(min(epsilon, 700.0)) + counts.double() - 1.0)).floor().long() + _MARGIN
    wrong = torch.minimum(wrong, RESOLUTION // counts)
    kept = torch.where(own, RESOLUTION - (counts - 1) * wrong, wrong)
    rest = RESOLUTION % counts
    even = RESOLUTION // counts + (among.cumsum(dim=1) <= rest).long()
    there = (own & among).any(dim=1, keepdim=True)
    return torch.where(among, torch.where(there, kept, even), 0)


def randomized(labels: Tensor, among: Tensor, epsilon: float, coins: Keystream) -> Tensor:
    """Return randomized labels, int64 ``[examples]``; parameters as for ``output_weights``.

    :param coins: source of one number for each example
    """
    drawn = coins.uniform(len(labels)).mul_(float(RESOLUTION)).long().unsqueeze(1)
    return (output_weights(labels, among, epsilon).cumsum(dim=1) <= drawn).sum(dim=1)


def posterior(released: Tensor, prior: Tensor, among: Tensor, epsilon: float) -> Tensor:
    """Return the probabilities of the true label given the released one, float32 ``[examples, classes]``.

    Bayes' rule with the known channel and the prior: post-processing of the release and of public values.

    :param released: randomized labels, int64 ``[examples]``
    :param prior: probabilities ``[examples, classes]``, float64
    :param among: candidates, bool ``[examples, classes]``
    :param epsilon: epsilon of a label
    """
    counts = among.sum(dim=1, keepdim=True).double()
    wrong = 1.0 / (math.exp(min(epsilon, 700.0)) + counts - 1.0)
    own = torch.nn.functional.one_hot(released, prior.shape[1]).bool()
    likelihood = torch.where(among, torch.where(own, 1.0 - (counts - 1.0) * wrong, wrong), 1.0 / counts)
    joint = prior * likelihood
    return (joint / joint.sum(dim=1, keepdim=True)).float()


def _check(prior: Tensor, epsilon: float) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise ValueError(f"epsilon must be positive and finite, not {epsilon}")
    if prior.dim() != 2 or not 2 <= prior.shape[1] <= _MOST_CLASSES or prior.dtype != torch.float64:
        raise ValueError(f"a prior must be float64 [examples, classes], not {prior.dtype} {list(prior.shape)}")
    sums = prior.sum(dim=1)
    if not bool(((prior >= 0.0).all(dim=1) & ((sums - 1.0).abs() < 1e-6)).all()):
        raise ValueError("a prior must be a distribution over the classes for each example")
