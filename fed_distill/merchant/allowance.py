"""What a site must allow for one run of an experiment, and no more: the ``[limits.default]`` that it is handed.

The site's people read it and may change it. What an experiment does not need stays closed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from fed_distill.config import Experiment, FederationConfig
from fed_distill.distill.losses import hard_labels
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Protecting, Terms
from fed_distill.mechanisms.lookup import mechanism_of, protected_by_merchants
from fed_distill.methods import METHODS
from fed_distill.privacy.accounting import Spend
from fed_distill.privacy.ledger import Charge, exposure
from fed_distill.training.plan import Phase, Plan

UNLIMITED = 8.0
"""``max_epsilon`` where no run is known to need more or less."""
_SIZES = (32, 128, 512, 2048, 8192)  # a merchant's examples or groups, of which the noise depends
_MARGIN = 1.02  # for merchants whose size lies between these


@dataclass(frozen=True)
class Allowance:
    """Limits of each merchant, and who reads them is told why.

    units, max_epsilon: as in a site's ``[limits.default]``, each with a note. what: for which experiment they are.
    in_words: all of it, as the object of "it allows".
    """

    units: tuple[str, ...]
    units_note: str
    max_epsilon: float
    epsilon_note: str
    what: str
    in_words: str


def allowance(experiment: Experiment | None, merchants: int = 1, proxy: int = 1) -> Allowance:
    """What one run of ``experiment`` over ``merchants`` with ``proxy`` proxy examples needs; None: not known yet."""
    exposed = "what one example is exposed to by all private releases"
    if experiment is None:
        words = "releases whose noise the site itself adds, and nothing else"
        return Allowance(
            protected_by_merchants(), "without privacy nothing runs", UNLIMITED, exposed, "choose your own", words
        )
    unit, what = experiment.privacy.unit, f"as the experiment {experiment.name} needs it"
    if not experiment.privacy.protects:
        note = "what leaves is not protected: a trained student can tell of single examples"
        words = f"training without privacy, as {experiment.name} asks for: what leaves can tell of single examples"
        return Allowance((unit,), note, UNLIMITED, f"{exposed}, of which this experiment has none", what, words)
    found = _MARGIN * run_exposure(experiment, merchants, proxy)
    whole = _rounded_up(found) if math.isfinite(found) else UNLIMITED  # noise that promises nothing is refused
    words = f"one run of {experiment.name}, whose releases are protected by unit {unit}, and nothing unprotected"
    return Allowance((unit,), "without privacy nothing runs", whole, f"{exposed}: one whole run", what, words)


def run_exposure(experiment: Experiment, merchants: int, proxy: int) -> float:
    """The largest epsilon that one whole run of a private ``experiment`` exposes an example to, by the ledger's count.

    Of all seeds and all private federations, the compared ones too. Where noise depends on a merchant's size, the
    largest over sizes from 32 to 8192; ``merchants`` and ``proxy`` count where it does not.
    """
    mechanism = mechanism_of(experiment)
    if isinstance(mechanism, AtServer):
        return exposure(_charges(experiment, mechanism, partial(_at_server, experiment, mechanism, merchants, proxy)))
    return exposure(costliest_charges(experiment))


def costliest_charges(experiment: Experiment) -> list[Charge]:
    """What one whole run charges a merchant whose noise is its own, of the size from 32 to 8192 that pays most."""
    mechanism = mechanism_of(experiment)
    assert isinstance(mechanism, AtMerchants)
    prices = [partial(_at_merchant, experiment, mechanism, size) for size in _SIZES]
    return max(([*_charges(experiment, mechanism, price)] for price in prices), key=exposure)


def _charges(
    experiment: Experiment,
    mechanism: Protecting,
    price: Callable[[FederationConfig], tuple[tuple[Spend, ...], float]],
) -> Iterator[Charge]:
    """One charge a federation and seed. price: spends and delta of a federation."""
    for seed in range(experiment.seed, experiment.seed + experiment.repeats):
        for federation in experiment.federations():
            spends, delta = price(federation)
            yield Charge(
                experiment.name,
                federation.title,
                seed,
                0,
                mechanism.name,
                "a whole federation",
                "0",
                spends,
                delta,
                mechanism.stated_move,
            )


def _at_server(
    experiment: Experiment, mechanism: AtServer, merchants: int, proxy: int, federation: FederationConfig
) -> tuple[tuple[Spend, ...], float]:
    config = experiment.promise
    return mechanism.spends(Terms(config, federation, merchants, proxy)), mechanism.delta(config, merchants)


def _at_merchant(
    experiment: Experiment, mechanism: AtMerchants, size: int, federation: FederationConfig
) -> tuple[tuple[Spend, ...], float]:
    """What a merchant with ``size`` members of the unit pays for all rounds, its noised size included."""
    method = METHODS.build(federation.method, federation.options)
    plan = Plan((Phase(hard_labels(), epochs=getattr(method, "local_epochs", 1.0)),))
    spend, delta = mechanism.price(experiment, plan, size, federation.rounds)
    whole = replace(spend, steps=spend.steps * federation.rounds)
    return (mechanism.size_spend(), whole), delta


def _rounded_up(value: float) -> float:
    """To two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 9)
