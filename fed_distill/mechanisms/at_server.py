"""Mechanisms with noise added by a trusted server to aggregates of all merchants' uplinks.

Server and sites compute price and noise from the same terms. A merchant charges its ledger for all rounds at once,
before the first. At real sites the noise is derived from a secret of the server and from all bits of its input, so that
a federation with other settings, data or answers has other noise. The secret stays in the folder of the runs.
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
    """A mechanism that hides a merchant's whole contribution in the server's releases."""

    @abstractmethod
    def spends(self, terms: Terms) -> tuple[Spend, ...]:
        """Return the cost of all rounds of a federation for each merchant."""

    def delta(self, config: ProtectedConfig, merchants: int) -> float:
        """Return the delta of the guarantee for each of ``merchants``."""
        return default_delta(merchants) if config.delta is None else config.delta

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Raise ConfigError for a method that sends a payload without noise."""
        self.check_covered(federation.method, sends)
        wrong = [kind for kind in sends if self.covers(kind) is None]
        if wrong:
            raise ConfigError(
                f"privacy.unit = {self.name!r} adds no noise to {wrong[0].disclosure}, which method "
                f"{federation.method} sends: choose another method or unit"
            )

    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """List what the server receives and releases."""
        return [
            *(Revealed(kind.disclosure, self.covers(kind) or "not covered at all") for kind in sends),
            Revealed(
                "number of training examples, training losses", "received by the server; merchants have equal weight"
            ),
            Revealed("its participation in a round", "known to the server, which samples the merchants of each round"),
            Revealed(
                "number of merchants in a round, bytes sent, rejected uplinks",
                "exact in the run's records and report; not covered by the guarantee, which is about the student: the "
                "records must stay with the server",
            ),
            *scores(config, personal),
            validation(reproducible_noise),
            noise("the server", reproducible_noise),
        ]
