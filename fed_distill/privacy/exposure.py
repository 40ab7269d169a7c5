"""The privacy cost for one example of a release that protects examples, groups or merchants.

A release that hides a whole group or merchant also hides each of its examples, and consumes their budgets. The cost
depends on how far one example can change the value to which noise is added:

- ``example``: adding or removing an example adds or removes one clipped gradient. The cost is that of the release.
- ``group``: adding or removing an example adds or removes a group, or replaces the clipped gradient of its group, which
  changes the sum by up to twice the norm. (The number of groups changes by at most 1, and is charged as 2.)
- ``merchant``: the clipped update of the merchant is replaced: again twice the norm, and with adaptive clipping the
  count changes by 1 instead of 1/2.
- ``vote``: the merchant's vote on every query may change. Votes are accounted for under replacement already: a
  histogram changes by sqrt(2) if a vote changes. The cost is that of the release.

So for groups and merchants the cost is that of adding or removing a member with half the noise multiplier.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from fed_distill.privacy.accounting import Spend

MOVED_BY = {"example": 1.0, "group": 2.0, "merchant": 2.0, "vote": 1.0}
"""How far one example changes the noised value, in units of the release's own sensitivity, for built-in units. Charges
of other units state it."""


def exposure_spends(unit: str, spends: Iterable[Spend], stated: float | None = None) -> tuple[Spend, ...]:
    """Return the cost of a release for one example, under addition or removal of this example.

    With sampling rate q and noise sigma, in units of the clipping norm, let A be the release without the member, and B
    and B' those with the two contributions that one example decides between: Gaussians at a distance of at most 2 from
    each other and 1 from A. For epsilon' = log(1 + q (exp(epsilon) - 1)) and beta = exp(epsilon' - epsilon), Balle,
    Barthe and Gaboardi 2018 (arXiv 1807.01647, theorem 2, advanced joint convexity) give for hockey-stick divergences D

        D_epsilon'((1 - q) A + q B || (1 - q) A + q B') = q D_epsilon(B || (1 - beta) A + beta B')
            <= q max(D_epsilon(B || A), D_epsilon(B || B')) <= q D_epsilon(N(2, sigma^2) || N(0, sigma^2)),

    which is D_epsilon' of the release that removes a member of norm 2: a mechanism of noise multiplier sigma / 2.

    This bounds a single release. Composition also depends on divergences at negative epsilon', which the inequality
    does not cover and where removal of a member has smaller ones than replacement. Rényi divergences, with which
    ``accounting.filtered`` composes, include both; that those of the replacement are no larger than those of the
    doubled removal is checked numerically (``tests/privacy/test_exposure.py``), not proved.

    :param unit: privacy unit of the release
    :param spends: cost of the release for a member of ``unit``
    :param stated: for a custom unit, how far one example changes the noised value
    :raises ValueError: see ``check_move``
    """
    check_move(unit, stated)
    moved = MOVED_BY[unit] if stated is None else stated
    return tuple(replace(spend, noise_multiplier=spend.noise_multiplier / moved) for spend in spends)


def check_move(unit: str, stated: float | None) -> None:
    """Check that the effect of one example on the noised value is defined.

    :param unit: privacy unit
    :param stated: None for a built-in unit; at least 1 for a custom unit, which is named by import path
    :raises ValueError: otherwise
    """
    if unit in MOVED_BY:
        if stated is not None:
            raise ValueError(f"unit {unit!r} is built in, so its charges must not have moved_by: remove it")
        return
    if stated is None or ":" not in unit:
        raise ValueError(
            f"unit must be one of {', '.join(MOVED_BY)} or an import path, not {unit!r}; "
            "charges of a custom unit require moved_by"
        )
    if not 1.0 <= stated < math.inf:
        raise ValueError(f"moved_by must be finite and at least 1, not {stated}")
