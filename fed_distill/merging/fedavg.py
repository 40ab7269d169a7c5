"""Federated averaging: the merchants' mean weights, each merchant counting by its examples.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
algorithm 1. A running sum, so that memory does not grow with the number of merchants.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fed_distill.merging.running import mean_weights
from fed_distill.transport.messages import Uplink, Weights


@dataclass
class FedAvg:
    """Mean weighted by examples (McMahan et al., AISTATS 2017).

    weight: what a merchant counts for. ``examples``: its examples. ``inverse-variance``: their square. Under
    example-level DP the noise on a merchant's mean gradient has a deviation of 1/n of its n examples, so that this
    mean has the least noise; the price is that large merchants decide more (noise-aware aggregation, Malekmohammadi
    et al., "Noise-aware algorithm for heterogeneous differentially private federated learning", ICML 2024).
    """

    weight: Literal["examples", "inverse-variance"] = "examples"

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """The next global weights; rows that a merchant did not send count as they were."""
        return mean_weights(current, uplinks, 2 if self.weight == "inverse-variance" else 1)

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept between rounds."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""
