"""Epsilon from a ledger's file alone: its JSON lines read by ``json`` and composed by dp-accounting or Opacus.

Shares no code with ``fed_distill.privacy``, so that a test can hold what a run reports against it.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property

from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from opacus.accountants import PRVAccountant


@dataclass(frozen=True)
class Recomputed:
    """Bounds of one unit's epsilon. least: losses rounded down. most: losses rounded up. third: Opacus' upper estimate,
    None where it cannot say. delta: the smallest of the charges, at which all are.

    spends: ((noise multiplier, sampling rate), steps) of all mechanisms. interval: width of the bins of privacy loss.
    """

    spends: tuple
    interval: float
    delta: float

    @cached_property
    def least(self):
        return _composed(self.spends, self.interval, False).get_epsilon_for_delta(self.delta)

    @cached_property
    def most(self):
        return _composed(self.spends, self.interval, True).get_epsilon_for_delta(self.delta)

    @cached_property
    def third(self):
        return _by_opacus(self.spends, self.delta)


def mechanisms_of(path, unit, **where):
    """The spends of all charges of ``unit`` in the file: ``{(noise multiplier, sampling rate): steps}``, and deltas.

    where: values that fields of a line must have, such as ``run`` or ``arm``.
    """
    steps, deltas = defaultdict(int), []
    for line in path.read_text(encoding="utf-8").splitlines():
        charge = json.loads(line)
        if charge["unit"] != unit or any(charge[key] != value for key, value in where.items()):
            continue
        deltas.append(charge["delta"])
        for spend in charge["spends"]:
            steps[spend["noise_multiplier"], spend["sampling_rate"]] += spend["steps"]
    return dict(steps), deltas


def recomputed(path, unit, delta=None, interval=2e-4, **where):
    """``Recomputed`` of the ledger at ``path``; ``delta`` instead of the smallest of its charges.

    interval: width of the bins of privacy loss. Raises ValueError if there is no charge of the unit.
    """
    mechanisms, deltas = mechanisms_of(path, unit, **where)
    if not mechanisms:
        raise ValueError(f"{path} has no charge of unit {unit}")
    return Recomputed(tuple(sorted(mechanisms.items())), interval, min(deltas) if delta is None else delta)


@cache
def _composed(spends, interval, rounded_up):
    total = None
    for (noise, rate), steps in spends:
        one = from_gaussian_mechanism(
            noise,
            pessimistic_estimate=rounded_up,
            value_discretization_interval=interval,
            sampling_prob=rate,
            use_connect_dots=rounded_up,
        ).self_compose(steps)
        total = one if total is None else total.compose(one)
    return total


def _by_opacus(spends, delta):
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps) for (noise, rate), steps in spends]
    try:
        return float(accountant.get_epsilon(delta, eps_error=0.005))
    except (RuntimeError, ValueError):
        return None


def assert_charged_rightly(reported, path, unit, delta=None, **where):
    """A reported epsilon is never below what the file says, and at most 1 % above."""
    found = recomputed(path, unit, delta, **where)
    assert reported >= found.least, f"{reported} undercharges: at least {found.least} by losses rounded down"
    assert reported >= 0.9995 * found.most, f"{reported} undercharges: {found.most} with fine bins"
    assert reported <= 1.01 * found.most, f"{reported} overcharges: {found.most} with fine bins"
    if found.third is not None:
        assert reported <= 1.01 * found.third + 1e-3
