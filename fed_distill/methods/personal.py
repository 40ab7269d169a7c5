"""Personalization: fine-tune the global student at each merchant and keep the result there.

Fine-tuning after federation is the basic baseline of personalization (Wang et al., "Federated evaluation of on-device
personalization", 2019). Only the merchant's own measurements are sent.
"""

from dataclasses import dataclass
from typing import ClassVar

from fed_distill.methods.base import Keeps, Trained
from fed_distill.methods.local import Local
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class Personal(Local):
    """local_epochs: epochs of a merchant's fine-tuning."""

    keeps: ClassVar[Keeps] = "own_student"
    sends: ClassVar[Kinds] = ()

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send no weights."""
        return Uplink(trained.merchant, trained.examples)
