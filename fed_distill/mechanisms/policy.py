"""What a mechanism asks of a site's policy, which the site keeps in its own file (``merchant.limits``)."""

from datetime import time
from typing import Protocol


class MerchantLimit(Protocol):
    """What one merchant allows; each check raises BudgetExceeded."""

    @property
    def max_epsilon(self) -> float | None:
        """Bound on what one example is exposed to by all releases together; None for no bound."""

    def allows(self, unit: str) -> bool:
        """Whether the merchant takes part in what is protected by ``unit``."""

    def check_unit(self, merchant: str, unit: str) -> None:
        """The merchant takes part in what is protected by ``unit``."""

    def check_delta(self, merchant: str, delta: float, count: int) -> None:
        """``delta`` is small enough for ``count`` members of the unit."""

    def check_noise(self, merchant: str, noise_multiplier: float) -> None:
        """A private step has enough noise."""


class SiteRules(Protocol):
    """What a site as a whole takes part in."""

    def check(self, method: str | None, rounds: int, now: time) -> None:
        """NotAllowed, naming the rule, unless the site takes part in ``rounds`` rounds of ``method`` at this hour."""


class SitePolicy(Protocol):
    """The rules of a site and the limits of its merchants."""

    @property
    def rules(self) -> SiteRules:
        """The rules of the site."""

    def of(self, merchant: str) -> MerchantLimit:
        """The limit of one merchant."""
