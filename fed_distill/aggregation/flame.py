"""FLAME without noise: discard updates by pairwise cosine, clip the rest to the median norm, average them.

Coordinate-wise rules fail on non-IID data: a rare word has honest updates from few merchants, and 30 % sign-flippers
change a median wherever honest updates disagree. Whole updates separate better: cosines between honest updates are
positive, however small, and cosines with updates trained towards the opposite are negative.

Nguyen et al., "FLAME: Taming backdoors in federated learning", USENIX Security 2022, algorithm 1. It differs in

- the filter: FLAME keeps the largest HDBSCAN cluster by cosine distance. Here a merchant is kept if its median cosine
  with the other kept merchants is positive, repeated among those kept until nothing changes. At least half of all are
  kept (FLAME: more than half);
- the mean, which is weighted by examples, and for submodels per row over the merchants that sent it (Ding et al.,
  NeurIPS 2022);
- the noise, which is omitted: differential privacy is the task of ``mechanisms/``.

All updates of a round are in memory at once, of embedding tables only the rows that were sent.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fed_distill.aggregation.base import Aggregator, Stateless
from fed_distill.aggregation.fedavg import WeightedMean
from fed_distill.aggregation.fedsubavg import FedSubAvg
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import PartialWeights, Weights, times
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink

BLOCK = 2048
"""Number of rows of a table that are compared at a time, which bounds memory."""


class _Filtered(Stateless, ABC):
    """Filters and clips updates, then averages them with ``mean``."""

    @abstractmethod
    def mean(self) -> Aggregator:
        """Return the aggregator of the kept updates."""

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """Return the next global weights.

        :raises UplinkRejected: no uplink has an update
        """
        sent = [uplink for uplink in uplinks if uplink.get(StudentUpdate)]
        if not sent:
            raise UplinkRejected("no merchant sent an update that could be merged")
        products = inner_products(current, [uplink.need(StudentUpdate) for uplink in sent])
        norms = products.diagonal().sqrt()
        factors = (norms.median() / norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
        kept = admitted(products).nonzero().flatten().tolist()
        return self.mean().average(current, (scaled(sent[place], float(factors[place])) for place in kept))


@dataclass
class Flame(_Filtered):
    """Mean of the kept and clipped updates, weighted by examples."""

    def mean(self) -> Aggregator:
        """Return the weighted mean; rows that a merchant did not send count as unchanged."""
        return WeightedMean()


@dataclass
class FedSubFlame(_Filtered):
    """``Flame`` for submodels: a row is averaged over the merchants that sent it (Ding et al., NeurIPS 2022)."""

    def mean(self) -> Aggregator:
        """Return the mean per row over the merchants that sent it."""
        return FedSubAvg()


def admitted(products: Tensor) -> Tensor:
    """Return which merchants are kept, bool ``[merchants]``; at least half of all.

    A merchant is kept if its median cosine with the other kept merchants is positive. The filter is repeated, because
    Byzantine updates that agree with each other stand out once some of them are discarded. Whoever is discarded stays
    so, as otherwise a merchant could be discarded and kept in turn without end.

    :param products: inner products of the updates, float64 ``[merchants, merchants]``
    """
    norms = products.diagonal().sqrt()
    cosines = products / torch.outer(norms, norms).clamp_min(torch.finfo(torch.float64).tiny)
    kept = torch.ones(len(products), dtype=torch.bool)
    while not torch.equal(kept, fewer := _filter(cosines, kept)):
        kept = fewer
    return kept


def _filter(cosines: Tensor, candidates: Tensor) -> Tensor:
    """Keep ``candidates`` with a positive median cosine with the others, and at least as many as half of all merchants,
    those with the largest medians."""
    others = candidates.expand_as(cosines) & ~torch.eye(len(cosines), dtype=torch.bool)
    medians = cosines.masked_fill(~others, torch.nan).nanquantile(0.5, dim=1).nan_to_num(0.0)
    order = medians.masked_fill(~candidates, -math.inf).argsort(descending=True, stable=True)
    kept = candidates & (medians > 0.0)
    kept[order[: math.ceil(len(cosines) / 2)]] = True
    return kept


def inner_products(current: Weights, sent: Sequence[PartialWeights]) -> Tensor:
    """Return inner products of the merchants' updates, float64 ``[merchants, merchants]``.

    Weights and rows that a merchant did not send count as unchanged.
    """
    products = torch.zeros(len(sent), len(sent), dtype=torch.float64)
    for name, value in current.items():
        for moved in _updates(name, value, sent) if value.is_floating_point() else ():
            products += moved @ moved.T
    return products


def scaled(uplink: Uplink, factor: float) -> Uplink:
    """Return ``uplink`` with its update multiplied by ``factor``; rows and counts are unchanged."""
    sent = uplink.need(StudentUpdate)
    return uplink.having(replace(sent, arrays=times(sent.arrays, factor)))


def _updates(name: str, like: Tensor, sent: Sequence[PartialWeights]) -> Iterator[Tensor]:
    """Yield all merchants' updates of one weight, ``[merchants, entries]``; partial tables in blocks of rows."""
    if not any(name in one.rows for one in sent):
        nothing = torch.zeros(like.shape)
        yield torch.stack([one.arrays.get(name, nothing).double().flatten() for one in sent])
        return
    for first in range(0, len(like), BLOCK):
        size = min(BLOCK, len(like) - first)
        moved = torch.zeros(len(sent), size, *like.shape[1:], dtype=torch.float64)
        for place, one in enumerate(sent):
            rows = one.rows[name]
            low, high = torch.searchsorted(rows, torch.tensor([first, first + size])).tolist()
            moved[place, rows[low:high] - first] = one.arrays[name][low:high].double()
        yield moved.flatten(1)
