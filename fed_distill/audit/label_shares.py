"""Infer a merchant's label shares from its uplink.

Label shares reveal nothing about a single example, so example-level DP does not protect them, but they may be a
business secret. The attack is compared with a guess without an uplink: the public shares.
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
"""Candidate scales of a bias: ten per decade from 0.1 to 1,000."""


@dataclass(frozen=True)
class ShareInference:
    """Errors of inferred label shares, in total variation (0 to 1).

    errors: of the attack, by merchant. baselines: of the public shares as a guess, by merchant.
    """

    errors: Mapping[str, float]
    baselines: Mapping[str, float]

    @property
    def error(self) -> float:
        """Mean error over the merchants."""
        return float(np.mean(list(self.errors.values())))

    @property
    def baseline(self) -> float:
        """Mean error of the baseline over the merchants."""
        return float(np.mean(list(self.baselines.values())))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form."""
        return {
            "error": self.error,
            "baseline": self.baseline,
            "errors": dict(self.errors),
            "baselines": dict(self.baselines),
        }


def label_shares(labels: IntArray, classes: int) -> FloatArray:
    """Return the share of each class among ``labels``, ``[classes]``; raise DataError without labels."""
    if not len(labels):
        raise DataError("label shares require at least one labelled example")
    shares: FloatArray = np.bincount(labels, minlength=classes) / len(labels)
    return shares


def shares_from_soft_labels(sent: FloatArray, reference: FloatArray, public: FloatArray) -> FloatArray:
    """Infer label shares ``[classes]`` from a merchant's soft labels on the proxy set.

    Training on other label shares changes the mean prediction of a class like its share, so the public shares are
    scaled by the ratio of mean predictions.

    :param sent: class probabilities of the merchant ``[proxy, classes]``
    :param reference: class probabilities of the initial student ``[proxy, classes]``
    :param public: label shares in the initial student's training ``[classes]``
    """
    return _normalized(public * sent.mean(axis=0) / np.maximum(reference.mean(axis=0), _SMALLEST))


def shares_from_presence(present: BoolArray, public: FloatArray) -> FloatArray:
    """Infer label shares ``[classes]`` from the classes that are present: the public shares restricted to them."""
    return _normalized(np.maximum(public, _SMALLEST) * present)


def shares_from_bias(change: FloatArray, public: FloatArray, gain: float) -> FloatArray:
    """Infer label shares ``[classes]`` from the ``change`` ``[classes]`` of the last layer's bias.

    A bias tracks the logarithm of its class's share (its gradient is predicted minus true share), but training does not
    converge: ``gain`` compensates for that, see ``fitted_gain``.
    """
    scaled = gain * change
    return _normalized(public * np.exp(scaled - scaled.max()))


def fitted_gain(changes: Sequence[FloatArray], shares: Sequence[FloatArray], public: FloatArray) -> float:
    """Return the gain of ``GAINS`` that fits best for the attacker's own synthetic merchants.

    :param changes: change of the bias ``[classes]`` for each synthetic merchant, trained on public examples
    :param shares: label shares ``[classes]`` of each
    :param public: public label shares ``[classes]``
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
    """Compare inferred label shares by merchant with the truth, and with ``public`` as a baseline.

    :raises DataError: there are no merchants, or the truth of one is missing
    """
    if not guesses:
        raise DataError("there are no merchants with inferred label shares")
    unknown = next((name for name in guesses if name not in truths), None)
    if unknown is not None:
        raise DataError(f"the true label shares of {unknown} are missing")
    return ShareInference(
        {name: total_variation(guess, truths[name]) for name, guess in guesses.items()},
        {name: total_variation(public, truths[name]) for name in guesses},
    )


def total_variation(one: FloatArray, other: FloatArray) -> float:
    """Return half the L1 distance of two distributions ``[classes]``, from 0 (equal) to 1 (disjoint)."""
    return 0.5 * float(np.abs(one - other).sum())


def _normalized(values: FloatArray) -> FloatArray:
    shares: FloatArray = values / values.sum()
    return shares
