"""A lower bound on epsilon from one training run, by guessing which of many canaries were in it.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023, theorem 5.2: if training is
(epsilon, delta)-DP, nobody guesses many independent coin flips right. Sound for every training and every way to score.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

from fed_distill.audit.membership import BoolArray, IntArray
from fed_distill.audit.roc import FloatArray
from fed_distill.errors import DataError

_PRECISION = 1e-6


@dataclass(frozen=True)
class Bound:
    """At ``confidence``, training is not (epsilon, delta)-DP for any epsilon below ``epsilon``; 0 says nothing.

    canaries: how many coin flips. included_guesses, excluded_guesses: how many canaries were guessed to be in and out
    of the training data; the rest is left open. correct: guesses that were right.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    included_guesses: int
    excluded_guesses: int
    correct: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dict(vars(self))


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest probability that (epsilon, delta)-DP training lets ``correct`` or more of the ``guesses`` be right.

    With q = e^epsilon / (e^epsilon + 1) and B ~ Binomial(guesses, q): P[B >= correct]
    + 2 * canaries * delta * max over i of P[correct > B >= correct - i] / i. Raises ValueError unless
    0 <= correct <= guesses <= canaries, epsilon >= 0 and 0 <= delta <= 1.
    """
    if not (0 <= correct <= guesses <= canaries and epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise ValueError(
            f"cannot be: {correct} right of {guesses} guesses on {canaries} canaries, epsilon {epsilon}, delta {delta}"
        )
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    if delta == 0.0 or correct == 0:
        return min(tail, 1.0)
    steps = np.arange(1, correct + 1)
    near = np.cumsum(binom.pmf(correct - steps, guesses, chance)) / steps
    return min(tail + 2.0 * canaries * delta * float(near.max()), 1.0)


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon, to 1e-6, that so many right guesses reject at ``confidence``; 0 if they reject none.

    Rejecting an epsilon rejects all below it, as (epsilon, delta)-DP implies it for every larger epsilon.
    """

    def rejected(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < 1.0 - confidence

    if not rejected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2.0 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def guess(scores: FloatArray, included: int, excluded: int) -> IntArray:
    """Guess 1 for the ``included`` highest scores, -1 for the ``excluded`` lowest, 0 (left open) for the rest: ``[m]``.

    Ties go by place. Raises ValueError if that is more than there are.
    """
    if min(included, excluded) < 0 or included + excluded > len(scores):
        raise ValueError(f"cannot guess {included} in and {excluded} out of {len(scores)} canaries")
    order = np.argsort(-scores, kind="stable")
    guesses = np.zeros(len(scores), dtype=np.int64)
    guesses[order[:included]] = 1
    guesses[order[len(order) - excluded :]] = -1
    return guesses


def best_bound(
    scores: FloatArray, included: BoolArray, choices: Sequence[tuple[int, int]], delta: float, confidence: float
) -> Bound:
    """The best bound over ``choices`` of (guesses in, guesses out), valid for all of them at once.

    scores: ``[m]``, higher for canaries that seem to be in. included: ``[m]``, the coin flips. Having k choices costs
    a factor k on the error probability (union bound). Raises DataError without choices, or for scores not finite.
    """
    each = 1.0 - (1.0 - confidence) / max(len(choices), 1)
    bounds = []
    for (guesses_in, guesses_out), correct in guessed(scores, included, choices):
        epsilon = epsilon_lower_bound(len(scores), guesses_in + guesses_out, correct, delta, each)
        bounds.append(Bound(epsilon, delta, confidence, len(scores), guesses_in, guesses_out, correct))
    return max(bounds, key=lambda bound: bound.epsilon)


def guessed(
    scores: FloatArray, included: BoolArray, choices: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], int]]:
    """Each of ``choices`` and how many of its guesses are right.

    Raises DataError without choices, or for scores not finite.
    """
    if not choices:
        raise DataError("a bound from canaries needs one choice of guesses at least")
    if not np.isfinite(scores).all():
        raise DataError(f"the score of canary {int(np.flatnonzero(~np.isfinite(scores))[0])} is not finite")
    for choice in choices:
        yield choice, int((guess(scores, *choice) == np.where(included, 1, -1)).sum())
