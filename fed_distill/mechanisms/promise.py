"""What a private federation promises, in words and numbers: the unit, who must be trusted, what leaves, what it cost.

A report lists everything that leaves a merchant and how it is protected, including what is not protected.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from fed_distill.config import PrivacyConfig
from fed_distill.errors import ConfigError
from fed_distill.transport.messages import Kinds

UNITS = {
    "example": "any one example of a merchant, added or removed",
    "group": "all examples of any one group of a merchant, added or removed together",
    "merchant": "all examples of any one merchant, added or removed",
    "vote": "all examples of any one merchant, through the votes that they decide",
}
"""Whose presence cannot be told from what is released, by unit."""

_OWN = "the merchant itself, which adds noise before anything leaves it, and whoever supplies the code that it runs"
TRUSTED = {
    "example": _OWN,
    "group": _OWN,
    "merchant": "the server, which receives each merchant's update and adds noise to their sum",
    "vote": "the server, which receives each merchant's votes and adds noise to their counts",
}
"""Who must be trusted, by unit."""

GROUPS = {
    "group": "examples with the same group number",
    "text": "examples with the same first text",
    "pair": "examples with the same second text",
}
"""What a group is for unit ``group``, by ``privacy.group``."""


@dataclass(frozen=True)
class Revealed:
    """One part of what leaves a merchant, and how it is protected."""

    what: str
    how: str


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


def check_covered(unit: str, method: str, sends: Kinds) -> None:
    """Raise ConfigError if ``method`` sends something computed on private examples that no unit's noise covers."""
    bare = [kind for kind in sends if kind.covered is None]
    if unit != "none" and bare:
        raise ConfigError(
            f"privacy.unit = {unit!r} does not cover everything that method {method} sends: {bare[0].disclosure} are "
            "computed on private examples without noise. Choose another method, such as fedmd, or set privacy.unit = "
            "'none'."
        )


def revealed(
    config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
) -> list[Revealed]:
    """All that leaves a merchant in a federation whose method ``sends`` these payloads.

    personal: merchants train students of their own afterwards. reproducible_noise: noise is drawn from the run's seed,
    as in a simulation, and not from secrets of the sites and of the server.
    """
    last = [*_scores(config, personal), _validation(reproducible_noise)]
    if config.unit in ("example", "group"):
        return [*_by_merchants(config, sends), *last, _noise(config, reproducible_noise)]
    hidden = {
        "merchant": "received by the server, which releases their noised mean",
        "vote": "received by the server, which releases noised counts",
    }
    return [
        *(Revealed(kind.disclosure, hidden[config.unit]) for kind in sends),
        Revealed("number of training examples, training losses", "received by the server; merchants have equal weight"),
        Revealed("that it takes part in a round", "known to the server, which draws the merchants of each round"),
        Revealed(
            "number of merchants in a round, bytes sent, who was refused",
            "in the run's records and report, exactly; not covered by the promise, which is about the student: the "
            "records must stay with the server",
        ),
        *last,
        _noise(config, reproducible_noise),
    ]


def _by_merchants(config: PrivacyConfig, sends: Kinds) -> list[Revealed]:
    """What leaves a merchant that adds the noise itself."""
    parts = [Revealed(kind.disclosure, kind.covered or "not covered at all") for kind in sends]
    if any(kind.holds_weights for kind in sends):
        parts.append(
            Revealed("which embedding rows it sends, and how often they are used", "those of the public proxy set")
        )
    return [
        *parts,
        Revealed(
            "number of training examples" if config.unit == "example" else "number of groups",
            f"sent with noise of standard deviation {config.size_noise:g}, once a federation, counted in epsilon",
        ),
        Revealed("training losses", "not sent"),
        Revealed("that it takes part in a round", "not hidden"),
        Revealed("that it cannot train, or that its budget is spent", "sent as a message without figures of its data"),
        Revealed("how long training takes", "not hidden: it grows with the number of examples"),
    ]


def _scores(config: PrivacyConfig, personal: bool) -> list[Revealed]:
    """Test results that merchants send."""
    setting = "set privacy.report_scores = false to keep them"
    scores = [
        Revealed(
            "number of correct test examples",
            f"sent exactly; not covered by the promise, though nobody trains on these examples; {setting}"
            if config.report_scores
            else "not sent",
        )
    ]
    if personal:
        scores.append(
            Revealed(
                "number of correct test examples of its personal student",
                "sent exactly; not covered by the promise: this student is trained on its examples without noise, and "
                f"stays with the merchant; {setting}"
                if config.report_scores
                else "not sent",
            )
        )
    return scores


def _validation(simulated: bool) -> Revealed:
    rows = (
        "in this simulation the validation set also contains merchants' held-out rows, so these scores are exact "
        "figures of them and not covered by the promise; early stopping uses the server's own rows only"
        if simulated
        else "the validation rows are the server's own"
    )
    return Revealed(
        "validation scores of each round's student",
        f"computed by the server from the released student, which costs no further epsilon; {rows}",
    )


def _noise(config: PrivacyConfig, reproducible: bool) -> Revealed:
    if reproducible:
        how = (
            "drawn from the run's seed, so that this simulation can be repeated: whoever knows the seed can subtract "
            "it. The run shows what real sites would promise"
        )
    else:
        whose = "each site" if config.unit in ("example", "group") else "the server"
        how = f"drawn from a secret of {whose}, which is never sent: it cannot be reproduced from the run's seed"
    return Revealed("the noise", how)


def bounded(epsilon: float) -> float | None:
    """``epsilon``, or None for an infinite one: so little noise promises nothing."""
    return epsilon if math.isfinite(epsilon) else None


def account(
    config: PrivacyConfig,
    spent: Spent,
    sends: Kinds,
    personal: bool = False,
    *,
    reproducible_noise: bool = True,
    largest_group: int | None = None,
) -> dict[str, Any]:
    """The ``privacy`` of a federation in ``summary.json``, JSON-ready; an epsilon of None is one that has no bound.

    sends, personal, reproducible_noise: as in ``revealed``. largest_group: most examples in one group of any merchant,
    where that is known: a promise to examples is that much weaker for the group.
    """
    told = revealed(config, sends, personal, reproducible_noise=reproducible_noise)
    return {
        "unit": config.unit,
        "group": GROUPS[config.group] if config.unit == "group" else None,
        "largest_group": largest_group,
        "epsilon": bounded(spent.epsilon),
        "delta": spent.delta,
        "epsilon_at": {"1e-05": bounded(spent.epsilon_5), "1e-06": bounded(spent.epsilon_6)},
        "accountant": config.accountant,
        "noise_multiplier": {"least": spent.noise_least, "most": spent.noise_most},
        "merchants": spent.merchants,
        "untold_sites": spent.untold,
        "protects": UNITS[config.unit],
        "trusted": TRUSTED[config.unit],
        "reproducible_noise": reproducible_noise,
        "reveals": [{"what": one.what, "how": one.how} for one in told],
    }
