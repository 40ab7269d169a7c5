"""Density ratio of two sets of texts by kernelized unconstrained least-squares importance fitting (KuLSIF).

Kanamori, Suzuki and Sugiyama, "Statistical analysis of kernel-based least-squares density-ratio estimation", Machine
Learning 2012, theorem 1. The ratio r minimises

    1/2 mean over others of r(x)^2 - mean over own of r(x) + regularization / 2 * |r|^2

in the space of the kernel, and is computed in closed form. The kernel of two texts is exp(concentration * (cosine - 1))
of their hashed words and n-grams: Gaussian on the unit sphere.
"""

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse as sparse

from fed_distill.text.similarity import cosine_blocks

_OTHERS = 500
"""Maximum number of other texts for the fit, evenly spaced: its time is cubic in this number."""
_CONCENTRATION = 20.0

Floats = npt.NDArray[np.float64]


def kulsif(own: sparse.csr_array, others: sparse.csr_array) -> Floats:
    """Return the estimated ratio of the density of ``own`` to that of ``others``, at each of ``others``, ``[others]``;
    negative estimates are 0.

    The regularization is 1 / min(own, others)^0.9, as in the paper's experiments.

    :param own: L2-normalized counts ``[own, features]``, at least one
    :param others: L2-normalized counts ``[others, features]``, at least one
    """
    places = np.unique(np.linspace(0, others.shape[0] - 1, min(_OTHERS, others.shape[0])).astype(np.int64))
    sample = others[places]
    count, size = own.shape[0], len(places)
    regularization = min(count, size) ** -0.9
    between = kernel_sums(sample, own, np.full(count, 1.0 / (regularization * count)))
    among = np.concatenate([_kernel(block) for block in cosine_blocks(sample, sample)])
    inverse = among + size * regularization * np.eye(size)
    weights = -scipy.linalg.solve(inverse, between, assume_a="pos")
    ratio = kernel_sums(others, own, np.full(count, 1.0 / (regularization * count)))
    ratio += kernel_sums(others, sample, weights)
    return np.maximum(ratio, 0.0)


def kernel_sums(bags: sparse.csr_array, centers: sparse.csr_array, weights: Floats) -> Floats:
    """Return the sum over centers of weight times kernel, at each of ``bags``, ``[bags]``."""
    return np.concatenate([_kernel(block) @ weights for block in cosine_blocks(bags, centers)])


def _kernel(cosines: npt.NDArray[np.float32]) -> Floats:
    kernel: Floats = np.exp(_CONCENTRATION * (cosines.astype(np.float64) - 1.0))
    return kernel
