"""FedMD whose consensus a minority of Byzantine merchants cannot move: a robust mean in place of the mean.

Chang et al., "Cronus: Robust and heterogeneous collaborative learning with black-box knowledge transfer", 2019: a
merchant sends soft labels on the public set, the server takes a robust mean of them, example by example, and merchants
learn it and then their own data again, as in ``fedmd`` (in the paper both at once). A Byzantine merchant reaches a
few numbers an example, not the millions of a student, which is what makes robust means work. All merchants' soft labels
are held in memory to compare them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.aggregation.robust_means import filtered_mean, median, renormalized, trimmed_mean
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState
from fed_distill.methods.fedmd import FedMD
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.transport.messages import Uplink


@dataclass(frozen=True)
class Cronus(FedMD):
    """robust: the robust mean: ``filter`` (the paper's), ``median`` or ``trimmed-mean``. byzantine_fraction: of the
    merchants, as expected, below 0.5: so many are left out of an example at most, by ``trimmed-mean`` at each end.
    teacher_share: weight of the teacher beside the merchants, in [0, 1]; 0 is the paper's method. Other options as of
    ``fedmd``."""

    robust: Literal["filter", "median", "trimmed-mean"] = "filter"
    byzantine_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """The robust mean of the merchants' soft labels."""
        sent = [labels.probabilities for uplink in up if (labels := uplink.get(SoftLabels)) is not None]
        if not sent:
            raise UplinkRejected("no merchant sent soft labels that could be merged")
        stacked = torch.stack(sent)
        if self.robust == "filter":
            return renormalized(filtered_mean(stacked, self.byzantine_fraction))
        return renormalized(
            median(stacked) if self.robust == "median" else trimmed_mean(stacked, self.byzantine_fraction)
        )
