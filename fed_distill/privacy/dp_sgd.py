"""Parameters and noise of DP-SGD, by example or by group; both trainers use them for private phases.

Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1: Poisson-sampled batches, clipped
gradients, Gaussian noise on their sum. A member of the privacy unit is an example, or a group of a merchant's examples
(``training.trainer.Learner.groups``). A group is sampled with all its examples, and its gradient is that of their mean
loss (McMahan et al., "Learning differentially private recurrent language models", ICLR 2018; user-level sampling in
Charles et al., "Fine-tuning large language models with user-level differential privacy", 2024). Phases on the proxy set
are public and trained without noise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from fed_distill.config import DPSGDConfig
from fed_distill.seeds import Keystream


@dataclass(frozen=True)
class ExampleDP:
    """The private steps of one learner.

    noise_multiplier: standard deviation of the noise in units of ``max_grad_norm`` (sigma in the paper). max_grad_norm:
    clipping norm of a member's gradient over all trained weights (C in the paper). batch_size: expected number of
    members per step; None for the trainer's. rows: number of rows per embedding table that are trained privately, those
    that the proxy set uses most; None for all rows that it uses. examples: assumed number of members, which determines
    the visible number of steps and the sampling rate; None for the exact number. rate_scales: factors on the learning
    rate (of SGD) by pattern of the weights' names; factors of several matching patterns are multiplied. row_rate_power:
    a row that the proxy set uses c times has its learning rate scaled by (c / mean c)^-power.
    """

    noise_multiplier: float
    max_grad_norm: float
    batch_size: int | None = None
    rows: int | None = None
    examples: int | None = None
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    row_rate_power: float = 0.0

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0.0 or self.max_grad_norm <= 0.0 or min(self.batch_size or 1, self.rows or 1) < 1:
            raise ValueError("DP-SGD requires noise_multiplier >= 0, max_grad_norm > 0 and batch_size and rows >= 1")

    @classmethod
    def configured(cls, config: DPSGDConfig, noise_multiplier: float, examples: int | None = None) -> Self:
        """Return the private steps for a unit's settings and a calibrated noise multiplier."""
        return cls(
            noise_multiplier,
            config.max_grad_norm,
            config.batch_size,
            config.rows,
            examples,
            config.rate_scales,
            config.row_rate_power,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on each entry of the sum of clipped gradients."""
        return self.noise_multiplier * self.max_grad_norm


def sampling_rate(members: int, batch_size: int) -> float:
    """Return the Poisson sampling probability of each of ``members`` for an expected ``batch_size``."""
    return min(1.0, batch_size / members)


def add_noise(total: Tensor, deviation: float, stream: Keystream) -> Tensor:
    """Add Gaussian noise to a sum of clipped gradients.

    Sum and noise are added in float64 and rounded to multiples of ``grid(deviation)``, so that the low bits reveal
    nothing about the sum, unlike those of a float32 sum (Mironov, "On significance of the least significant bits for
    differential privacy", CCS 2012): the rounding of float64 shifts the border between two multiples by about 2^-50
    standard deviations, and so changes the probability of each by a factor of about 1 + 2^-33.

    :param total: one learner's sum of clipped gradients: all trained weights in the order of the model's parameters, of
        a table only its trained rows and never padding row 0
    :param deviation: standard deviation of the noise; 0 adds none
    :param stream: random stream; all trainers add the same noise for equal streams
    :returns: noised sum in the dtype of ``total``
    """
    if deviation == 0.0:
        return total
    step = grid(deviation)
    noise = stream.normal(total.numel()).view(total.shape).to(total.device)
    return noise.mul_(deviation).add_(total).div_(step).round_().mul_(step).to(total.dtype)


def grid(deviation: float) -> float:
    """Return the rounding grid of noised sums: a power of 2, at most 2^-16 times ``deviation``.

    It is coarse enough for the guarantee of ``add_noise``, and so fine that trainers with sums that differ in the last
    bit, and may round to adjacent multiples, differ by at most 1e-5 of the noise. float32 represents multiples up to
    2^7 standard deviations exactly; rounding beyond applies to noised values.
    """
    return math.ldexp(1.0, math.frexp(deviation)[1] - 17)
