"""Robust means by row: an embedding row is aggregated over the merchants that sent it only.

With a coordinate-wise median (Yin et al., "Byzantine-robust distributed learning", ICML 2018) of whole tables, a rare
word is never trained: most merchants do not have it, and their unchanged row is the median. Here a row is aggregated
over the merchants that use it, as in federated submodel averaging (Ding et al., NeurIPS 2022). A row is therefore
robust only if most of these merchants are honest.

The rows that merchants sent are in memory for all merchants at once.
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
    """Merges by a robust mean of updates, given by the subclass. Merchants have equal weights."""

    @abstractmethod
    def mean(self, stacked: Tensor) -> Tensor:
        """Return the robust mean ``[...]`` of ``[merchants, ...]``."""

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """Return the next global weights; rows that no merchant sent, and non-floating-point weights, are unchanged."""
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
        """Return the coordinate-wise median; for an even number, the mean of the two in the middle."""
        return median(stacked)


@dataclass
class FedSubTrimmedAvg(_RobustRows):
    """Trimmed mean over the merchants that touched a row (Yin et al., ICML 2018, definition 2; Ding et al., NeurIPS
    2022). beta: share cut off at each end, below 0.5."""

    beta: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2

    def mean(self, stacked: Tensor) -> Tensor:
        """Return the coordinate-wise trimmed mean."""
        return trimmed_mean(stacked, self.beta)


def by_merchants(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Group the distinct numbers in ``rows``, int64 ``[sent]``, by the number of merchants that sent them: yield row
    numbers ``[touched]`` and their positions in ``rows``, ``[merchants, touched]``."""
    order = rows.argsort(stable=True)
    distinct, counts = torch.unique_consecutive(rows[order], return_counts=True)
    firsts = counts.cumsum(0) - counts
    for count in counts.unique().tolist():
        alike = counts == count
        yield distinct[alike], order[firsts[alike] + torch.arange(count).unsqueeze(1)]
