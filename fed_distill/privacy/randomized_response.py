"""Randomized response on labels, with a public prior.

Ghazi, Golowich, Kumar, Manurangsi and Zhang, "Deep learning with label differential privacy", NeurIPS 2021: algorithm 1
(RRTop-k) and algorithm 2 (RRWithPrior); Ghazi, Kamath, Kumar, Leeman, Manurangsi, Varadarajan and Zhang, "Regression
with label differential privacy", ICLR 2023: algorithm 1 (RRonBins) for labels with a gain; Warner 1965 for the case of
a uniform prior, k-ary randomized response. A released label is epsilon-DP under a change of that label, with delta = 0,
for any prior that does not depend on it.

Both are described by the *outputs* of an example, int64 ``[classes]``: the class that is released for each class, and
-1 for a class for which all outputs are equally likely. Of k outputs, that of the true label is kept with probability
``e^epsilon / (e^epsilon + k - 1)``, and each other one is drawn with probability ``1 / (e^epsilon + k - 1)``.

Probabilities are integer multiples of 2^-53, the resolution of ``Keystream``, and rounded such that the bound e^epsilon
holds for them exactly and not only before rounding (Mironov 2012).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_distill.seeds import Keystream

RESOLUTION = 2**53
"""Sum of the integer weights of a distribution."""
_MARGIN = 4
"""Added to the weight of a wrong output, more than the error of its computation in float64."""
_LEAST_EPSILON = 1e-3
"""With a smaller one, and very many classes, rounding could exceed e^epsilon."""
_MOST_CLASSES = 2**20
_MOST_BINNED = 64
"""Classes with gains: the search for bins is of cubic size in them."""


def candidates(prior: Tensor, epsilon: float) -> Tensor:
    """Return the outputs of RRWithPrior, int64 ``[examples, classes]``: each candidate stands for itself.

    Candidates are the k labels of largest prior, with the smallest k that maximizes the probability that the output is
    the true label, ``w_k = e^epsilon / (e^epsilon + k - 1) * (sum of the k largest priors)`` (algorithm 2, lines 1 to
    4; theorem 3). Of equal priors the first ones are chosen.

    :param prior: probabilities ``[examples, classes]``, float64
    :param epsilon: epsilon of a label
    :raises ValueError: the prior is not a distribution over at least two classes, or epsilon is not positive and finite
    """
    _check(prior, epsilon)
    ordered, places = torch.sort(prior, dim=1, descending=True, stable=True)
    others = torch.arange(prior.shape[1], dtype=torch.float64)
    utility = ordered.cumsum(dim=1) / (1.0 + others * math.exp(-epsilon))
    chosen = utility.argmax(dim=1, keepdim=True)
    return torch.zeros_like(places).scatter_(1, places, torch.where(others.long() <= chosen, places, -1))


def bins(prior: Tensor, gains: Tensor, epsilon: float) -> Tensor:
    """Return the outputs of RRonBins, int64 ``[examples, classes]``: each class is released as the most likely one of
    its bin.

    Bins are runs of classes in the order of their gains: those that minimize the mean squared error of the gain's best
    estimate from the output (ICLR 2023, theorem 1 and section 3.2). That estimate is the posterior mean, so that what
    is maximized is the sum over outputs o of ``P(o) * E[gain | o]^2``, by dynamic programming over the bins. There are
    always two bins or more: even of a sure prior something is asked.

    :param prior: probabilities ``[examples, classes]``, float64
    :param gains: gain of each class ``[classes]``
    :param epsilon: epsilon of a label
    :raises ValueError: see ``candidates``; or a gain is not finite or above 1e6, or there are more than 64 classes
    """
    _check(prior, epsilon)
    if not bool((gains.abs() <= 1e6).all()) or len(gains) > _MOST_BINNED:
        raise ValueError(f"gains must be at most {_MOST_BINNED} finite numbers up to 1e6, not {gains.tolist()[:9]}")
    order = torch.argsort(gains, descending=True, stable=True)
    shares, classes = prior[:, order], prior.shape[1]
    mass = F.pad(shares.cumsum(dim=1), (1, 0))
    worth = F.pad((shares * gains[order].double()).cumsum(dim=1), (1, 0))
    empty = torch.ones(classes + 1, classes + 1, dtype=torch.bool).tril()
    most = torch.full((len(prior),), -math.inf, dtype=torch.float64)
    bin_of = torch.zeros_like(shares, dtype=torch.int64)
    for count in range(2, classes + 1):
        wrong = math.exp(-epsilon) / (1.0 + (count - 1) * math.exp(-epsilon))
        more = -math.expm1(-epsilon) / (1.0 + (count - 1) * math.exp(-epsilon))
        given = wrong * worth[:, -1:, None] + more * (worth[:, None, :] - worth[:, :, None])
        chance = wrong + more * (mass[:, None, :] - mass[:, :, None])
        explained = given**2 / chance.clamp(min=1e-300)  # by a bin [start, end)
        explained = explained.masked_fill(empty, -math.inf)
        total, starts = explained[:, 0], []
        for _ in range(count - 1):
            total, start = (total[:, :, None] + explained).max(dim=1)
            starts.append(start)
        better = total[:, -1] > most
        most = torch.where(better, total[:, -1], most)
        found, end = torch.zeros_like(bin_of), torch.full((len(prior), 1), classes)
        for start in reversed(starts):
            end = start.gather(1, end)
            found += torch.arange(classes) >= end
        bin_of = torch.where(better[:, None], found, bin_of)
    same = bin_of[:, :, None] == bin_of[:, None, :]
    likeliest = torch.where(same, shares[:, None, :], -1.0).argmax(dim=2)
    return torch.zeros_like(bin_of).scatter_(1, order.expand_as(bin_of), order[likeliest])


def output_weights(labels: Tensor, outputs: Tensor, epsilon: float) -> Tensor:
    """Return the distribution of the output, int64 ``[examples, classes]``, in units of 2^-53.

    A weight of a wrong output is rounded up, which takes from the right one's: the ratio of both is at most e^epsilon.

    :param labels: true labels, int64 ``[examples]``
    :param outputs: outputs ``[examples, classes]``
    :param epsilon: epsilon of a label
    """
    possible = _possible(outputs)
    counts = possible.sum(dim=1, keepdim=True)
    right = outputs.gather(1, labels.unsqueeze(1))
    wrong = (RESOLUTION / (math.exp(min(epsilon, 700.0)) + counts.double() - 1.0)).floor().long() + _MARGIN
    wrong = torch.minimum(wrong, RESOLUTION // counts)
    own = torch.arange(outputs.shape[1]) == right
    kept = torch.where(own, RESOLUTION - (counts - 1) * wrong, wrong)
    rest = RESOLUTION % counts
    even = RESOLUTION // counts + (possible.cumsum(dim=1) <= rest).long()
    return torch.where(possible, torch.where(right >= 0, kept, even), 0)


def randomized(labels: Tensor, outputs: Tensor, epsilon: float, coins: Keystream) -> Tensor:
    """Return randomized labels, int64 ``[examples]``; parameters as for ``output_weights``.

    :param coins: source of one number for each example
    """
    drawn = coins.uniform(len(labels)).mul_(float(RESOLUTION)).long().unsqueeze(1)
    return (output_weights(labels, outputs, epsilon).cumsum(dim=1) <= drawn).sum(dim=1)


def posterior(released: Tensor, prior: Tensor, outputs: Tensor, epsilon: float) -> Tensor:
    """Return the probabilities of the true label given the released one, float32 ``[examples, classes]``.

    Bayes' rule with the known channel and any prior: post-processing of the release and of public values.

    :param released: randomized labels, int64 ``[examples]``
    :param prior: probabilities ``[examples, classes]``, float64
    :param outputs: outputs ``[examples, classes]``
    :param epsilon: epsilon of a label
    """
    counts = _possible(outputs).sum(dim=1, keepdim=True).double()
    wrong = 1.0 / (math.exp(min(epsilon, 700.0)) + counts - 1.0)
    likelihood = torch.where(outputs == released.unsqueeze(1), 1.0 - (counts - 1.0) * wrong, wrong)
    joint = prior * torch.where(outputs >= 0, likelihood, 1.0 / counts)
    return (joint / joint.sum(dim=1, keepdim=True)).float()


def _possible(outputs: Tensor) -> Tensor:
    """Return which classes are released for some label, bool ``[examples, classes]``."""
    rows, classes = outputs.shape
    return torch.zeros(rows, classes + 1, dtype=torch.bool).scatter_(1, outputs + 1, True)[:, 1:]


def _check(prior: Tensor, epsilon: float) -> None:
    if not _LEAST_EPSILON <= epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and at least {_LEAST_EPSILON:g}, not {epsilon}")
    if prior.dim() != 2 or not 2 <= prior.shape[1] <= _MOST_CLASSES or prior.dtype != torch.float64:
        raise ValueError(f"a prior must be float64 [examples, classes], not {prior.dtype} {list(prior.shape)}")
    sums = prior.sum(dim=1)
    if not bool(((prior >= 0.0).all(dim=1) & ((sums - 1.0).abs() < 1e-6)).all()):
        raise ValueError("a prior must be a distribution over the classes for each example")
