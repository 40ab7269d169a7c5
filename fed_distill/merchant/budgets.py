"""Log whether the merchants' budgets cover a run, before its first round."""

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
    """Log for each merchant whether its budget covers the run, and whether one run exhausts it.

    This is for units with noise at merchants; the price of the other units depends on the number of all merchants and
    is charged at once. The output depends on limits and ledgers, not on data: if the price depends on a merchant's
    size, it is that of the costliest size.
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
                "the budget of merchant %s may not cover this run: with earlier releases, the epsilon of an example is "
                "up to %.4g, and max_epsilon is %.4g. A federation that is not covered is refused before its first "
                "round",
                merchant,
                after,
                most,
            )
        elif exposure([*before, *run, *run]) > most + _SLACK:
            _log.warning(
                "this run may exhaust the budget of merchant %s: epsilon %.4g of %.4g, too much for another such run",
                merchant,
                after,
                most,
            )
        else:
            _log.info("the budget of merchant %s covers this run: epsilon %.4g of %.4g", merchant, after, most)
