"""Owners of the examples in a batch of a cohort, with the merchants' examples concatenated.

On a GPU all merchants have the same number (padded and masked), so that each layer is one operation. On a CPU nothing
is padded: products are computed merchant by merchant, at little cost.

With DP by groups, several examples of a batch form one member of the unit, and the gradient of a member's mean loss is
clipped. ``Members`` has the examples of each member.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class Members:
    """Members of the unit in a batch where some have several examples, all of them one merchant's.

    of: which member each example is of, int64 ``[N]``, numbers 0..M-1. owner: which merchant each member is of, int64
    ``[M]``. share: 1 / examples of its member, float32 ``[N]``. alike: members ``[m]`` of about the same size with
    their examples, int64 ``[m, largest size]``, filled up with N.
    """

    def __init__(self, of: Tensor, owner: Tensor) -> None:
        """owner: which merchant each example is of, int64 ``[N]``."""
        sizes = torch.bincount(of)
        self.of, self.share = of, sizes[of].float().reciprocal()
        self.owner = torch.zeros_like(sizes).index_copy_(0, of, owner)
        order = of.argsort(stable=True)
        rank = torch.arange(len(of), device=of.device) - (sizes.cumsum(0) - sizes)[of[order]]
        widths = 2 ** sizes.double().log2().ceil().long()
        self.alike: list[tuple[Tensor, Tensor]] = []
        for width in torch.unique(widths).tolist():
            members = (widths == width).nonzero().flatten()
            here = widths[of[order]] == width
            place = torch.zeros_like(sizes).index_copy_(0, members, torch.arange(len(members), device=of.device))
            examples = of.new_full((len(members), width), len(of))
            examples[place[of[order[here]]], rank[here]] = order[here]
            self.alike.append((members, examples))

    def __len__(self) -> int:
        return len(self.owner)

    def positions(self, values: Tensor, examples: Tensor) -> Tensor:
        """``[N, P, width]`` with the positions of a member's ``examples`` along one dimension: ``[m, examples of each *
        P, width]``, 0 for those that it has not."""
        absent = examples == len(self.of)
        taken = values[examples.masked_fill(absent, 0)].masked_fill_(absent[:, :, None, None], 0)
        return taken.flatten(1, 2)


class Layout:
    """The layout of the batch that is being computed; the layers of a stack share one.

    sizes: examples of each merchant. owner: which merchant each example is of, int64 ``[N]``. even: whether all sizes
    are the same. members: None where every example is a member of the unit of its own; M is N then.
    """

    def __init__(self) -> None:
        self.sizes: Sequence[int] = ()
        self.owner = torch.empty(0, dtype=torch.int64)
        self.even = True
        self.members: Members | None = None

    def set(self, sizes: Sequence[int], owner: Tensor, member: Tensor | None = None) -> None:
        """A batch begins; member: of which member of the unit each example is, int64 ``[N]``."""
        self.sizes, self.owner, self.even = sizes, owner, len(set(sizes)) <= 1
        self.members = None if member is None else Members(member, owner)

    def by_member(self, values: Tensor) -> Tensor:
        """Each member's sum over its examples: ``[N, ...]`` to ``[M, ...]``."""
        if self.members is None:
            return values
        return values.new_zeros(len(self.members), *values.shape[1:]).index_add_(0, self.members.of, values)

    def to_examples(self, values: Tensor) -> Tensor:
        """Each member's value for its examples: ``[M, ...]`` to ``[N, ...]``."""
        return values if self.members is None else values[self.members.of]

    def norms(self, norms: Callable[..., Tensor], *flows: Tensor) -> Tensor:
        """What ``norms`` finds of each member, ``[M]``, given what flows at all positions of one: ``[N, P, width]``."""
        if self.members is None:
            return norms(*flows)
        found = flows[0].new_zeros(len(self.members))
        for which, examples in self.members.alike:
            found[which] = norms(*(self.members.positions(one, examples) for one in flows))
        return found

    def member_sums(self, values: Tensor) -> Tensor:
        """Each merchant's sum over its members: ``[M, ...]`` to ``[a, ...]``."""
        if self.members is None:
            return self.sums(values)
        return values.new_zeros(len(self.sizes), *values.shape[1:]).index_add_(0, self.members.owner, values)

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
