"""Adapt the global student to each merchant, and leave the result there.

Fine-tuning after federation, the plain baseline of personalization (Wang et al., "Federated evaluation of
on-device personalization", 2019). Only the merchant's own measurements leave it.
"""

from dataclasses import dataclass
from typing import ClassVar

from fed_distill.methods.base import Trained
from fed_distill.methods.local import Local
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class Personal(Local):
    """local_epochs: epochs of a merchant's own adaptation."""

    personal: ClassVar[bool] = True
    sends: ClassVar[Kinds] = ()

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """No weights."""
        return Uplink(trained.merchant, trained.examples)
