"""Units whose noise the server is trusted to add, to what it makes of all merchants' uplinks.

Server and sites compute price and noise from the same terms, so that a merchant charges its ledger by what was agreed
on: all rounds at once, before the first. At real sites noise is drawn from a secret of the server's, and depends on
every bit of what it is added to: a federation that is run again with other settings, data or answers gets other noise.
The secret stays in the folder of the runs.
"""

from abc import abstractmethod
from dataclasses import dataclass

from fed_distill.config import Experiment, FederationConfig, PrivacyConfig, ProtectedConfig
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.base import Protecting, Terms
from fed_distill.mechanisms.revealed import Revealed, noise, scores, validation
from fed_distill.privacy.accounting import Spend, default_delta
from fed_distill.transport.messages import Kinds


@dataclass(frozen=True)
class AtServer(Protecting):
    """A mechanism that hides a merchant's whole part in what the server releases."""

    @abstractmethod
    def spends(self, terms: Terms) -> tuple[Spend, ...]:
        """What all rounds of a federation cost each of its merchants."""

    def delta(self, config: ProtectedConfig, merchants: int) -> float:
        """Delta of the promise to each of so many merchants."""
        return default_delta(merchants) if config.delta is None else config.delta

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """ConfigError for a method that sends anything that the server does not noise."""
        self.check_covered(federation.method, sends)
        wrong = [kind for kind in sends if self.covers(kind) is None]
        if wrong:
            raise ConfigError(
                f"privacy.unit = {self.name!r} does not noise all that method {federation.method} sends: not "
                f"{wrong[0].disclosure}"
            )

    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """All that the server receives, and what it makes of it."""
        return [
            *(Revealed(kind.disclosure, self.covers(kind) or "not covered at all") for kind in sends),
            Revealed(
                "number of training examples, training losses", "received by the server; merchants have equal weight"
            ),
            Revealed("that it takes part in a round", "known to the server, which draws the merchants of each round"),
            Revealed(
                "number of merchants in a round, bytes sent, who was refused",
                "in the run's records and report, exactly; not covered by the promise, which is about the student: the "
                "records must stay with the server",
            ),
            *scores(config, personal),
            validation(reproducible_noise),
            noise("the server", reproducible_noise),
        ]
