"""Ensembles of teachers: a weighted average of their probabilities, with weights per example.

Weights are equal, by confidence, or by similarity of the example to a teacher's training data.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.data.examples import Examples
from fed_distill.errors import DataError
from fed_distill.text.similarity import bags


def combined(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average the teachers' probabilities.

    :param probabilities: class probabilities ``[teachers, n, classes]``
    :param weights: weights ``[teachers, n]``, not necessarily normalized; None for equal weights
    :returns: ``[n, classes]``; rows sum to 1
    """
    if weights is None:
        return probabilities.mean(dim=0)
    shares = weights / weights.sum(dim=0, keepdim=True)
    return torch.einsum("tn,tnc->nc", shares, probabilities)


def confidence(probabilities: Tensor) -> Tensor:
    """Return weights ``[teachers, n]`` that are inversely proportional to the entropy (Kwon et al. 2020).

    :param probabilities: class probabilities ``[teachers, n, classes]``; the entropy is at least 1 % of its maximum
    """
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return 1.0 / entropy.clamp_min(0.01 * float(np.log(probabilities.shape[-1])))


def similarity(examples: Examples, trained_on: Sequence[Examples]) -> Tensor:
    """Return weights ``[teachers, n]``: cosine similarity of each example to the mean of a teacher's training examples.

    Features are hashed words and n-grams; an example without any similarity has equal weights.
    """
    own = bags(examples.texts, examples.pairs)
    centroids = [np.asarray(bags(one.texts, one.pairs).mean(axis=0)).ravel() for one in trained_on]
    cosines = [own @ (centroid / max(float(np.linalg.norm(centroid)), 1e-12)) for centroid in centroids]
    weights = torch.from_numpy(np.stack(cosines)).float()
    return torch.where(weights.sum(dim=0, keepdim=True) > 0, weights, 1.0)


def domains_of(public: Examples, valid: Examples, domains: int, seed: int) -> list[tuple[Examples, Examples]]:
    """Split the server's examples into ``domains`` by merchant: the largest first, each to the smallest domain so far.

    Ties between merchants of the same size are random. A domain without validation examples uses all of ``valid``.

    :raises DataError: there are fewer merchants than domains
    """
    if domains == 1:
        return [(public, valid)]
    names, sizes = np.unique(np.array([*public.merchants]), return_counts=True)
    if len(names) < domains:
        raise DataError(f"teacher.domains = {domains} exceeds the number of public merchants, {len(names)}: lower it")
    order = np.lexsort((seeds.numpy_stream(seed, "teacher", "domains").permutation(len(names)), -sizes))
    domain, totals = {}, [0] * domains
    for place in order:
        smallest = totals.index(min(totals))
        domain[str(names[place])] = smallest
        totals[smallest] += int(sizes[place])
    found = []
    for number in range(domains):
        own, own_valid = (
            part.take([row for row, name in enumerate(part.merchants) if domain.get(name) == number])
            for part in (public, valid)
        )
        found.append((own, own_valid if len(own_valid) else valid))
    return found
