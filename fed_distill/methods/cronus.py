"""FedMD with a robust mean as consensus, which a Byzantine minority of merchants cannot move far.

Chang et al., "Cronus: Robust and heterogeneous collaborative learning with black-box knowledge transfer", 2019: a
merchant sends soft labels on the public set, the server computes their robust mean per example, and merchants train on
it and then on their own data, as in ``fedmd`` (in the paper on both at once). A Byzantine merchant controls a few
numbers per example instead of the millions of a student, which makes robust means effective. All merchants' soft labels
are held in memory.
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
    """robust: the robust mean: ``filter`` (the paper's), ``median`` or ``trimmed-mean``. byzantine_fraction: expected
    share of Byzantine merchants, below 0.5: maximum share excluded per example, for ``trimmed-mean`` at each end.
    teacher_share: weight of the teacher beside the merchants, in [0, 1]; 0 is the paper's method. Other options: see
    ``fedmd``."""

    robust: Literal["filter", "median", "trimmed-mean"] = "filter"
    byzantine_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    def idle_options(self, rounds: int) -> dict[str, str]:
        """As in ``fedmd``, and the share that a median excludes."""
        median = {"byzantine_fraction": 'robust is "median"'} if self.robust == "median" else {}
        return {**super().idle_options(rounds), **median}

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """Return the robust mean of the merchants' soft labels."""
        sent = [labels.probabilities for uplink in up if (labels := uplink.get(SoftLabels)) is not None]
        if not sent:
            raise UplinkRejected("no merchant sent soft labels that could be merged")
        stacked = torch.stack(sent)
        if self.robust == "filter":
            return renormalized(filtered_mean(stacked, self.byzantine_fraction))
        return renormalized(
            median(stacked) if self.robust == "median" else trimmed_mean(stacked, self.byzantine_fraction)
        )
