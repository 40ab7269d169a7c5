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

A release of randomized labels (``LabelSpend``) hides the label of an example, and not its presence. What remains hidden
together with other releases is the label: changing it replaces the example's clipped gradient (``example``: twice the
norm), or that of its group, its merchant's update or votes as above.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fed_distill.privacy.accounting import Spend

MOVED_BY = {"example": 1.0, "group": 2.0, "label": 1.0, "merchant": 2.0, "vote": 1.0}
"""How far one example changes the noised value, in units of the release's own sensitivity, for built-in units. Charges
of other units state it. (Unit ``label`` adds no noise to a value: its charges have a ``LabelSpend``.)"""
MOVED_BY_LABEL = {**MOVED_BY, "example": 2.0}
"""The same for a change of the label of one example; for a custom unit, twice what it states, by removing the example
and adding it with the other label."""


@dataclass(frozen=True)
class LabelSpend:
    """The cost of releasing the labels of some examples by randomized response: (epsilon, 0)-DP for each label.

    part: 0 for all examples; 1 or 2 for those in that half of a partition in which each example has a fixed place,
    whatever the other examples are. Raises ValueError for values out of range.
    """

    epsilon: float
    part: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and above 0, not {self.epsilon}")
        if self.part not in (0, 1, 2):
            raise ValueError(f"part must be 0, 1 or 2, not {self.part}")


def label_epsilon(spends: Iterable[LabelSpend]) -> float:
    """Return the epsilon of any one label over distinct releases; 0 without any.

    The sum over the releases that contain the label: those of all examples, and those of its half. So it is the larger
    of two sums (parallel composition over the halves, McSherry 2009, theorem 4).
    """
    totals: dict[int, float] = defaultdict(float)
    for spend in spends:
        totals[spend.part] += spend.epsilon
    return totals[0] + max(totals[1], totals[2])


def exposure_spends(
    unit: str, spends: Iterable[Spend], stated: float | None = None, of_label: bool = False
) -> tuple[Spend, ...]:
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
    :param of_label: return the cost for the label of an example, under a change of this label; the argument above is
        the same, with B and B' for both labels
    :raises ValueError: see ``check_move``
    """
    check_move(unit, stated)
    known = MOVED_BY_LABEL if of_label else MOVED_BY
    moved = known[unit] if stated is None else (2.0 if of_label else 1.0) * stated
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
