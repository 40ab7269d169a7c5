"""A lower bound on epsilon from one training run, by guessing the inclusion of many canaries.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023, theorem 5.2: (epsilon,
delta)-DP limits the number of correct guesses of independent coin flips. Valid for any training and any score.
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
    """A lower bound: at ``confidence``, training is not (epsilon, delta)-DP for any smaller epsilon.

    canaries: number of canaries. included_guesses, excluded_guesses: numbers of canaries guessed as included and as
    excluded; there is no guess for the rest. correct: number of correct guesses.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    included_guesses: int
    excluded_guesses: int
    correct: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form."""
        return dict(vars(self))


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return the maximum probability of at least ``correct`` correct guesses under (epsilon, delta)-DP.

    With q = e^epsilon / (e^epsilon + 1) and B ~ Binomial(guesses, q): P[B >= correct]
    + 2 * canaries * delta * max over i of P[correct > B >= correct - i] / i.

    :raises ValueError: not 0 <= correct <= guesses <= canaries, epsilon >= 0 and 0 <= delta <= 1
    """
    if not (0 <= correct <= guesses <= canaries and epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise ValueError(
            f"impossible: {correct} correct of {guesses} guesses on {canaries} canaries, epsilon {epsilon}, "
            f"delta {delta}"
        )
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    if delta == 0.0 or correct == 0:
        return min(tail, 1.0)
    steps = np.arange(1, correct + 1)
    near = np.cumsum(binom.pmf(correct - steps, guesses, chance)) / steps
    return min(tail + 2.0 * canaries * delta * float(near.max()), 1.0)


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Return the largest epsilon, to 1e-6, that the guesses reject at ``confidence``; 0 if there is none.

    Rejecting an epsilon rejects all smaller ones, because (epsilon, delta)-DP implies it for every larger epsilon.
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
    """Guess 1 for the ``included`` highest scores, -1 for the ``excluded`` lowest and 0 (none) for the rest, ``[m]``.

    Ties are broken by position.

    :raises ValueError: there are fewer scores than guesses
    """
    if min(included, excluded) < 0 or included + excluded > len(scores):
        raise ValueError(f"cannot guess {included} included and {excluded} excluded of {len(scores)} canaries")
    order = np.argsort(-scores, kind="stable")
    guesses = np.zeros(len(scores), dtype=np.int64)
    guesses[order[:included]] = 1
    guesses[order[len(order) - excluded :]] = -1
    return guesses


def best_bound(
    scores: FloatArray, included: BoolArray, choices: Sequence[tuple[int, int]], delta: float, confidence: float
) -> Bound:
    """Return the best bound over ``choices``, valid for all jointly by a union bound over k choices.

    :param scores: ``[m]``, higher for canaries that are more likely included
    :param included: inclusion, bool ``[m]``
    :param choices: pairs of numbers of guesses (included, excluded)
    :param delta: delta of the bound
    :param confidence: confidence of the bound
    :raises DataError: there are no choices, or a score is not finite
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
    """Yield each of ``choices`` and its number of correct guesses.

    :raises DataError: there are no choices, or a score is not finite
    """
    if not choices:
        raise DataError("a bound from canaries requires at least one choice of guesses")
    if not np.isfinite(scores).all():
        raise DataError(f"the score of canary {int(np.flatnonzero(~np.isfinite(scores))[0])} is not finite")
    for choice in choices:
        yield choice, int((guess(scores, *choice) == np.where(included, 1, -1)).sum())
