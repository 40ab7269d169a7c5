"""The last soft labels of each merchant, cached at the server, so that merchants send changes only."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.storage.merchant_store import MerchantStore
from fed_distill.transport.messages import Uplink
from fed_distill.transport.requests import TrainRequest

FOLDER = "soft-labels"


@dataclass(frozen=True)
class ReceivedSoftLabels:
    """Soft labels received in the rounds of one federation before ``round``, and in it.

    They are stored on disk, as memory would grow with the number of merchants.
    """

    store: MerchantStore
    arm: str
    seed: int
    round: int

    @classmethod
    def below(cls, state: Path, arm: str, seed: int, round: int) -> "ReceivedSoftLabels":
        """Open the store in ``state``, the run's ``checkpoint`` folder."""
        return cls(MerchantStore(state / FOLDER), arm, seed, round)

    def with_known_rounds(self, request: TrainRequest) -> TrainRequest:
        """Return ``request`` with the round of each merchant's cached soft labels."""
        newest = (self.store.newest(self.arm, self.seed, name, self.round) for name in request.merchants)
        return replace(request, known=tuple(newest))

    def of(self, merchant: str) -> Tensor | None:
        """Return a merchant's soft labels ``[proxy, classes]`` before this round; None if it sent none."""
        kept = self.store.load(self.arm, self.seed, merchant, self.round)
        return None if kept is None else kept["soft_labels"]

    def keep(self, uplink: Uplink) -> None:
        """Store a merchant's soft labels of this round."""
        labels = uplink.get(SoftLabels)
        if labels is not None:
            content = {"soft_labels": labels.probabilities}
            self.store.save(self.arm, self.seed, uplink.merchant, self.round, content)
