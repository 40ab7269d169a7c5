"""Example-level DP-SGD as parameters: what both trainers need to know to train a private phase.

Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1: Poisson-sampled batches, each example's
gradient clipped, Gaussian noise on their sum. Phases on the proxy set are public and trained as usual.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExampleDP:
    """One learner's private steps.

    noise_multiplier: standard deviation of the noise in units of ``max_grad_norm`` (sigma in the paper). max_grad_norm:
    largest L2 norm of one example's gradient over all trained weights (C in the paper). batch_size: expected examples
    of a private step; None for the trainer's. rows: of each table, private training is of so many rows that the proxy
    set uses most; None for all that it uses. examples: how many the learner is taken to have, for the number of steps
    and the sampling rate, which show in what it sends; None for how many it has.
    """

    noise_multiplier: float
    max_grad_norm: float
    batch_size: int | None = None
    rows: int | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0.0 or self.max_grad_norm <= 0.0 or min(self.batch_size or 1, self.rows or 1) < 1:
            raise ValueError("DP-SGD needs noise_multiplier >= 0, max_grad_norm > 0 and batch_size and rows >= 1")

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on every entry of the sum of clipped gradients."""
        return self.noise_multiplier * self.max_grad_norm


def sampling_rate(examples: int, batch_size: int) -> float:
    """Probability with which Poisson sampling takes each of ``examples`` into a batch of expected ``batch_size``."""
    return min(1.0, batch_size / examples)


def gaussian(size: int, deviation: float, generator: torch.Generator) -> Tensor:
    """Noise for one step of one learner, float32 ``[size]``, on the generator's device.

    Drawn flat over all trained weights (in the order of the model's parameters, of a table only its trained rows and
    never padding row 0), so that every trainer that is given the same generator adds the same noise.
    """
    if deviation == 0.0:
        return torch.zeros(size, device=generator.device)
    return torch.randn(size, generator=generator, device=generator.device).mul_(deviation)
