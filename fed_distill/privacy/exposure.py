"""What a release that hides examples, groups or merchants costs one example.

A release that hides a whole group or merchant also hides each of its examples, and spends their budgets. How much it
spends depends on how far one example can move what is noised:

- ``example``: one example more or less adds or removes one clipped gradient. The cost is that of the release.
- ``group``: one example more or less adds or removes a group, or replaces the clipped gradient of the group that it
  belongs to by another one, which moves the noised sum by up to twice the norm. (A noised number of groups moves by 1
  at most, and is charged as twice that.)
- ``merchant``: it replaces its merchant's clipped update by another one: again twice the norm, and with an adaptive
  norm the count moves by 1 instead of 1/2.
- ``vote``: it may change its merchant's vote on every question. Votes are accounted for under replacement already: a
  histogram moves by sqrt(2) when a vote changes sides. The cost is that of the release.

So the price of a group's or merchant's release is that of adding or removing a member with half the noise multiplier.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from fed_distill.privacy.accounting import Spend

MOVED_BY = {"example": 1.0, "group": 2.0, "merchant": 2.0, "vote": 1.0}
"""How far one example moves what is noised, in units of the release's own sensitivity, by built-in unit: what ledgers
need not state of these. Of any other unit each charge states it."""


def exposure_spends(unit: str, spends: Iterable[Spend], stated: float | None = None) -> tuple[Spend, ...]:
    """What the ``spends`` of a release of privacy unit ``unit`` cost one example, in terms of adding or removing it.

    stated: how far one example moves what is noised, of a unit that is not built in.

    With sampling rate q and noise sigma, in units of the clipping norm, let A be the release without the member, and B
    and B' those with the two contributions that an example decides between: Gaussians at a distance of at most 2 of
    each other and 1 of A. For epsilon' = log(1 + q (exp(epsilon) - 1)) and beta = exp(epsilon' - epsilon), Balle,
    Barthe and Gaboardi 2018 (arXiv 1807.01647, theorem 2, advanced joint convexity) give for hockey-stick divergences D

        D_epsilon'((1 - q) A + q B || (1 - q) A + q B') = q D_epsilon(B || (1 - beta) A + beta B')
            <= q max(D_epsilon(B || A), D_epsilon(B || B')) <= q D_epsilon(N(2, sigma^2) || N(0, sigma^2)),

    which is D_epsilon' of the release that removes a member of norm 2: a mechanism of noise multiplier sigma / 2.

    That is a bound for one release. Composition also depends on divergences at negative epsilon', of which the
    inequality says nothing, and where a member's removal has less than a replacement. Rényi divergences, by which
    ``accounting.filtered`` composes, take both into account; that those of the replacement are no larger than those of
    the doubled removal is checked numerically (``tests/privacy/test_exposure.py``), not proved.

    Raises ValueError as ``check_move`` does.
    """
    check_move(unit, stated)
    moved = MOVED_BY[unit] if stated is None else stated
    return tuple(replace(spend, noise_multiplier=spend.noise_multiplier / moved) for spend in spends)


def check_move(unit: str, stated: float | None) -> None:
    """Raise ValueError unless it is known how far one example moves what is noised: of a built-in unit from here alone,
    and of one of one's own, which has an import path for a name, as ``stated``, at least 1."""
    if unit in MOVED_BY:
        if stated is not None:
            raise ValueError(
                f"unit {unit!r} is built in: how far an example moves what it noises is not up to a charge"
            )
        return
    if stated is None or ":" not in unit:
        raise ValueError(
            f"unit must be one of {', '.join(MOVED_BY)}, not {unit!r}; one of your own is an import path, "
            "and each of its charges has moved_by"
        )
    if not 1.0 <= stated < math.inf:
        raise ValueError(f"moved_by must be finite and at least 1, not {stated}")
