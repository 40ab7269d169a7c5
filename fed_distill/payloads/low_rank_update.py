"""An update of weights with low-rank factors of its matrices, if the factors have fewer numbers.

Truncated singular value decomposition, the best approximation of its rank (Eckart and Young, 1936). The rank is chosen
by the share of the squared singular values that it keeps, as in Wu et al., "Communication-efficient federated
learning via knowledge distillation", Nature Communications 2022 (FedKD).
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from fed_distill.errors import TrainingError
from fed_distill.models.weights import PartialWeights, Weights, norm_of, times
from fed_distill.payloads.base import Context, Payload, Records, Room
from fed_distill.payloads.partial import (
    check_shapes,
    check_weights,
    like_updates,
    partial_of,
    partial_records,
    partial_room,
)


@dataclass(frozen=True)
class LowRankUpdate(Payload):
    """Changes of weights relative to the downlink's.

    :param plain: updates without factors, and ``rows`` and ``counts`` of every partial table
    :param thin: factors ``[rank, rows]`` by matrix; thin^T wide is its update
    :param wide: factors ``[rank, columns]`` by matrix
    """

    plain: PartialWeights
    thin: Weights = field(default_factory=dict)
    wide: Weights = field(default_factory=dict)
    name: ClassVar[str] = "low_rank_update"
    records: ClassVar[tuple[str, ...]] = tuple(
        f"low_rank.{part}" for part in ("update", "rows", "counts", "thin", "wide")
    )
    disclosure: ClassVar[str] = "update of its student's weights, of lower rank"
    covered: ClassVar[str | None] = "computed from weights trained with DP-SGD, at no further cost"
    tells_rows: ClassVar[bool] = True

    def to_records(self) -> Records:
        """Return updates without factors, and both factors."""
        *plain, thin, wide = self.records
        return {**partial_records(self.plain, plain), thin: self.thin, wide: self.wide}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        *plain, thin, wide = cls.records
        return cls(partial_of(records, plain), records[thin], records[wide])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for the global student in single precision, and for factors as large as its matrices."""
        like, (*plain, thin, wide) = like_updates(context.weights), cls.records
        factors = {name: value.nbytes for name, value in like.items() if value.dim() == 2}
        return {**partial_room(like, plain), thin: factors, wide: factors}

    def check_shape(self, context: Context) -> None:
        """Check the factors first, so that their product fits the weight."""
        like = like_updates(context.weights)
        self._check_factors(like)
        check_shapes(self.multiplied_out(), like)

    def validate(self, context: Context) -> None:
        """Check the factors, and that their products are a valid update of the global student."""
        like = like_updates(context.weights)
        self._check_factors(like)
        check_weights(self.multiplied_out(), like)

    def scaled(self, factor: float, context: Context) -> Self:
        """Return it multiplied by ``factor``."""
        plain = replace(self.plain, arrays=times(self.plain.arrays, factor))
        return type(self)(plain, times(self.thin, factor), self.wide)

    def norm(self) -> float:
        """Return the norm of the update with multiplied factors."""
        return norm_of(self.multiplied_out().arrays.values())

    def structure(self) -> Hashable:
        """Return the names of the weights, and of the partial ones."""
        return frozenset(self.plain.arrays.keys() | self.thin.keys()), frozenset(self.plain.rows)

    @property
    def counts(self) -> Mapping[str, Tensor]:
        """Return use counts of the rows of partial tables."""
        return self.plain.counts

    def with_counts(self, counts: Mapping[str, Tensor]) -> "LowRankUpdate":
        """Return a copy with other use counts of its rows."""
        return replace(self, plain=replace(self.plain, counts=counts))

    def multiplied_out(self) -> PartialWeights:
        """Return the update, an approximation up to the omitted energy."""
        products = {name: product(thin, self.wide[name]) for name, thin in self.thin.items()}
        return PartialWeights({**self.plain.arrays, **products}, self.plain.rows, self.plain.counts)

    @classmethod
    def factored(cls, update: PartialWeights, energy: float, tables: bool = True) -> Self:
        """Factor each float32 matrix of an update at ``energy``, if the factors have fewer numbers.

        :param tables: whether tables of which only some rows are in the update are factored too
        """
        plain, thin, wide = dict(update.arrays), {}, {}
        for name, value in update.arrays.items():
            whole = tables or name not in update.rows
            found = factors(value, energy) if whole and value.dim() == 2 and value.dtype == torch.float32 else None
            if found is not None:
                thin[name], wide[name] = found
                del plain[name]
        return cls(PartialWeights(plain, update.rows, update.counts), thin, wide)

    def _check_factors(self, like: Weights) -> None:
        if self.thin.keys() != self.wide.keys() or self.thin.keys() & self.plain.arrays.keys():
            raise ValueError("factors of the low-rank update are missing, or sent twice")
        for name, thin in self.thin.items():
            wide, expected = self.wide[name], list(like[name].shape) if name in like else []
            if expected and name in self.plain.rows:
                expected[0] = min(self.plain.rows[name].numel(), expected[0])
            odd = thin.dim() != 2 or wide.dim() != 2 or len(thin) != len(wide)
            if odd or [thin.shape[1], wide.shape[1]] != expected:
                shapes = f"{list(thin.shape)} and {list(wide.shape)}"
                raise ValueError(f"factors of {name} have shapes {shapes}, but the matrix has {expected}")
            if thin.dtype != torch.float32 or wide.dtype != torch.float32:
                raise ValueError(f"factors of {name} must be float32, not {thin.dtype} and {wide.dtype}")
            if len(thin) > most_rank(thin.shape[1], wide.shape[1]):
                raise ValueError(f"factors of {name} have rank {len(thin)}, which is too large for the matrix")


def most_rank(rows: int, columns: int) -> int:
    """Return the largest rank at which both factors have fewer numbers than a matrix ``[rows, columns]``; 0 if none."""
    return (rows * columns - 1) // (rows + columns) if rows and columns else 0


def rank_for_energy(singular_values: Tensor, energy: float) -> int:
    """Return the smallest rank that keeps ``energy`` (0 to 1) of the squared singular values; at least 1.

    With ``energy`` 1, it is the number of non-zero values. ``singular_values`` are in descending order.
    """
    squares = singular_values.double().square()
    total = float(squares.sum())
    if not total:
        return 1
    enough = squares.cumsum(0) >= energy * squares.cumsum(0)[-1]
    return int(enough.nonzero()[0]) + 1 if bool(enough.any()) else len(squares)


def factors(matrix: Tensor, energy: float, rank: int | None = None) -> tuple[Tensor, Tensor] | None:
    """Return factors ``[rank, rows]`` and ``[rank, columns]`` of a float32 matrix; None if they have no fewer numbers.

    Components are in descending order, each with the root of its singular value in both factors, so that both can be
    quantized row by row. Rows and columns of zeros remain exact zeros.

    :param energy: share of the squared singular values that is kept
    :param rank: maximum rank of the factors
    """
    rows, columns = matrix.shape
    try:
        left, singular_values, right = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError as error:  # LinAlgError, which torch does not export
        raise TrainingError(f"the singular value decomposition of an update failed: {error}") from error
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
    """Return the matrix ``[rows, columns]`` of ``factors``."""
    return thin.T @ wide
