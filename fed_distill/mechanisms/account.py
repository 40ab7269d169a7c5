"""What a private federation has cost its merchants, and what its summary says: promise, trust, what leaves, price.

A report lists everything that leaves a merchant and how it is protected, including what is not protected.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from fed_distill.config import ProtectedConfig
from fed_distill.mechanisms.base import Protecting
from fed_distill.transport.messages import Kinds


@dataclass(frozen=True)
class Spent:
    """What a federation has cost its merchants by their ledgers.

    merchants: how many were charged. epsilon, delta: the largest of any. noise_least, noise_most: noise multipliers of
    the releases that train (not of sizes). untold: sites that do not tell, whose merchants are not among these.
    epsilon_5, epsilon_6: the largest epsilon of any at delta 1e-5 and 1e-6, ``accounting.REPORTED_DELTAS``.
    """

    merchants: int = 0
    epsilon: float = 0.0
    delta: float = 0.0
    noise_least: float = 0.0
    noise_most: float = 0.0
    untold: int = 0
    epsilon_5: float = 0.0
    epsilon_6: float = 0.0

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Of several groups of merchants."""
        several = list(parts)
        untold, known = sum(part.untold for part in several), [part for part in several if part.merchants]
        if not known:
            return cls(untold=untold)
        return cls(
            merchants=sum(part.merchants for part in known),
            epsilon=max(part.epsilon for part in known),
            delta=max(part.delta for part in known),
            noise_least=min(part.noise_least for part in known),
            noise_most=max(part.noise_most for part in known),
            untold=untold,
            epsilon_5=max(part.epsilon_5 for part in known),
            epsilon_6=max(part.epsilon_6 for part in known),
        )


def bounded(epsilon: float) -> float | None:
    """``epsilon``, or None for an infinite one: so little noise promises nothing."""
    return epsilon if math.isfinite(epsilon) else None


def account(
    mechanism: Protecting,
    config: ProtectedConfig,
    spent: Spent,
    sends: Kinds,
    personal: bool = False,
    *,
    reproducible_noise: bool = True,
    largest_group: int | None = None,
) -> dict[str, Any]:
    """The ``privacy`` of a federation in ``summary.json``, JSON-ready; an epsilon of None is one that has no bound.

    sends, personal, reproducible_noise: as in ``Mechanism.disclose``. largest_group: most examples in one group of any
    merchant, where that is known: a promise to examples is that much weaker for the group.
    """
    told = mechanism.disclose(config, sends, personal, reproducible_noise=reproducible_noise)
    return {
        "unit": mechanism.name,
        "group": mechanism.group(),
        "largest_group": largest_group,
        "epsilon": bounded(spent.epsilon),
        "delta": spent.delta,
        "epsilon_at": {"1e-05": bounded(spent.epsilon_5), "1e-06": bounded(spent.epsilon_6)},
        "accountant": config.accountant,
        "noise_multiplier": {"least": spent.noise_least, "most": spent.noise_most},
        "merchants": spent.merchants,
        "untold_sites": spent.untold,
        "protects": mechanism.words.hides,
        "trusted": mechanism.words.trusted,
        "reproducible_noise": reproducible_noise,
        "reveals": [{"what": one.what, "how": one.how} for one in told],
    }
