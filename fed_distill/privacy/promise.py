"""What a private federation promises, in words and numbers: the unit, who must be trusted, what leaves, what it cost.

A report lists every part that leaves a merchant and how it is protected, the parts that are not among them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from fed_distill.config import PrivacyConfig
from fed_distill.errors import ConfigError

UNITS = {
    "example": "any one example of a merchant, added or taken away",
    "merchant": "all examples of any one merchant, added or taken away",
    "vote": "all examples of any one merchant, through the votes that they decide",
}
"""Whose presence cannot be told from what is released, by unit."""

TRUSTED = {
    "example": "nobody but the merchant itself: noise is added before anything leaves it",
    "merchant": "the server, which sees each merchant's update before it adds noise to their sum",
    "vote": "the server, which sees each merchant's votes before it adds noise to their counts",
}
"""Who must be trusted, by unit."""


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
    """

    merchants: int = 0
    epsilon: float = 0.0
    delta: float = 0.0
    noise_least: float = 0.0
    noise_most: float = 0.0
    untold: int = 0

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Of several groups of merchants."""
        several = list(parts)
        untold, known = sum(part.untold for part in several), [part for part in several if part.merchants]
        if not known:
            return cls(untold=untold)
        return cls(
            sum(part.merchants for part in known),
            max(part.epsilon for part in known),
            max(part.delta for part in known),
            min(part.noise_least for part in known),
            max(part.noise_most for part in known),
            untold,
        )


def check_covered(unit: str, method: str, sends: Sequence[str]) -> None:
    """ConfigError if ``method`` sends what is computed on private examples themselves, which no unit's noise covers."""
    bare = [part for part in sends if part in _BARE]
    if unit != "none" and bare:
        raise ConfigError(
            f"privacy.unit = {unit!r} does not cover all that method {method} sends: {_PARTS[bare[0]]} are computed on "
            "private examples, and not by a private mechanism; take another method, such as fedmd, or privacy.unit = "
            "'none'"
        )


def revealed(config: PrivacyConfig, sends: Sequence[str], personal: bool = False) -> list[Revealed]:
    """All that leaves a merchant in a federation whose method ``sends`` these parts, and after which merchants train
    students of their own if they are ``personal``."""
    tell = "exact, of examples that nobody trains on; not covered by the promise"
    scores = [
        Revealed(
            "how many of its test examples are right",
            f"{tell}; privacy.report_scores = false keeps them" if config.report_scores else "not sent",
        )
    ]
    if personal:
        of_own = (
            "exact, of a student that is trained on its examples without noise, and stays; not covered by the promise"
        )
        scores.append(
            Revealed(
                "how many of them its personal student has right",
                f"{of_own}; privacy.report_scores = false keeps them" if config.report_scores else "not sent",
            )
        )
    if config.unit == "example":
        parts = [Revealed(_PARTS[part], _EXAMPLE[part]) for part in sends]
        if "weights" in sends or "low_rank_update" in sends:
            parts.append(
                Revealed("which table rows it sends, and how often they are used", "those of the public proxy set")
            )
        parts += [
            Revealed(
                "number of training examples",
                f"with noise of deviation {config.size_noise:g}, once a federation, counted in epsilon",
            ),
            Revealed("training losses", "not sent"),
            *scores,
            Revealed("that it could not train, or that its budget is spent", "told, without numbers of its data"),
            Revealed("how long training takes", "not hidden: it grows with the number of examples"),
            _NOISE,
        ]
        return parts
    hidden = {
        "merchant": "seen by the server, which releases their noised mean",
        "vote": "seen by the server, which releases noised counts",
    }
    return [
        *(Revealed(_PARTS[part], hidden[config.unit]) for part in sends),
        Revealed("number of training examples, training losses", "seen by the server; every merchant counts the same"),
        *scores,
        Revealed("that it takes part at all", "seen by the server, which draws who takes part in a round"),
        _NOISE,
    ]


_NOISE = Revealed(
    "the noise",
    "drawn from the run's seed, as a simulation must be repeatable: who knows the seed, as the server does, can take "
    "it off, unless a site has a secret of its own (site.toml), as real sites should",
)
_PARTS = {
    "weights": "weights of its trained student",
    "soft_labels": "its student's soft labels on the proxy set",
    "votes": "its student's votes on the proxy set",
    "answered": "which proxy examples its student answers",
    "class_means": "its student's mean soft labels on its own examples of each class",
    "control_variate": "how its mean gradient changed since it last took part",
    "low_rank_update": "how its trained student's weights moved, of lower rank",
}
_BARE = ("class_means",)
"""Parts that look at private examples after training, and so are no post-processing of what was noised."""
_EXAMPLE = {
    "weights": "DP-SGD: every private step is clipped and noised",
    "soft_labels": "computed by a student that was trained by DP-SGD, so they cost nothing more",
    "votes": "cast by a student that was trained by DP-SGD, so they cost nothing more",
    "answered": "chosen by a student that was trained by DP-SGD, so they cost nothing more",
    "control_variate": "computed from the weights that DP-SGD gave, so it costs nothing more",
    "low_rank_update": "computed from the weights that DP-SGD gave, so it costs nothing more",
}


def bounded(epsilon: float) -> float | None:
    """``epsilon``, or None for an infinite one: so little noise promises nothing."""
    return epsilon if math.isfinite(epsilon) else None


def account(config: PrivacyConfig, spent: Spent, sends: Sequence[str], personal: bool = False) -> dict[str, Any]:
    """The ``privacy`` of a federation in ``summary.json``, JSON-ready; an epsilon of None is one that has no bound."""
    return {
        "unit": config.unit,
        "epsilon": bounded(spent.epsilon),
        "delta": spent.delta,
        "accountant": config.accountant,
        "noise_multiplier": {"least": spent.noise_least, "most": spent.noise_most},
        "merchants": spent.merchants,
        "untold_sites": spent.untold,
        "protects": UNITS[config.unit],
        "trusted": TRUSTED[config.unit],
        "reveals": [{"what": one.what, "how": one.how} for one in revealed(config, sends, personal)],
    }
