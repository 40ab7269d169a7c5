"""A merchant's label shares, guessed from what it sends: how many of its examples are of which class.

Nothing of one example is learnt, so example-level DP does not forbid it; but the mix of a shop's labels is a business
secret. Whether an uplink gives it away is measured against the guess that needs none: the public shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fed_distill.audit.membership import BoolArray, IntArray
from fed_distill.audit.roc import FloatArray
from fed_distill.errors import DataError

_SMALLEST = 1e-12
GAINS = tuple(float(gain) for gain in np.logspace(-1, 3, 41))
"""How much a bias may have to be scaled: ten factors a decade from 0.1 to 1,000."""


@dataclass(frozen=True)
class ShareInference:
    """How far guesses of merchants' label shares are from the truth, in total variation (0 to 1).

    errors: of the attack, by merchant. baselines: of the public shares as a guess, by merchant.
    """

    errors: Mapping[str, float]
    baselines: Mapping[str, float]

    @property
    def error(self) -> float:
        """Mean over the merchants."""
        return float(np.mean(list(self.errors.values())))

    @property
    def baseline(self) -> float:
        """Mean over the merchants of the guess that needs no uplink."""
        return float(np.mean(list(self.baselines.values())))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "error": self.error,
            "baseline": self.baseline,
            "errors": dict(self.errors),
            "baselines": dict(self.baselines),
        }


def label_shares(labels: IntArray, classes: int) -> FloatArray:
    """Share of each class among ``labels``: ``[classes]``. Raises DataError without labels."""
    if not len(labels):
        raise DataError("label shares need one labelled example at least")
    shares: FloatArray = np.bincount(labels, minlength=classes) / len(labels)
    return shares


def shares_from_soft_labels(sent: FloatArray, reference: FloatArray, public: FloatArray) -> FloatArray:
    """Guess label shares ``[classes]`` from a merchant's soft labels on the proxy set.

    sent, reference: the merchant's and the common student's class probabilities ``[proxy, classes]``. public: label
    shares that the common student was trained with, ``[classes]``. Training on other shares moves the mean prediction
    of a class as it moves the class's share, so the public share is scaled by the ratio of mean predictions.
    """
    return _normalized(public * sent.mean(axis=0) / np.maximum(reference.mean(axis=0), _SMALLEST))


def shares_from_presence(present: BoolArray, public: FloatArray) -> FloatArray:
    """Guess label shares ``[classes]`` from which classes a merchant has examples of: the public ones among these."""
    return _normalized(np.maximum(public, _SMALLEST) * present)


def shares_from_bias(change: FloatArray, public: FloatArray, gain: float) -> FloatArray:
    """Guess label shares ``[classes]`` from the ``change`` ``[classes]`` of the last layer's bias.

    A bias follows the logarithm of its class's share (the gradient of the cross-entropy with respect to it is
    predicted minus true share), but no training goes all the way: ``gain`` makes up for it, see ``fitted_gain``.
    """
    scaled = gain * change
    return _normalized(public * np.exp(scaled - scaled.max()))


def fitted_gain(changes: Sequence[FloatArray], shares: Sequence[FloatArray], public: FloatArray) -> float:
    """The gain of ``GAINS`` that guesses best for merchants whose shares the attacker knows: ones that it made up.

    changes, shares: of each made-up merchant, ``[classes]``, trained as the others are on some of the public examples.
    """
    errors = [
        np.mean(
            [
                total_variation(shares_from_bias(change, public, gain), truth)
                for change, truth in zip(changes, shares, strict=True)
            ]
        )
        for gain in GAINS
    ]
    return GAINS[int(np.argmin(errors))]


def infer_shares(
    guesses: Mapping[str, FloatArray], truths: Mapping[str, FloatArray], public: FloatArray
) -> ShareInference:
    """Measure guessed label shares of merchants by name against the truth, and against ``public`` as a guess.

    Raises DataError without merchants, or for one whose truth is not given.
    """
    if not guesses:
        raise DataError("label shares were guessed of no merchant")
    unknown = next((name for name in guesses if name not in truths), None)
    if unknown is not None:
        raise DataError(f"the true label shares of {unknown} are not given")
    return ShareInference(
        {name: total_variation(guess, truths[name]) for name, guess in guesses.items()},
        {name: total_variation(public, truths[name]) for name in guesses},
    )


def total_variation(one: FloatArray, other: FloatArray) -> float:
    """Half the L1 distance of two distributions ``[classes]``, from 0 (equal) to 1 (disjoint)."""
    return 0.5 * float(np.abs(one - other).sum())


def _normalized(values: FloatArray) -> FloatArray:
    shares: FloatArray = values / values.sum()
    return shares
