"""Whether the merchants' budgets cover a run, which their site's people are told before its first round."""

import logging
from collections.abc import Iterable

from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.allowance import costliest_charges
from fed_distill.merchant.limits import Limits
from fed_distill.privacy.ledger import exposure

_log = logging.getLogger(__name__)
_SLACK = 1e-9


def tell_budgets(protection: Protection[Limits], merchants: Iterable[str]) -> None:
    """Say in the log of whom the budget covers the whole run, of whom it does not, and whom one run uses up.

    Of units whose noise merchants add themselves; the price of the others depends on how many merchants there are at
    all, and is paid at once. What is told depends on limits and ledgers, not on data: where the price depends on a
    merchant's size, it is that of the costliest.
    """
    experiment, unit = protection.experiment, protection.experiment.privacy.unit
    limited = [name for name in merchants if protection.limits.of(name).max_epsilon is not None]
    limited = [name for name in limited if protection.limits.of(name).allows(unit)]
    if not limited or not isinstance(mechanism_of(experiment), AtMerchants):
        return
    run = costliest_charges(experiment)
    for merchant in limited:
        most = protection.limits.of(merchant).max_epsilon
        assert most is not None
        before = [charge for charge in protection.charges(merchant) if charge.run != experiment.name]
        after = exposure([*before, *run])
        if after > most + _SLACK:
            _log.warning(
                "the budget of merchant %s may not cover this run: it exposes an example to epsilon %.4g at most, with "
                "what was spent before, and max_epsilon is %.4g. A federation that is not covered is refused before "
                "its first round",
                merchant,
                after,
                most,
            )
        elif exposure([*before, *run, *run]) > most + _SLACK:
            _log.warning(
                "this run may use up the budget of merchant %s: epsilon %.4g of %.4g, which leaves too little for "
                "another run like it",
                merchant,
                after,
                most,
            )
        else:
            _log.info("the budget of merchant %s covers this run: epsilon %.4g of %.4g", merchant, after, most)
