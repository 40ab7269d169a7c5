"""Open a site: merchants, policy and state."""

from pathlib import Path

from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.examples import FederatedData
from fed_distill.errors import (
    ConfigError,
)
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.answers import ANSWERS, Answers
from fed_distill.merchant.assignment import assign_merchants
from fed_distill.merchant.holdings import Holdings
from fed_distill.merchant.limits import Limits
from fed_distill.merchant.site import Site
from fed_distill.storage.merchant_store import CODING, STUDENTS, MerchantStore


def open_site(
    experiment: Experiment,
    part: int,
    parts: int,
    data: FederatedData | None = None,
    limits: Limits | None = None,
    secret: str = "",
) -> Site:
    """Open site ``part`` of ``parts`` with its share of the merchants and a state folder in the run's.

    :param data: data of all merchants; None for the experiment's
    :param limits: limits of the site; None for the experiment's
    :param secret: as for ``Protection``
    """
    data = load(experiment.data) if data is None else data
    limits = Limits.read(experiment.privacy.limits) if limits is None else limits
    sizes = {name: len(merchant.train) for name, merchant in data.merchants.items()}
    merchants = {name: data.merchants[name] for name in assign_merchants(sizes, parts)[part]}
    unknown = limits.merchants.keys() - data.merchants.keys()
    if unknown:
        raise ConfigError(
            f"the limits have an unknown merchant: {sorted(unknown)[0]!r}; remove its table, or correct its name"
        )
    state = Path(experiment.runtime.folder) / experiment.name / "checkpoint"
    protection = Protection(experiment, state / "ledgers", limits, secret)
    store, coding = MerchantStore(state / STUDENTS), MerchantStore(state / CODING)
    paid = state / "ledgers" if experiment.privacy.ledger is None else experiment.privacy.ledger
    answers = Answers(paid / ANSWERS / experiment.name) if secret else None
    holdings = Holdings(experiment, merchants, data.proxy)
    return Site(experiment, data.task, holdings, store, coding, protection, tuple(data.merchants), answers)
