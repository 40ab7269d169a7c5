"""Minimal limits for the runs of an experiment: the ``[limits.default]`` of a generated site configuration.

The site's staff review and may change it. Everything that the experiment does not need is disabled.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat

from fed_distill.config import Experiment, FederationConfig
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Protecting, Terms
from fed_distill.mechanisms.label import ByLabel
from fed_distill.mechanisms.lookup import mechanism_of, protected_by_merchants
from fed_distill.methods import METHODS
from fed_distill.methods.base import private_training
from fed_distill.privacy.accounting import Spend
from fed_distill.privacy.ledger import Charge, exposure

UNLIMITED = 8.0
"""``max_epsilon`` if no experiment is given."""
_SIZES = (32, 128, 512, 2048, 8192)  # a merchant's number of examples or groups, which the noise depends on
_MARGIN = 1.02  # for merchants whose size lies between these


@dataclass(frozen=True)
class Allowance:
    """Limits of each merchant, with explanations.

    methods: as in a site's ``[limits.rules]``. units, max_epsilon: as in its ``[limits.default]``, each with a note.
    what: the experiment that they are for. in_words: description of the limits, as the object of "it allows". texts:
    whether the experiment needs the site's rule of this name, which only its staff sets.
    """

    methods: tuple[str, ...]
    units: tuple[str, ...]
    units_note: str
    max_epsilon: float
    epsilon_note: str
    what: str
    in_words: str
    texts: bool = False


def allowance(experiment: Experiment | None, merchants: int = 1, proxy: int = 1, runs: int = 1) -> Allowance:
    """Return the limits that equal runs require.

    :param experiment: the experiment; None if it is not known yet
    :param merchants: number of merchants
    :param proxy: number of proxy examples
    :param runs: number of private runs on the same examples, such as retrainings
    """
    exposed = "total epsilon of one example over all private releases"
    if experiment is None:
        words = "only releases with noise that the site adds itself"
        return Allowance(
            tuple(METHODS),
            protected_by_merchants(),
            "training without privacy is not allowed",
            UNLIMITED,
            exposed,
            "choose your own",
            words,
        )
    methods = tuple(dict.fromkeys(arm.method for arm in experiment.arms().values()))
    unit, what = experiment.privacy.unit, f"as required by the experiment {experiment.name}"
    if not experiment.privacy.protects:
        note = "uplinks are not protected: a trained student can reveal single examples"
        words = f"training without privacy, as in {experiment.name}: uplinks can reveal single examples"
        epsilon_note = f"{exposed}; this experiment has no private releases"
        return Allowance(methods, (unit,), note, UNLIMITED, epsilon_note, what, words)
    found = _MARGIN * run_exposure(experiment, merchants, proxy, runs)
    whole = _rounded_up(found) if math.isfinite(found) else UNLIMITED  # releases without a guarantee are refused
    counted = "one run" if runs == 1 else f"{runs} runs"
    words = f"{counted} of {experiment.name}, with releases protected by unit {unit}, and no training without privacy"
    sent = (METHODS.build(one.method, one.options).sends for one in experiment.federations())
    texts = any(kind.of_labels for kinds in sent for kind in kinds)
    if texts:
        words += ". The experiment also needs `texts = true`, to send the texts of labelled training examples"
    epsilon_note = f"{exposed}: {counted}"
    note = "training without privacy is not allowed"
    return Allowance(methods, (unit,), note, whole, epsilon_note, what, words, texts)


def run_exposure(experiment: Experiment, merchants: int, proxy: int, runs: int = 1) -> float:
    """Return the maximum epsilon of an example in ``runs`` of a private ``experiment``, as the ledger computes it.

    It covers all runs, seeds and all private federations, including compared ones. If the noise depends on a merchant's
    size, it is the maximum over sizes from 32 to 8192; otherwise it depends on ``merchants`` and ``proxy``. For
    randomized labels it is their epsilon for each federation, which may have other priors.
    """
    mechanism = mechanism_of(experiment)
    if isinstance(mechanism, ByLabel):
        assert experiment.promise.epsilon is not None
        return experiment.promise.epsilon * len(experiment.federations()) * experiment.repeats * runs
    if isinstance(mechanism, AtServer):
        price = partial(_at_server, experiment, mechanism, merchants, proxy)
        return exposure(_charges(experiment, mechanism, price, runs))
    return exposure(costliest_charges(experiment, runs))


def costliest_charges(experiment: Experiment, runs: int = 1) -> list[Charge]:
    """Return the charges of ``runs`` to a merchant that adds its own noise, at the costliest size from 32 to 8192."""
    mechanism = mechanism_of(experiment)
    assert isinstance(mechanism, AtMerchants)
    prices = [partial(_at_merchant, experiment, mechanism, size) for size in _SIZES]
    return max(([*_charges(experiment, mechanism, price, runs)] for price in prices), key=exposure)


def _charges(
    experiment: Experiment,
    mechanism: Protecting,
    price: Callable[[FederationConfig], tuple[tuple[Spend, ...], float]],
    runs: int,
) -> Iterator[Charge]:
    """Yield one charge per federation, seed and run; ``price`` returns the spends and delta of a federation."""
    for federation in experiment.federations():
        spends, delta = price(federation)
        for seed in range(experiment.seed, experiment.seed + experiment.repeats):
            charge = Charge(
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
            yield from repeat(charge, runs)


def _at_server(
    experiment: Experiment, mechanism: AtServer, merchants: int, proxy: int, federation: FederationConfig
) -> tuple[tuple[Spend, ...], float]:
    config = experiment.promise
    return mechanism.spends(Terms(config, federation, merchants, proxy)), mechanism.delta(config, merchants)


def _at_merchant(
    experiment: Experiment, mechanism: AtMerchants, size: int, federation: FederationConfig
) -> tuple[tuple[Spend, ...], float]:
    """Return the price of all rounds for a merchant with ``size`` members of the unit, with its noised size."""
    method = METHODS.build(federation.method, federation.options)
    training = private_training(method, federation.rounds)
    whole, delta = mechanism.price(experiment, training, size, federation.rounds, method.sends)
    return (*mechanism.spends_once(method.sends).values(), whole), delta


def _rounded_up(value: float) -> float:
    """Round up to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 9)
