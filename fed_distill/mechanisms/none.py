"""No privacy: controls, what never leaves its merchant, and federations that promise nothing."""

from dataclasses import dataclass

from fed_distill.config import Experiment, FederationConfig, PrivacyConfig
from fed_distill.mechanisms.base import Mechanism
from fed_distill.mechanisms.revealed import Revealed
from fed_distill.transport.messages import Kinds


@dataclass(frozen=True)
class Unprotected(Mechanism):
    """Adds nothing and promises nothing."""

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Everything may be sent."""

    def check_covered(self, method: str, sends: Kinds) -> None:
        """Everything may be sent."""

    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """Each payload as it was computed."""
        return [Revealed(kind.disclosure, "not protected") for kind in sends]
