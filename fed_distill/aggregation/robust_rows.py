"""Robust means row by row: an embedding row is compared over the merchants that touched it, and over nobody else.

A coordinate-wise median (Yin et al., "Byzantine-robust distributed learning", ICML 2018) of whole tables lets most
merchants, which never saw a rare word, outvote those that did: to the median "unchanged" is what all but a few say, and
the row never learns. Here only who touched a row is asked about it, as in federated submodel averaging (Ding et al.,
NeurIPS 2022). The price is that a row is only as safe as most of those that touched it are honest.

All merchants' updates are held in memory at once, as robust means need, but only the rows that they sent.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.aggregation.base import Stateless
from fed_distill.aggregation.robust_means import median, trimmed_mean
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink


class _RobustRows(Stateless, ABC):
    """Merges by a robust mean of updates; the subclass says which. Merchants count the same, whatever their size."""

    @abstractmethod
    def mean(self, stacked: Tensor) -> Tensor:
        """The robust mean ``[...]`` of ``[merchants, ...]``."""

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """The next global weights; rows that nobody sent, and weights that are not floating-point, stay as they are."""
        sent = [sent for uplink in uplinks if (sent := uplink.get(StudentUpdate)) is not None]
        if not sent:
            raise UplinkRejected("no merchant sent an update that could be merged")
        return {name: self._merged(name, value, sent) for name, value in current.items()}

    def _merged(self, name: str, value: Tensor, sent: Sequence[PartialWeights]) -> Tensor:
        having = [one for one in sent if name in one.arrays]
        if not having or not value.is_floating_point():
            return value
        if name not in having[0].rows:
            change = self.mean(torch.stack([one.arrays[name].double() for one in having]))
            return (value.double() + change).to(value.dtype)
        merged = value.clone()
        rows = torch.cat([one.rows[name] for one in having])
        changes = torch.cat([one.arrays[name] for one in having])
        for touched, places in by_merchants(rows):
            merged[touched] = (value[touched].double() + self.mean(changes[places].double())).to(value.dtype)
        return merged


@dataclass
class FedSubMedian(_RobustRows):
    """Median over the merchants that touched a row (Yin et al., ICML 2018, definition 1; Ding et al., NeurIPS 2022)."""

    def mean(self, stacked: Tensor) -> Tensor:
        """Coordinate by coordinate; of an even number of merchants the mean of the two in the middle."""
        return median(stacked)


@dataclass
class FedSubTrimmedAvg(_RobustRows):
    """Trimmed mean over the merchants that touched a row (Yin et al., ICML 2018, definition 2; Ding et al., NeurIPS
    2022). beta: share cut off at each end, below 0.5."""

    beta: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2

    def mean(self, stacked: Tensor) -> Tensor:
        """Coordinate by coordinate."""
        return trimmed_mean(stacked, self.beta)


def by_merchants(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The distinct numbers in ``rows``, int64 ``[sent]``, by how many merchants sent them: the row numbers
    ``[touched]``, and their places in ``rows``, ``[merchants, touched]``."""
    order = rows.argsort(stable=True)
    distinct, counts = torch.unique_consecutive(rows[order], return_counts=True)
    firsts = counts.cumsum(0) - counts
    for count in counts.unique().tolist():
        alike = counts == count
        yield distinct[alike], order[firsts[alike] + torch.arange(count).unsqueeze(1)]
