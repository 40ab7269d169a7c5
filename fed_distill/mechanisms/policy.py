"""The interface of a site's policy as mechanisms use it; the implementation is ``merchant.limits``."""

from datetime import time
from typing import Protocol


class MerchantLimit(Protocol):
    """The limits of one merchant; each check raises BudgetExceeded."""

    @property
    def max_epsilon(self) -> float | None:
        """Limit on the exposure of one example over all releases; None for no limit."""

    def allows(self, unit: str) -> bool:
        """Whether the merchant participates in releases protected by ``unit``."""

    def check_unit(self, merchant: str, unit: str) -> None:
        """Check that the merchant participates in releases protected by ``unit``."""

    def check_delta(self, merchant: str, delta: float, count: int) -> None:
        """Check that ``delta`` is small enough for ``count`` members of the unit."""

    def check_noise(self, merchant: str, noise_multiplier: float) -> None:
        """Check that a private step has enough noise."""


class SiteRules(Protocol):
    """The policy of a site as a whole."""

    def check(self, method: str | None, rounds: int, now: time) -> None:
        """Raise NotAllowed, naming the rule, unless ``rounds`` rounds of ``method`` are allowed at this time of day."""


class SitePolicy(Protocol):
    """The policy of a site and the limits of its merchants."""

    @property
    def rules(self) -> SiteRules:
        """The policy of the site."""

    def of(self, merchant: str) -> MerchantLimit:
        """Return the limits of one merchant."""
