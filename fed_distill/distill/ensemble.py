"""Several teachers as one: their probabilities, weighted example by example and averaged.

The weights say whom to believe about an example: everybody equally, whoever is surest, or whoever was fine-tuned on
examples that are like it.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.data.examples import Examples
from fed_distill.errors import DataError
from fed_distill.text.hashing import bag_rows

_ROWS = 2**15


def combined(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average of the teachers' ``probabilities`` ``[teachers, n, classes]`` by ``weights`` ``[teachers, n]``, of any
    sum, or None for equal ones: ``[n, classes]``, rows that sum to 1."""
    if weights is None:
        return probabilities.mean(dim=0)
    shares = weights / weights.sum(dim=0, keepdim=True)
    return torch.einsum("tn,tnc->nc", shares, probabilities)


def confidence(probabilities: Tensor) -> Tensor:
    """Weights ``[teachers, n]`` inversely proportional to the entropy of each teacher's ``probabilities``
    ``[teachers, n, classes]`` (Kwon et al. 2020), which counts as a hundredth of its largest value at least."""
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return 1.0 / entropy.clamp_min(0.01 * float(np.log(probabilities.shape[-1])))


def similarity(examples: Examples, trained_on: Sequence[Examples]) -> Tensor:
    """Weights ``[teachers, n]``: cosine of each example's hashed words and n-grams with the mean of those that a
    teacher was fine-tuned on; equal ones for an example that is like none of them."""
    own = _features(examples)
    centroids = [np.asarray(_features(one).mean(axis=0)).ravel() for one in trained_on]
    cosines = [own @ (centroid / max(float(np.linalg.norm(centroid)), 1e-12)) for centroid in centroids]
    weights = torch.from_numpy(np.stack(cosines)).float()
    return torch.where(weights.sum(dim=0, keepdim=True) > 0, weights, 1.0)


def domains_of(public: Examples, valid: Examples, domains: int, seed: int) -> list[tuple[Examples, Examples]]:
    """``public`` and ``valid`` split into ``domains`` by merchant: the largest are dealt out first, those of equal size
    in an order that is drawn. A domain without validation examples is validated on all. Raise DataError if there are
    fewer merchants than domains."""
    if domains == 1:
        return [(public, valid)]
    names, sizes = np.unique(np.array([*public.merchants]), return_counts=True)
    if len(names) < domains:
        raise DataError(f"teacher.domains = {domains} is more than the {len(names)} public merchants: lower it")
    order = np.lexsort((seeds.numpy_stream(seed, "teacher", "domains").permutation(len(names)), -sizes))
    domain = {str(names[place]): rank % domains for rank, place in enumerate(order)}
    found = []
    for number in range(domains):
        own, own_valid = (
            part.take([row for row, name in enumerate(part.merchants) if domain.get(name) == number])
            for part in (public, valid)
        )
        found.append((own, own_valid if len(own_valid) else valid))
    return found


def _features(examples: Examples) -> sparse.csr_array:
    """Counts of hashed features of both texts, each example's of length 1, ``[n, rows]``."""
    parts = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    rows = np.concatenate([bag_rows(texts, _ROWS) for texts in parts], axis=1)
    example, place = np.nonzero(rows)
    counts = sparse.csr_array((np.ones(len(example)), (example, rows[example, place])), shape=(len(examples), _ROWS))
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    return sparse.diags_array(1.0 / np.maximum(lengths, 1e-12)).tocsr() @ counts
