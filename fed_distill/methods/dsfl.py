"""FedMD with a sharpened consensus, since the mean over merchants with heterogeneous data is nearly uniform.

Itahara et al., "Distillation-based semi-supervised federated learning for communication-efficient collaborative
training with non-IID private data", IEEE Transactions on Mobile Computing 2021 (DS-FL): entropy reduction aggregation
(ERA) is the softmax of the mean probabilities at a temperature below 1, softmax(mean / T). Azuma et al., "Soft-label
caching and sharpening for communication-efficient federated distillation", 2025 (SCARLET), use a power instead,
mean^beta / sum mean^beta: unlike ERA, it is the identity for beta = 1, and one-hot means are fixed points.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import soften
from fed_distill.methods.base import GlobalState
from fed_distill.methods.fedmd import FedMD
from fed_distill.transport.messages import Uplink


@dataclass(frozen=True)
class DSFL(FedMD):
    """aggregation: sharpening of the mean: ``era``, ``enhanced-era`` (the power), or ``mean`` for none.
    era_temperature: T of ``era``; 0.1 in the paper. beta: exponent of ``enhanced-era``. teacher_share: weight of the
    teacher beside the sharpened mean, in [0, 1]; 0 is the paper's method. Other options: see ``fedmd``."""

    aggregation: Literal["era", "enhanced-era", "mean"] = "era"
    era_temperature: PositiveFloat = 0.1
    beta: PositiveFloat = 1.5
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    def idle_options(self, rounds: int) -> dict[str, str]:
        """As in ``fedmd``, and the parameters of another aggregation."""
        of = {"era_temperature": "era", "beta": "enhanced-era"}
        reason = f'aggregation is "{self.aggregation}"'
        others = {name: reason for name, aggregation in of.items() if aggregation != self.aggregation}
        return {**super().idle_options(rounds), **others}

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """Return the sharpened mean of the merchants' soft labels."""
        mean = super().agree(state, up)
        if self.aggregation == "era":
            return torch.softmax(mean / self.era_temperature, dim=-1)
        return soften(mean, 1.0 / self.beta) if self.aggregation == "enhanced-era" else mean
