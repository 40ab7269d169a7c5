"""Federated submodel averaging: an embedding row is averaged over the merchants that have the feature.

Ding et al., "Federated submodel optimization for hot and cold data features", NeurIPS 2022: a plain mean
divides a row's update by all merchants, also by those that never saw the feature, so rare features hardly
move. Dividing by the merchants that touched the row removes that bias.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fed_distill.aggregation.running import RunningUpdate
from fed_distill.config import PositiveFloat
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import Weights
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink

USES_PER_EXAMPLE = 4
"""Maximum weight of a merchant in a row, per training example.

Merchants report their own use counts, which have no exact bound; their examples and total use counts are truncated
before aggregation (``coordinator.counts``). Each text of a pair uses a feature once or twice, and proxy examples count
too: no merchant of the experiments on marketplace and PriceRunner reaches 3 uses per example, so that the limit only
affects merchants with overstated counts.
"""


@dataclass
class FedSubAvg:
    """Mean update of each row over the merchants that use it; weights outside of tables are averaged by examples.

    weight: a merchant's weight in a row's mean. ``uses``: its use count of the row, at most ``USES_PER_EXAMPLE`` times
    its examples; ``examples``: its number of examples; ``merchants``: equal weights, as in the paper.
    server_learning_rate: factor of the mean update. It is a running sum: memory does not grow with the number of
    merchants.
    """

    weight: Literal["uses", "examples", "merchants"] = "uses"
    server_learning_rate: PositiveFloat = 1.0

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """Return the next global weights; rows that no merchant sent are unchanged."""
        update, examples = RunningUpdate(current), 0
        row_weights: dict[str, Tensor] = {}
        for uplink in uplinks:
            sent = uplink.get(StudentUpdate)
            if sent is None:
                continue
            examples += uplink.examples
            for name in update.names:
                if name not in sent.rows:
                    update.add(name, sent, uplink.examples)
                    continue
                share = self._row_weights(uplink.examples, sent.counts[name])
                total = row_weights.setdefault(name, torch.zeros(len(current[name]), dtype=torch.float64))
                total.index_add_(0, sent.rows[name], share)
                update.add(name, sent, share)
        if not examples:
            raise UplinkRejected("no merchant sent an update that could be merged")
        rate = self.server_learning_rate
        return {name: update.moved(name, row_weights.get(name, examples), rate) for name in current}

    def _row_weights(self, examples: int, counts: Tensor) -> Tensor:
        if self.weight == "uses":
            return counts.double().clamp_max(float(USES_PER_EXAMPLE * examples))
        return torch.full(counts.shape, float(examples) if self.weight == "examples" else 1.0, dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Return no state."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, as there is no state."""
