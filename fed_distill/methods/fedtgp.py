"""FedProto with trained prototypes, which are near to those of merchants and apart from other classes'.

Zhang et al., "FedTGP: Trainable global prototypes with adaptive-margin-enhanced contrastive learning for data and model
heterogeneity in federated learning", AAAI 2024: a mean of prototypes shrinks the distance between classes. Here the
server trains one vector per class by a contrastive loss over all merchants' prototypes (eq. 8): a merchant's prototype
must be nearer to its class's vector than to the others by a margin, which is the largest distance of a class's mean
prototype to the nearest of another class, at most ``margin_cap`` (eq. 9, computed as in the authors' code).

Deviations from the paper: the vectors are trained themselves, from the mean prototypes in the first round and from
those of the round before later, where the paper trains an embedding and two layers on it from random weights; each step
is on all prototypes at once. The global student and the other deviations are those of ``fedproto``. The server keeps
the prototypes of all merchants of a round in memory, some kilobytes each.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat, PositiveInt
from fed_distill.methods.base import GlobalState
from fed_distill.methods.fedproto import FedProto, known, mean_prototypes
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.transport.messages import Uplink


@dataclass(frozen=True)
class FedTGP(FedProto):
    """regularization: lambda of eq. 11. server_steps: gradient steps on the prototypes per round (S). server_rate:
    their learning rate. margin_cap: tau, maximum margin. Other options: see ``fedproto``."""

    regularization: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.1
    server_steps: PositiveInt = 100
    server_rate: PositiveFloat = 0.01
    margin_cap: PositiveFloat = 100.0

    def merged(self, state: GlobalState, up: Iterable[Uplink]) -> Prototypes:
        """Train the prototypes from the previous ones, or from the mean for a class without."""
        uplinks = [uplink for uplink in up if uplink.get(Prototypes) is not None]
        means, before = mean_prototypes(uplinks), known(state)
        start = means if before is None else _first(before, means)
        sent = [uplink.need(Prototypes) for uplink in uplinks]
        own = torch.cat([one.means[one.present] for one in sent])
        classes = torch.cat([one.present.nonzero().squeeze(1) for one in sent])
        vectors, least = start.means, margin(means, self.margin_cap)
        for _ in range(self.server_steps):
            vectors = vectors.requires_grad_()
            loss = contrast(own, classes, vectors, start.present, least)
            (gradient,) = torch.autograd.grad(loss, vectors)
            vectors = (vectors - self.server_rate * gradient).detach()
        return Prototypes(vectors, start.present)


def margin(means: Prototypes, cap: float) -> float:
    """Return the margin of eq. 9: the largest distance of a present class's mean to the nearest of another, at most
    ``cap``; ``cap`` with fewer than two classes."""
    present = means.means[means.present]
    if len(present) < 2:
        return cap
    apart = torch.cdist(present, present).fill_diagonal_(torch.inf)
    return min(float(apart.min(dim=1).values.max()), cap)


def contrast(own: Tensor, classes: Tensor, vectors: Tensor, present: Tensor, least: float) -> Tensor:
    """Return the mean of the loss of eq. 8 over merchants' prototypes.

    :param own: merchants' prototypes ``[prototypes, width]``
    :param classes: their classes, int64 ``[prototypes]``
    :param vectors: trained prototypes ``[classes, width]``
    :param present: whether a class has one, bool ``[classes]``
    :param least: margin
    """
    distances = torch.cdist(own, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    scores = -(distances + least * F.one_hot(classes, len(vectors)))
    return F.cross_entropy(scores.masked_fill(~present, -torch.inf), classes)


def _first(one: Prototypes, other: Prototypes) -> Prototypes:
    """Return the prototypes of ``one``, and those of ``other`` for classes that it lacks."""
    means = torch.where(one.present.unsqueeze(1), one.means, other.means)
    return Prototypes(means, one.present | other.present)
