"""The privacy account of a federation for its summary: guarantee, trust, disclosures and cost.

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
    """The privacy cost of a federation according to its merchants' ledgers.

    merchants: number of charged merchants. epsilon, delta: maximum over merchants. noise_least, noise_most: range of
    the noise multipliers of training releases (not of sizes). untold: number of sites without a valid report; their
    merchants are not counted. epsilon_5, epsilon_6: maximum epsilon at delta 1e-5 and 1e-6,
    ``accounting.REPORTED_DELTAS``.
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
        """Combine the costs of several groups of merchants."""
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
    """Return ``epsilon``, or None if it is infinite."""
    return epsilon if math.isfinite(epsilon) else None


def account(
    mechanism: Protecting,
    config: ProtectedConfig,
    spent: Spent,
    sends: Kinds,
    personal: bool = False,
    *,
    reproducible_noise: bool = True,
) -> dict[str, Any]:
    """Return the entry ``privacy`` of a federation in ``summary.json``; an unbounded epsilon is None.

    :param mechanism: the mechanism
    :param config: the ``[privacy]`` table
    :param spent: cost of the federation
    :param sends: payloads that merchants send
    :param personal: see ``Mechanism.disclose``
    :param reproducible_noise: see ``Mechanism.disclose``
    """
    disclosed = mechanism.disclose(config, sends, personal, reproducible_noise=reproducible_noise)
    return {
        "unit": mechanism.name,
        "group": mechanism.group(),
        "largest_group": None,  # known in a simulation only, whose summary adds it
        "epsilon": bounded(spent.epsilon),
        "delta": spent.delta,
        "epsilon_at": {"1e-05": bounded(spent.epsilon_5), "1e-06": bounded(spent.epsilon_6)},
        "accountant": config.accountant,
        "noise_multiplier": {
            "least": spent.noise_least if mechanism.gaussian else None,
            "most": spent.noise_most if mechanism.gaussian else None,
        },
        "merchants": spent.merchants,
        "untold_sites": spent.untold,
        "protects": mechanism.words.hides,
        "trusted": mechanism.words.trusted,
        "reproducible_noise": reproducible_noise,
        "reveals": [{"what": one.what, "how": one.how} for one in disclosed],
    }
