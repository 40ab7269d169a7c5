"""Batches of a whole cohort: the concatenated next batches of all merchants.

If all must have the same number of examples (see ``layout``), a merchant with fewer in a step is padded with one of its
own examples of the phase, with weight 0, as its submodel may lack rows for others. Merchants are in descending order of
their number of steps, so that finished ones are at the end and are omitted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fed_distill.text.encoded import Encoded
from fed_distill.training.plan import References
from fed_distill.training.preparation import Segment


@dataclass(frozen=True)
class Batch:
    """One step of the first merchants of a cohort, their examples one after another.

    index: index of each example in the phase's data, int64 ``[N]``. owner: its merchant, int64 ``[N]``. column: its
    position in its merchant's batch, int64 ``[N]``. mask: 1 for examples, 0 for padding, float32 ``[N]``. sizes: number
    of examples of each merchant, with padding. counted: number of examples in each merchant's whole batch, without
    padding, int64 ``[merchants]``. member: member of the privacy unit of each example, int64 ``[N]``, 0..M-1, with a
    separate member for each padding example; None if every example is a member.
    """

    index: Tensor
    owner: Tensor
    column: Tensor
    mask: Tensor
    sizes: Sequence[int]
    counted: Tensor
    member: Tensor | None = None

    def parts(self, together: int) -> Iterator["Batch"]:
        """Split the batch into parts of at most ``together`` examples per merchant; a larger member is one part. Parts
        of a batch with equal sizes have equal sizes, too."""
        if max(self.sizes) <= together:
            yield self
            return
        part = self.column // together if self.member is None else _packed(self.owner, self.member, together)
        for number in range(int(part.max()) + 1):
            yield self._part((part == number).nonzero().flatten())

    def _part(self, rows: Tensor) -> "Batch":
        sizes = torch.bincount(self.owner[rows], minlength=len(self.sizes))
        counts = self.mask[rows]
        if len(set(self.sizes)) == 1:
            lacking = int(sizes.max()) - sizes
            firsts = torch.arange(len(sizes), device=rows.device) * self.sizes[0]
            rows = torch.cat([rows, firsts.repeat_interleave(lacking)])
            order = self.owner[rows].argsort(stable=True)
            rows, counts, sizes = rows[order], pad(counts, (0, len(rows) - len(counts)))[order], sizes + lacking
        member = None if self.member is None else self.member[rows]
        member = None if member is None else numbered(torch.where(counts > 0, member, _own_numbers(member)))
        return Batch(
            self.index[rows], self.owner[rows], self.column[rows], counts, sizes.tolist(), self.counted, member
        )


class PhaseData:
    """One phase of a cohort: its merchants' segments, with concatenated data (shared if equal for all)."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments, self.device = segments, device
        self.phase = segments[0].phase
        self.private = segments[0].privacy is not None
        self.steps = [len(segment.batches) for segment in segments]
        first = segments[0]
        shared = all(segment.encoded is first.encoded and _same(segment.references, first) for segment in segments)
        sizes = [0 if shared else len(next(iter(segment.encoded.values()))) for segment in segments]
        self._first_rows = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        drawn = [next((index[0] for index in segment.batches if len(index)), torch.tensor(0)) for segment in segments]
        self._fillers = self._first_rows + torch.stack(drawn)
        parts = segments[:1] if shared else segments
        self.encoded: Encoded = {
            name: joined([part.encoded[name] for part in parts]).to(device) for name in first.encoded
        }
        self.references: References = {
            name: joined([part.references[name] for part in parts]).to(device) for name in first.references
        }

    def active(self, step: int) -> int:
        """Return the number of merchants that have this step; they are the first ones."""
        return sum(steps > step for steps in self.steps)

    def batch(self, step: int, merchants: int, even: bool) -> Batch:
        """Return step ``step`` of the first ``merchants``; ``even``: padded to the same number of examples."""
        drawn = [segment.batches[step] for segment in self.segments[:merchants]]
        real = torch.tensor([len(one) for one in drawn])
        sizes = torch.full_like(real, max(int(real.max()), 1)) if even else real
        owner = torch.arange(merchants).repeat_interleave(sizes)
        column = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
        counts = column < real[owner]
        index = self._fillers[owner]
        index[counts] = self._first_rows[owner[counts]] + torch.cat(drawn)
        member = self._members(drawn, owner, counts)
        index, owner, column, mask = (one.to(self.device) for one in (index, owner, column, counts.float()))
        member = None if member is None else member.to(self.device)
        return Batch(index, owner, column, mask, sizes.tolist(), real.to(self.device), member)

    def _members(self, drawn: Sequence[Tensor], owner: Tensor, counts: Tensor) -> Tensor | None:
        """Return ``Batch.member`` for the examples ``drawn`` by each merchant, at the positions ``counts``."""
        segments = self.segments[: len(drawn)]
        if not len(owner) or all(segment.groups is None for segment in segments):
            return None
        own = [one if of.groups is None else of.groups[one] for of, one in zip(segments, drawn, strict=True)]
        member = torch.zeros_like(owner)
        member[counts] = torch.cat(own)
        member += owner * (member.max() + 1)
        return numbered(torch.where(counts, member, _own_numbers(member)))

    def taken(self, index: Tensor) -> References:
        """Return references of the examples ``index`` ``[examples]``."""
        return {name: values[index] for name, values in self.references.items()}


def numbered(member: Tensor) -> Tensor | None:
    """Renumber ``[N]`` numbers to 0..M-1 in their order; None if all are distinct."""
    found, places = torch.unique(member, return_inverse=True)
    return None if len(found) == len(member) else places


def _own_numbers(member: Tensor) -> Tensor:
    """Return ``[N]`` distinct numbers that are not in ``member``."""
    return member.max() + 1 + torch.arange(len(member), device=member.device)


def _packed(owner: Tensor, member: Tensor, together: int) -> Tensor:
    """Assign each example ``[N]`` to a part: members are not split, are in the order of their first examples, and a
    part has at most ``together`` examples of a merchant, unless a single member has more."""
    sizes = torch.bincount(member).tolist()
    part_of: dict[int, int] = {}
    part, filled = [0] * (int(owner.max()) + 1), [0] * (int(owner.max()) + 1)
    for whose, one in zip(owner.tolist(), member.tolist(), strict=True):
        if one in part_of:
            continue
        if filled[whose] and filled[whose] + sizes[one] > together:
            part[whose], filled[whose] = part[whose] + 1, 0
        filled[whose] += sizes[one]
        part_of[one] = part[whose]
    return torch.tensor([part_of[one] for one in member.tolist()], device=member.device)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate row-aligned tensors; integers ``[n, ...]`` are padded with 0 to the largest sizes."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].dim() > 1 and not parts[0].is_floating_point():
        largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        missing = [[most - size for most, size in zip(largest, part.shape[1:], strict=True)] for part in parts]
        # ``pad`` wants a size before and after each dimension, from the last one back
        parts = [
            pad(part, [at for size in reversed(sizes) for at in (0, size)])
            for part, sizes in zip(parts, missing, strict=True)
        ]
    return torch.cat(list(parts))


def _same(references: References, first: Segment) -> bool:
    return references.keys() == first.references.keys() and all(
        references[name] is first.references[name] for name in references
    )
