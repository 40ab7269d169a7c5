"""Membership scores from what a student predicts: higher means "this example was trained on".

Loss threshold: Yeom et al., "Privacy risk in machine learning", CSF 2018. Without labels: Salem et al., "ML-Leaks",
NDSS 2019. Likelihood ratio (LiRA) against shadow students: Carlini et al., "Membership inference attacks from first
principles", S&P 2022. Difference to a student that saw nothing private: Watson et al., "On the importance of
difficulty calibration in membership inference attacks", ICLR 2022.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fed_distill.audit.roc import FloatArray
from fed_distill.errors import DataError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_SMALLEST = 1e-30
"""Probabilities below are taken for it, so that logarithms stay finite."""
_LEAST_VARIANCE = 1e-6


def log_likelihood(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Logarithm of the probability of the true class, minus the loss: ``[n]`` (Yeom et al. 2018, attack 2)."""
    found: FloatArray = np.log(np.maximum(_of_label(probabilities, labels), _SMALLEST))
    return found


def scaled_confidence(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """log(p / (1 - p)) of the true class, ``[n]`` (Carlini et al. 2022, eq. 3), which is nearly Gaussian over models.

    1 - p is summed from the other classes, so that it keeps its digits where p is close to 1.
    """
    other = probabilities.copy()
    other[np.arange(len(labels)), labels] = 0.0
    odds: FloatArray = log_likelihood(probabilities, labels) - np.log(np.maximum(other.sum(axis=1), _SMALLEST))
    return odds


def certainty(probabilities: FloatArray) -> FloatArray:
    """Minus the entropy of the prediction in nats, ``[n]``: needs no labels (Salem et al. 2019, adversary 3)."""
    found: FloatArray = (probabilities * np.log(np.maximum(probabilities, _SMALLEST))).sum(axis=1)
    return found


@dataclass(frozen=True)
class Shadows:
    """What shadow students say of a pool of examples, all ``[shadows, examples]``.

    scores: ``scaled_confidence`` of each example under each shadow student. inside: whether the shadow student was
    trained on the example. Raises DataError where an example has fewer than two shadows of either kind.
    """

    scores: FloatArray
    inside: BoolArray

    def __post_init__(self) -> None:
        if self.scores.shape != self.inside.shape:
            raise ValueError(f"scores are {self.scores.shape}, and membership is {self.inside.shape}")
        fewest = int(min(self.inside.sum(axis=0).min(initial=2), (~self.inside).sum(axis=0).min(initial=2)))
        if fewest < 2:
            raise DataError(
                f"some example has {fewest} shadow students with or without it, and LiRA needs two of each: train more"
            )


def lira(
    scores: FloatArray, shadows: Shadows, *, online: bool, variance: Literal["example", "pooled"] = "pooled"
) -> FloatArray:
    """How much likelier an attacked student's ``scores`` ``[examples]`` are with each example than without it.

    online: log N(score; in) - log N(score; out) with a Gaussian fitted to either kind of shadow (algorithm 1);
    else standard deviations above the mean of the shadows without the example (eq. 4, as a monotone function of that
    probability). variance: each example's own, or pooled over examples, which is better with fewer than about 64
    shadows (sec. VI-B).
    """
    mean_in, variance_in = _gaussians(shadows.scores, shadows.inside, variance)
    mean_out, variance_out = _gaussians(shadows.scores, ~shadows.inside, variance)
    if not online:
        deviations: FloatArray = (scores - mean_out) / np.sqrt(variance_out)
        return deviations
    ratio: FloatArray = _log_density(scores, mean_in, variance_in) - _log_density(scores, mean_out, variance_out)
    return ratio


def _gaussians(scores: FloatArray, chosen: BoolArray, variance: str) -> tuple[FloatArray, FloatArray]:
    """Mean and unbiased variance of the chosen scores of each example, both ``[examples]``."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, scores, 0.0).sum(axis=0) / count
    squares = np.where(chosen, (scores - mean) ** 2, 0.0).sum(axis=0)
    if variance == "pooled":
        squares, freedom = np.full_like(mean, squares.sum()), np.full_like(mean, (count - 1).sum())
    else:
        freedom = (count - 1).astype(np.float64)
    return mean, np.maximum(squares / freedom, _LEAST_VARIANCE)


def _log_density(values: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
    """Of a Gaussian, up to the constant that all have in common."""
    density: FloatArray = -0.5 * ((values - mean) ** 2 / variance + np.log(variance))
    return density


def _of_label(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    if len(labels) and (labels.min() < 0 or labels.max() >= probabilities.shape[1]):
        row = int(np.flatnonzero((labels < 0) | (labels >= probabilities.shape[1]))[0])
        raise DataError(f"row {row} has label {labels[row]}, which is none of {probabilities.shape[1]} classes")
    found: FloatArray = probabilities[np.arange(len(labels)), labels]
    return found
