"""The soft labels that each merchant sent last, kept at the server, so that it need not send again what stays."""

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
    """What was received in the rounds of one federation before ``round``, and now in it.

    Kept on disk and not in memory, which would grow with the number of merchants.
    """

    store: MerchantStore
    arm: str
    seed: int
    round: int

    @classmethod
    def below(cls, state: Path, arm: str, seed: int, round: int) -> "ReceivedSoftLabels":
        """In ``state``, the run's ``checkpoint`` folder."""
        return cls(MerchantStore(state / FOLDER), arm, seed, round)

    def told(self, request: TrainRequest) -> TrainRequest:
        """``request`` with the round of which the soft labels of each of its merchants are there."""
        newest = (self.store.newest(self.arm, self.seed, name, self.round) for name in request.merchants)
        return replace(request, known=tuple(newest))

    def of(self, merchant: str) -> Tensor | None:
        """A merchant's soft labels ``[proxy, classes]`` before this round; None if it sent none."""
        kept = self.store.load(self.arm, self.seed, merchant, self.round)
        return None if kept is None else kept["soft_labels"]

    def keep(self, uplink: Uplink) -> None:
        """Keep what came from a merchant in this round."""
        labels = uplink.get(SoftLabels)
        if labels is not None:
            content = {"soft_labels": labels.probabilities}
            self.store.save(self.arm, self.seed, uplink.merchant, self.round, content)
