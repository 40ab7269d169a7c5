"""Means of soft labels that a minority of Byzantine merchants cannot move far.

Each takes stacked probabilities ``[merchants, proxy, classes]`` and returns ``[proxy, classes]``, one proxy example
at a time: a merchant may deviate in a few only. They compare merchants, so all of them are held in memory at once.
Median and trimmed mean: Yin et al., "Byzantine-robust distributed learning", ICML 2018, definitions 1 and 2. Filter:
Diakonikolas et al., "Being robust (in high dimensions) can be practical", ICML 2017, algorithm 1, simplified.
"""

import math

import torch
from torch import Tensor

EXCESS = 2.0
"""Maximum ratio of the variance along a direction to a robust estimate from most merchants' values."""
_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
_TOGETHER = 512
"""Number of proxy examples that are filtered together, which bounds memory."""


def trimmed_mean(stacked: Tensor, share: float) -> Tensor:
    """Return the mean of each coordinate without a ``share`` (below 0.5) of its lowest and of its highest values."""
    return _trimmed(stacked, _dropped(stacked, share))


def median(stacked: Tensor) -> Tensor:
    """Return the median of each coordinate; for an even number of merchants, the mean of the two in the middle."""
    return _trimmed(stacked, (len(stacked) - 1) // 2)


def filtered_mean(stacked: Tensor, share: float) -> Tensor:
    """Return the mean without outlying merchants, at most a ``share`` (below 0.5) of all.

    While the variance along the direction of largest variance is more than ``EXCESS`` times its estimate from the
    median absolute deviation, the merchant with the largest distance from the mean along it is dropped. The paper
    assumes a known covariance of honest values, and drops by random thresholds.
    """
    drops = _dropped(stacked, share)
    return torch.cat([_filtered(part.double(), drops) for part in torch.split(stacked, _TOGETHER, dim=1)]).to(
        stacked.dtype
    )


def renormalized(means: Tensor) -> Tensor:
    """Normalise rows ``[proxy, classes]`` to sum to 1, as medians do not; uniform if all entries are 0."""
    total = means.sum(dim=-1, keepdim=True)
    return torch.where(total > 0.0, means / total.clamp_min(torch.finfo(means.dtype).tiny), 1.0 / means.shape[-1])


def _dropped(stacked: Tensor, share: float) -> int:
    """Return a share of the merchants, rounded down; 0.29 of 100 is 29, not 28 as in floating point."""
    return math.floor(share * len(stacked) + 1e-9)


def _trimmed(stacked: Tensor, cut: int) -> Tensor:
    return stacked.sort(dim=0).values[cut : len(stacked) - cut].mean(dim=0)


def _filtered(values: Tensor, drops: int) -> Tensor:
    """``filtered_mean`` of float64 ``[merchants, proxy, classes]``; drops at most ``drops`` merchants per example."""
    kept = torch.ones(values.shape[:2], dtype=torch.bool)
    rows = torch.arange(values.shape[1])
    for _ in range(drops):
        mean = _mean(values, kept)
        centered = (values - mean) * kept.unsqueeze(-1)
        covariance = torch.einsum("mpc,mpd->pcd", centered, centered) / kept.sum(dim=0).view(-1, 1, 1)
        variances, directions = torch.linalg.eigh(covariance)
        along = torch.einsum("mpc,pc->mp", values - mean, directions[..., -1])
        deviation = median((along - median(along)).abs())  # of an even number in the middle: directions have no sign
        stretched = variances[:, -1] > EXCESS * (_NORMAL * deviation) ** 2
        farthest = along.abs().masked_fill(~kept, -1.0).argmax(dim=0)
        kept[farthest, rows] &= ~stretched
    return _mean(values, kept)


def _mean(values: Tensor, kept: Tensor) -> Tensor:
    return (values * kept.unsqueeze(-1)).sum(dim=0) / kept.sum(dim=0).unsqueeze(-1)
