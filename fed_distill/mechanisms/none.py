"""No privacy: controls, personal students and federations without a guarantee."""

from dataclasses import dataclass

from fed_distill.config import Experiment, FederationConfig, PrivacyConfig
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.base import Mechanism
from fed_distill.mechanisms.revealed import Revealed
from fed_distill.transport.messages import Kinds


@dataclass(frozen=True)
class Unprotected(Mechanism):
    """Adds no noise and gives no guarantee."""

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Raise ConfigError for randomized labels, see ``check_covered``."""
        self.check_covered(federation.method, sends)

    def check_covered(self, method: str, sends: Kinds) -> None:
        """Accept everything but randomized labels, which do not exist without a mechanism."""
        if any(kind.of_labels for kind in sends):
            raise ConfigError(
                f"method {method} sends merchants' labels, after they were randomized: set privacy.unit = 'label' and "
                "a finite privacy.epsilon, or choose another method, such as fedavg-kd"
            )

    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """List each payload as unprotected."""
        return [Revealed(kind.disclosure, "not protected") for kind in sends]
