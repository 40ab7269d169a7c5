"""A noised sum of a merchant's text features, and how close any text is to the merchant's own according to it.

A member of the privacy unit, an example or a group of examples, contributes a vector of L2 norm at most 1, so that the
sum has sensitivity 1 under the addition or removal of a member: a Gaussian mechanism, without sampling. Everything that
is computed from the noised sum is post-processing, as in DP-MERF (Harder, Adamczewski and Park, AISTATS 2021), which
releases a noised mean of random features of a kernel once. The features here are those of ``text.similarity.bags``,
whose kernel is the cosine. The noise on the closeness of one text does not depend on the number of features: it is the
product of the noise with a vector of norm 1.
"""

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor


def text_sum(bags: sparse.csr_array, groups: Tensor | None = None) -> Tensor:
    """Return the sum over members of the mean of their examples' features, float64 ``[features]``.

    An example of a group moves the mean of its group, a convex combination of vectors of norm at most 1, by at most 2.

    :param bags: features of norm at most 1, ``[examples, features]``
    :param groups: number of the group of each example, int64 ``[examples]``; None if each example is a member
    """
    shares = np.ones(bags.shape[0])
    if groups is not None:
        numbers = groups.numpy()
        shares /= np.bincount(numbers)[numbers]
    return torch.from_numpy(np.asarray(bags.T @ shares, dtype=np.float64))


def closeness(noised: Tensor, members: int, noise: float, texts: sparse.csr_array) -> Tensor:
    """Return how close texts are to those in a noised sum: the root of their mean cosine, in [0, 1], ``[texts]``.

    A mean cosine has noise of standard deviation ``noise / members``. All of them are shrunk towards those of a typical
    merchant (their mean cosines with ``texts``), by the positive part of the factor of James and Stein, "Estimation
    with quadratic loss", 1961: 1 minus the variance of the noise divided by the mean squared difference. So a sum that
    is all noise gives the closeness of a typical merchant. Mean cosines are small: their roots are about as large as
    the largest cosines that are used without privacy.

    :param noised: noised sum, float64 ``[features]``
    :param members: noised number of members in the sum, at least 1
    :param noise: standard deviation of the noise of each feature
    :param texts: public texts' features of norm 1, or 0 for an empty text, ``[texts, features]``
    :returns: float32 ``[texts]``
    """
    if not texts.shape[0]:
        return torch.zeros(0)
    typical = texts @ np.asarray(texts.mean(axis=0)).ravel()
    apart = texts @ noised.numpy() / members - typical
    lengths = float(texts.multiply(texts).sum()) / texts.shape[0]
    of_noise, observed = (noise / members) ** 2 * lengths, float(np.mean(apart**2))
    kept = max(0.0, 1.0 - of_noise / observed) if observed else 0.0
    return torch.from_numpy(np.sqrt(np.clip(typical + kept * apart, 0.0, 1.0)).astype(np.float32))
