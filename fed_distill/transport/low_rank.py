"""Matrices as products of two thin factors, kept only where that is fewer numbers.

Truncated singular value decomposition, the best approximation of its rank (Eckart and Young, 1936). The rank is chosen
by the share of the squared singular values that it keeps, as in Wu et al., "Communication-efficient federated
learning via knowledge distillation", Nature Communications 2022 (FedKD).
"""

import torch
from torch import Tensor

from fed_distill.errors import TrainingError
from fed_distill.models.weights import PartialWeights
from fed_distill.transport.messages import LowRankUpdate


def most_rank(rows: int, columns: int) -> int:
    """Largest rank at which both factors have fewer numbers than a matrix ``[rows, columns]``; 0 for none."""
    return (rows * columns - 1) // (rows + columns) if rows and columns else 0


def rank_for_energy(singular_values: Tensor, energy: float) -> int:
    """The least rank that keeps ``energy`` (0 to 1) of the squared singular values, which fall; at least 1.

    With ``energy`` 1, as many as differ from zero.
    """
    squares = singular_values.double().square()
    total = float(squares.sum())
    if not total:
        return 1
    enough = squares.cumsum(0) >= energy * squares.cumsum(0)[-1]
    return int(enough.nonzero()[0]) + 1 if bool(enough.any()) else len(squares)


def factors(matrix: Tensor, energy: float, rank: int | None = None) -> tuple[Tensor, Tensor] | None:
    """Factors ``[rank, rows]`` and ``[rank, columns]`` of a float32 matrix; None where they would not be fewer numbers.

    Component by component, largest first, each with the root of its singular value in both factors, so that either can
    be quantized row by row. energy: share of the squared singular values that is kept. rank: of the factors at most.
    Rows and columns of zeros come back as zeros, exactly.
    """
    rows, columns = matrix.shape
    try:
        left, singular_values, right = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError as error:  # LinAlgError, which torch does not export
        raise TrainingError(f"an update without a singular value decomposition: {error}") from error
    kept = rank_for_energy(singular_values, energy)
    kept = kept if rank is None else min(kept, rank)
    if kept > most_rank(rows, columns):
        return None
    roots = singular_values[:kept].sqrt()
    thin, wide = left[:, :kept] * roots, right[:kept] * roots.unsqueeze(1)
    thin = torch.where((matrix != 0).any(dim=1, keepdim=True), thin, 0.0)
    wide = torch.where((matrix != 0).any(dim=0, keepdim=True), wide, 0.0)
    return thin.T.contiguous(), wide.contiguous()


def product(thin: Tensor, wide: Tensor) -> Tensor:
    """The matrix ``[rows, columns]`` of ``factors``."""
    return thin.T @ wide


def factored(update: PartialWeights, energy: float) -> LowRankUpdate:
    """An update with each float32 matrix as its ``factors`` at ``energy``, where these are fewer numbers."""
    plain, thin, wide = dict(update.arrays), {}, {}
    for name, value in update.arrays.items():
        found = factors(value, energy) if value.dim() == 2 and value.dtype == torch.float32 else None
        if found is not None:
            thin[name], wide[name] = found
            del plain[name]
    return LowRankUpdate(PartialWeights(plain, update.rows, update.counts), thin, wide)


def multiplied_out(update: LowRankUpdate) -> PartialWeights:
    """Inverse of ``factored``, but for the energy that was left out."""
    products = {name: product(thin, update.wide[name]) for name, thin in update.thin.items()}
    return PartialWeights({**update.plain.arrays, **products}, update.plain.rows, update.plain.counts)
