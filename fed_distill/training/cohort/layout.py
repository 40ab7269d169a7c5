"""Whose example is whose in a batch of a cohort: merchants one after another, each with as many examples as it has.

On a GPU all have the same number (padded and masked), so that each layer is one operation. On a CPU nothing is padded:
products go merchant by merchant, which costs it little.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Layout:
    """The layout of the batch that is being computed; the layers of a stack share one.

    sizes: examples of each merchant. owner: which merchant each example is of, int64 ``[N]``. even: whether all sizes
    are the same.
    """

    def __init__(self) -> None:
        self.sizes: Sequence[int] = ()
        self.owner = torch.empty(0, dtype=torch.int64)
        self.even = True

    def set(self, sizes: Sequence[int], owner: Tensor) -> None:
        """A batch begins."""
        self.sizes, self.owner, self.even = sizes, owner, len(set(sizes)) <= 1

    def spans(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """(merchant, first, last) of so many rows, an equal number of them for each example."""
        each, first = rows // max(len(self.owner), 1), 0
        for merchant, size in enumerate(self.sizes):
            yield merchant, first, first + size * each
            first += size * each

    def products(self, x: Tensor, weights: Tensor, shifts: Tensor | None = None) -> Tensor:
        """``x w + b`` with each merchant's w ``[a, in, out]`` and b ``[a, out]``, x ``[rows, in]``."""
        merchants = len(weights)
        if self.even:
            grouped = x.view(merchants, -1, x.shape[-1])
            product = torch.bmm(grouped, weights)
            if shifts is not None:
                product += shifts.unsqueeze(1)  # baddbmm would first write the shifts to all rows, which is slower
            return product.flatten(0, 1)
        found = x.new_empty(len(x), weights.shape[-1])
        for merchant, first, last in self.spans(len(x)):
            own = torch.mm(x[first:last], weights[merchant], out=found[first:last])
            if shifts is not None:
                own += shifts[merchant]
        return found

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Each merchant's ``left^T right``: ``[rows, m]`` and ``[rows, n]`` to ``[a, m, n]``."""
        merchants = len(self.sizes)
        if self.even:
            grouped = left.view(merchants, -1, left.shape[-1]), right.view(merchants, -1, right.shape[-1])
            return torch.bmm(grouped[0].transpose(1, 2), grouped[1])
        found = left.new_empty(merchants, left.shape[-1], right.shape[-1])
        for merchant, first, last in self.spans(len(left)):
            torch.mm(left[first:last].t(), right[first:last], out=found[merchant])
        return found

    def sums(self, values: Tensor) -> Tensor:
        """Each merchant's sum of rows: ``[rows, ...]`` to ``[a, ...]``; as many rows for each example."""
        merchants = len(self.sizes)
        if self.even:
            return values.view(merchants, -1, *values.shape[1:]).sum(dim=1)
        of_example = values.view(len(self.owner), -1, *values.shape[1:]).sum(dim=1)
        return values.new_zeros(merchants, *values.shape[1:]).index_add_(0, self.owner, of_example)

    def of_examples(self, values: Tensor, like: Tensor) -> Tensor:
        """Each merchant's value ``[a, ...]`` for its examples, to be combined with ``like`` ``[N, ..., width]``."""
        taken = values[self.owner]
        return taken.view(len(taken), *[1] * (like.dim() - taken.dim()), *taken.shape[1:])
