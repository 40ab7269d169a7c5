"""The server's part in privacy of units ``merchant`` and ``vote``: the noise that merchants trust it to add.

At real sites it is drawn from a secret of the server's, and depends on every bit of what it is added to: a federation
that is run again with other settings, data or answers gets other noise. The secret stays in the folder of the runs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import FederationConfig, PrivacyConfig
from fed_distill.mechanisms.central import mean_noise, queried, vote_mechanism
from fed_distill.mechanisms.merchant import PrivateMean, QuantileClipping
from fed_distill.mechanisms.vote import NO_ANSWER, VoteMechanism, plurality
from fed_distill.models import TextModel
from fed_distill.models.freezing import freeze
from fed_distill.seeds import Keystream, Randomness


@dataclass(frozen=True)
class NoiseSource:
    """What a federation's noise and sampling coins are drawn from.

    name: the server's secret, or in a simulation the run's seed, then the arm and what names this very federation.
    reproducible: whether it is a simulation, whose noise whoever knows the seed can take off.
    """

    name: Randomness = field(repr=False)
    reproducible: bool


def private_mean(
    config: PrivacyConfig, federation: FederationConfig, student: TextModel, merchants: int, noise: NoiseSource
) -> PrivateMean:
    """The aggregator of unit ``merchant``, in the place of plain averaging; ``student`` is frozen as at merchants."""
    freeze(student, config.freeze)
    frozen = frozenset(name for name, value in student.named_parameters() if not value.requires_grad)
    quantile = config.adaptive_quantile
    return PrivateMean(
        noise_multiplier=mean_noise(config, federation, merchants),
        expected_merchants=federation.participation * merchants,
        clip_norm=config.max_update_norm,
        randomness=noise.name,
        exact=not noise.reproducible,
        frozen=frozen,
        padded=frozenset(student.tables),
        adaptive=None if quantile is None else QuantileClipping(quantile),
    )


def vote_count(
    config: PrivacyConfig, federation: FederationConfig, merchants: int, proxy: int, noise: NoiseSource, round: int
) -> Callable[[Tensor], Tensor]:
    """How one round's votes ``[proxy, classes]`` become answers int64 ``[proxy]``, for unit ``vote``."""
    queries = queried(config, proxy)
    mechanism = vote_mechanism(config, federation, merchants, queries)
    return partial(_counted, mechanism=mechanism, queries=queries, noise=noise, round=round)


def counted_plainly(histogram: Tensor) -> Tensor:
    """Answers without privacy: what most say, and nothing where nobody voted."""
    return torch.where(histogram.sum(dim=-1) > 0, plurality(histogram), NO_ANSWER)


def _counted(histogram: Tensor, mechanism: VoteMechanism, queries: int, noise: NoiseSource, round: int) -> Tensor:
    """Which examples are asked about is public."""
    order = torch.randperm(len(histogram), generator=seeds.torch_stream(*noise.name, "queries", round))[:queries]
    asked = histogram[order]
    counted = b"" if noise.reproducible else hashlib.sha256(asked.contiguous().numpy().data).digest()
    answers = torch.full((len(histogram),), NO_ANSWER)
    stream = Keystream(*noise.name, "vote noise", round, repr(mechanism), counted)
    answers[order] = mechanism.answers(asked, stream)
    return answers
