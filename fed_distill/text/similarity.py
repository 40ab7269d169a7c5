"""Lexical similarity of texts: cosines of their hashed words and character n-grams."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from fed_distill.text.hashing import bag_rows

ROWS = 2**15
"""Number of features that words and n-grams are hashed to."""
_CELLS = 2**21
"""Maximum number of cosines that are in memory at once."""


def bags(texts: Sequence[str], pairs: Sequence[str] | None = None) -> sparse.csr_array:
    """Return L2-normalized counts of hashed features of both texts of each example, float64 ``[examples, ROWS]``."""
    parts = [texts] if pairs is None else [texts, pairs]
    rows = np.concatenate([bag_rows(part, ROWS) for part in parts], axis=1)
    example, place = np.nonzero(rows)
    counts = sparse.csr_array((np.ones(len(example)), (example, rows[example, place])), shape=(len(rows), ROWS))
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    return sparse.diags_array(1.0 / np.maximum(lengths, 1e-12)).tocsr() @ counts


def largest_cosine(bags: sparse.csr_array, among: sparse.csr_array) -> npt.NDArray[np.float32]:
    """Return the cosine of each example with the most similar one of ``among``, in [0, 1]; 0 without any.

    :param bags: normalized counts ``[examples, ROWS]``
    :param among: normalized counts ``[others, ROWS]``
    :returns: float32 ``[examples]``
    """
    if not among.shape[0]:
        return np.zeros(bags.shape[0], dtype=np.float32)
    parts = [block.max(axis=1) for block in cosine_blocks(bags, among)]
    return np.minimum(np.concatenate(parts), np.float32(1.0)) if parts else np.zeros(0, dtype=np.float32)


def cosine_blocks(bags: sparse.csr_array, among: sparse.csr_array) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the cosines ``[examples, others]`` in blocks of examples that bound the memory, float32; ``among`` is not
    empty."""
    bags, others = bags.astype(np.float32, copy=False), among.astype(np.float32, copy=False).T.tocsr()
    rows = max(_CELLS // among.shape[0], 1)
    for start in range(0, bags.shape[0], rows):
        yield (bags[start : start + rows] @ others).toarray()
