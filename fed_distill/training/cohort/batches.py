"""Batches of a whole cohort: every merchant's next batch, padded to the longest and masked.

A merchant that has fewer examples in a step repeats its first one with weight 0. Merchants are ordered by falling
number of steps, so that those who are done are at the end and are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fed_distill.models.base import Encoded
from fed_distill.training.plan import References
from fed_distill.training.preparation import Segment


@dataclass(frozen=True)
class Batch:
    """One step of the first merchants of a cohort.

    index: which examples of the phase's data, int64 ``[merchants, B]``. mask: 1 for examples that count, 0 for
    padding, float32 ``[merchants, B]``. first: where in each merchant's batch this one begins, if it is a part.
    """

    index: Tensor
    mask: Tensor
    first: int = 0

    @property
    def sizes(self) -> Tensor:
        """Examples that count, ``[merchants]``."""
        return self.mask.sum(dim=1)

    def parts(self, together: int) -> Iterator["Batch"]:
        """The batch in parts of at most ``together`` examples of each merchant."""
        for first in range(0, self.index.shape[1], together):
            last = first + together
            yield Batch(self.index[:, first:last], self.mask[:, first:last], first)


class PhaseData:
    """One phase of a cohort: its merchants' segments, the data in one piece (shared if it is the same for all)."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments, self.device = segments, device
        self.phase = segments[0].phase
        self.private = segments[0].privacy is not None
        self.steps = [len(segment.batches) for segment in segments]
        first = segments[0]
        shared = all(segment.encoded is first.encoded and _same(segment.references, first) for segment in segments)
        sizes = [0 if shared else len(next(iter(segment.encoded.values()))) for segment in segments]
        self._first_rows = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        parts = segments[:1] if shared else segments
        self.encoded: Encoded = {
            name: joined([part.encoded[name] for part in parts]).to(device) for name in first.encoded
        }
        self.references: References = {
            name: joined([part.references[name] for part in parts]).to(device) for name in first.references
        }

    def active(self, step: int) -> int:
        """How many merchants, from the first on, have this step."""
        return sum(steps > step for steps in self.steps)

    def batch(self, step: int, merchants: int) -> Batch:
        """The examples of step ``step`` of the first ``merchants``."""
        drawn = [segment.batches[step] for segment in self.segments[:merchants]]
        sizes = torch.tensor([len(one) for one in drawn])
        width = max(int(sizes.max()), 1)
        owner = torch.arange(merchants).repeat_interleave(sizes)
        column = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
        index = self._first_rows[:merchants].unsqueeze(1).repeat(1, width)
        index[owner, column] += torch.cat(drawn)
        mask = (torch.arange(width) < sizes.unsqueeze(1)).float()
        return Batch(index.to(self.device), mask.to(self.device))

    def taken(self, index: Tensor) -> References:
        """References of the examples ``index`` ``[examples]``."""
        return {name: values[index] for name, values in self.references.items()}


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Row-aligned tensors one after another; integer matrices are padded with 0 to the widest."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].dim() == 2 and not parts[0].is_floating_point():
        widest = max(part.shape[1] for part in parts)
        parts = [pad(part, (0, widest - part.shape[1])) for part in parts]
    return torch.cat(list(parts))


def _same(references: References, first: Segment) -> bool:
    return references.keys() == first.references.keys() and all(
        references[name] is first.references[name] for name in references
    )
