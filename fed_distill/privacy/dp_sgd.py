"""DP-SGD by example or by group as parameters: what both trainers need to know to train a private phase.

Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1: Poisson-sampled batches, each gradient
clipped, Gaussian noise on their sum. What is sampled and clipped is a member of the unit: an example, or a group of a
merchant's examples (``training.trainer.Learner.groups``). A group is taken with all its examples, and its gradient is
that of their mean loss (McMahan et al., "Learning differentially private recurrent language models", ICLR 2018;
user-level sampling in Charles et al., "Fine-tuning large language models with user-level differential privacy", 2024).
Phases on the proxy set are public and trained as usual.
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
    """One learner's private steps.

    noise_multiplier: standard deviation of the noise in units of ``max_grad_norm`` (sigma in the paper). max_grad_norm:
    largest L2 norm of one member's gradient over all trained weights (C in the paper). batch_size: expected members of
    a private step; None for the trainer's. rows: of each table, private training is of so many rows that the proxy
    set uses most; None for all that it uses. examples: how many members the learner is taken to have, for the number of
    steps and the sampling rate, which show in what it sends; None for how many it has. rate_scales: factors on the
    learning rate (of SGD) by pattern of the weights' names; a weight that several match has their product.
    row_rate_power: a table's row that the proxy set uses c times has (c / mean c)^-power of that.
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
            raise ValueError("DP-SGD needs noise_multiplier >= 0, max_grad_norm > 0 and batch_size and rows >= 1")

    @classmethod
    def configured(cls, config: DPSGDConfig, noise_multiplier: float, examples: int | None = None) -> Self:
        """Private steps as a unit's settings have them, with noise that was found for its epsilon."""
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
        """Standard deviation of the noise on every entry of the sum of clipped gradients."""
        return self.noise_multiplier * self.max_grad_norm


def sampling_rate(members: int, batch_size: int) -> float:
    """Probability with which Poisson sampling takes each of ``members`` into a batch of expected ``batch_size``."""
    return min(1.0, batch_size / members)


def add_noise(total: Tensor, deviation: float, stream: Keystream) -> Tensor:
    """``total`` with Gaussian noise of standard ``deviation`` on every entry, in the dtype of ``total``.

    total: one learner's sum of clipped gradients, drawn for in its own order: of all trained weights in the order of
    the model's parameters, of a table only its trained rows and never padding row 0. Every trainer that is given an
    equal stream adds the same noise. 0 adds none.

    Sum and noise are added in float64 and rounded to multiples of ``grid(deviation)``. So the low bits of what is
    released tell nothing of the sum, as those of a float32 sum would (Mironov, "On significance of the least
    significant bits for differential privacy", CCS 2012): what float64 rounds moves the border between two multiples
    by about 2^-50 deviations, and so the probability of each by a share of about 2^-33.
    """
    if deviation == 0.0:
        return total
    step = grid(deviation)
    noise = stream.normal(total.numel()).view(total.shape).to(total.device)
    return noise.mul_(deviation).add_(total).div_(step).round_().mul_(step).to(total.dtype)


def grid(deviation: float) -> float:
    """A power of 2, at most 2^-16 times ``deviation``: what noised sums are multiples of.

    Coarse enough for the promise of ``add_noise``, and so fine that trainers whose sums differ in the last bit, of
    which some are rounded to neighbouring multiples, differ by 1e-5 of the noise at most. float32 has multiples up to
    2^7 deviations without rounding; what it rounds beyond is noised already.
    """
    return math.ldexp(1.0, math.frexp(deviation)[1] - 17)
