"""Means of the merchants that agree: who pulls the student against most others is left out, and nobody pulls it far.

Coordinate by coordinate a Byzantine merchant hides among honest ones that differ for good reasons: of a rare word a few
know anything, and 30 % sign-flippers turn a median wherever the honest are not of one mind. Over all of an update they
stand out: the cosine with other merchants' updates is positive among the honest, however little they share, and
negative between them and who learned the opposite. A merchant stays whose median cosine with the others that stay is
positive; longer updates than the median one are shortened to it; then the mean is taken as if all had been honest.

Nguyen et al., "FLAME: Taming backdoors in federated learning", USENIX Security 2022, with this rule in the place of its
clustering and without its noise; cosine and length as in Cao et al., "FLTrust: Byzantine-robust federated learning via
trust bootstrapping", NDSS 2021, whose server has clean data to compare with.

All merchants' updates are held in memory at once, but only the rows that they sent.
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
"""Rows of a table that are compared together, which bounds the memory for it."""


class _Agreeing(Stateless, ABC):
    """Leaves merchants out and shortens updates, then has ``mean`` merge the rest."""

    @abstractmethod
    def mean(self) -> Aggregator:
        """What merges those that agree."""

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """The next global weights."""
        sent = [uplink for uplink in uplinks if uplink.get(StudentUpdate)]
        if not sent:
            raise UplinkRejected("no merchant sent an update that could be merged")
        products = inner_products(current, [uplink.need(StudentUpdate) for uplink in sent])
        lengths = products.diagonal().sqrt()
        factors = (lengths.median() / lengths.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
        kept = agreeing(products).nonzero().flatten().tolist()
        return self.mean().average(current, (shortened(sent[place], float(factors[place])) for place in kept))


@dataclass
class FedAgree(_Agreeing):
    """Mean, weighted by examples, of the merchants that agree with most others (Nguyen et al., 2022)."""

    def mean(self) -> Aggregator:
        """Over all of them, also in rows that they did not send."""
        return WeightedMean()


@dataclass
class FedSubAgree(_Agreeing):
    """The same, a row being averaged over those of them that touched it (Ding et al., NeurIPS 2022)."""

    def mean(self) -> Aggregator:
        """Over those that have a row."""
        return FedSubAvg()


def agreeing(products: Tensor) -> Tensor:
    """Whose median cosine with the others that stay is positive, bool ``[merchants]``; at least half of all stay.

    products: inner products of the updates, float64 ``[merchants, merchants]``. Byzantine merchants agree with each
    other: asked again without those that were found, the rest of them stand out more.
    """
    lengths = products.diagonal().sqrt()
    cosines = products / torch.outer(lengths, lengths).clamp_min(torch.finfo(torch.float64).tiny)
    stay = torch.ones(len(products), dtype=torch.bool)
    for _ in range(len(products)):
        before, stay = stay, _agreeing_with(cosines, stay)
        if torch.equal(before, stay):
            break
    return stay


def _agreeing_with(cosines: Tensor, asked: Tensor) -> Tensor:
    """Whose median cosine with the others of ``asked`` is positive, and the half that agrees most."""
    others = asked.expand_as(cosines) & ~torch.eye(len(cosines), dtype=torch.bool)
    agreement = cosines.masked_fill(~others, torch.nan).nanquantile(0.5, dim=1).nan_to_num(0.0)
    stay = agreement > 0.0
    stay[agreement.argsort(descending=True, stable=True)[: math.ceil(len(cosines) / 2)]] = True
    return stay


def inner_products(current: Weights, sent: Sequence[PartialWeights]) -> Tensor:
    """Inner products of the merchants' updates of ``current``, float64 ``[merchants, merchants]``; rows that a merchant
    did not send have not moved."""
    products = torch.zeros(len(sent), len(sent), dtype=torch.float64)
    for name, value in current.items():
        for moved in _updates(name, value, sent) if value.is_floating_point() else ():
            products += moved @ moved.T
    return products


def shortened(uplink: Uplink, factor: float) -> Uplink:
    """``uplink`` whose update is ``factor`` times as long, with its rows and counts."""
    sent = uplink.need(StudentUpdate)
    return uplink.having(replace(sent, arrays=times(sent.arrays, factor)))


def _updates(name: str, like: Tensor, sent: Sequence[PartialWeights]) -> Iterator[Tensor]:
    """All merchants' updates of one weight, ``[merchants, numbers]``: of what is sent in part, block by block."""
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
