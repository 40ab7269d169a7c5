"""Membership scores from a student's predictions; higher means that the example is more likely a member.

Loss threshold: Yeom et al., "Privacy risk in machine learning", CSF 2018. Without labels: Salem et al., "ML-Leaks",
NDSS 2019. Likelihood ratio (LiRA) with shadow students: Carlini et al., "Membership inference attacks from first
principles", S&P 2022. Difference to a reference student without private data: Watson et al., "On the importance of
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
"""Lower limit of probabilities, so that logarithms are finite."""
_LEAST_VARIANCE = 1e-6


def log_likelihood(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Return the log probability of the true class, ``[n]`` (Yeom et al. 2018, attack 2)."""
    found: FloatArray = np.log(np.maximum(_of_label(probabilities, labels), _SMALLEST))
    return found


def scaled_confidence(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Return log(p / (1 - p)) of the true class, ``[n]`` (Carlini et al. 2022, eq. 3), nearly Gaussian over models.

    1 - p is the sum of the other classes, which avoids cancellation for p close to 1.
    """
    other = probabilities.copy()
    other[np.arange(len(labels)), labels] = 0.0
    odds: FloatArray = log_likelihood(probabilities, labels) - np.log(np.maximum(other.sum(axis=1), _SMALLEST))
    return odds


def certainty(probabilities: FloatArray) -> FloatArray:
    """Return the negative entropy of the prediction in nats, ``[n]`` (Salem et al. 2019, adversary 3)."""
    found: FloatArray = (probabilities * np.log(np.maximum(probabilities, _SMALLEST))).sum(axis=1)
    return found


@dataclass(frozen=True)
class Shadows:
    """Scores of shadow students for a pool of examples, all ``[shadows, examples]``.

    scores: ``scaled_confidence`` of each example. inside: whether the shadow student was trained on the example. Raises
    DataError if an example has fewer than two shadow students of either kind.
    """

    scores: FloatArray
    inside: BoolArray

    def __post_init__(self) -> None:
        if self.scores.shape != self.inside.shape:
            raise ValueError(f"scores have shape {self.scores.shape}, membership {self.inside.shape}")
        fewest = int(min(self.inside.sum(axis=0).min(initial=2), (~self.inside).sum(axis=0).min(initial=2)))
        if fewest < 2:
            raise DataError(
                f"an example has only {fewest} shadow students with or without it; LiRA requires two of each: train "
                "more"
            )


def lira(
    scores: FloatArray, shadows: Shadows, *, online: bool, variance: Literal["example", "pooled"] = "pooled"
) -> FloatArray:
    """Return LiRA scores ``[examples]`` of an attacked student.

    :param scores: scaled confidences of the attacked student ``[examples]``
    :param shadows: scores of the shadow students
    :param online: return log N(score; in) - log N(score; out) with Gaussians fitted to both kinds of shadow students
        (algorithm 1); otherwise standard deviations above the mean of those without the example (eq. 4, as a monotone
        function of that probability)
    :param variance: per example, or pooled over examples, which is better with fewer than about 64 shadow students
        (section VI-B)
    """
    mean_in, variance_in = _gaussians(shadows.scores, shadows.inside, variance)
    mean_out, variance_out = _gaussians(shadows.scores, ~shadows.inside, variance)
    if not online:
        deviations: FloatArray = (scores - mean_out) / np.sqrt(variance_out)
        return deviations
    ratio: FloatArray = _log_density(scores, mean_in, variance_in) - _log_density(scores, mean_out, variance_out)
    return ratio


def _gaussians(scores: FloatArray, chosen: BoolArray, variance: str) -> tuple[FloatArray, FloatArray]:
    """Return mean and unbiased variance of the chosen scores of each example, both ``[examples]``."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, scores, 0.0).sum(axis=0) / count
    squares = np.where(chosen, (scores - mean) ** 2, 0.0).sum(axis=0)
    if variance == "pooled":
        squares, freedom = np.full_like(mean, squares.sum()), np.full_like(mean, (count - 1).sum())
    else:
        freedom = (count - 1).astype(np.float64)
    return mean, np.maximum(squares / freedom, _LEAST_VARIANCE)


def _log_density(values: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
    """Return Gaussian log densities up to a common constant."""
    density: FloatArray = -0.5 * ((values - mean) ** 2 / variance + np.log(variance))
    return density


def _of_label(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    if len(labels) and (labels.min() < 0 or labels.max() >= probabilities.shape[1]):
        row = int(np.flatnonzero((labels < 0) | (labels >= probabilities.shape[1]))[0])
        raise DataError(f"row {row} has label {labels[row]}, but there are {probabilities.shape[1]} classes")
    found: FloatArray = probabilities[np.arange(len(labels)), labels]
    return found
