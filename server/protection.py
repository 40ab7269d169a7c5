"""The server's part in privacy of units ``merchant`` and ``vote``: the noise that merchants trust it to add."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fed_distill.config import FederationConfig, PrivacyConfig
from fed_distill.models import TextModel
from fed_distill.models.freezing import freeze
from fed_distill.privacy.central import mean_noise, queried, vote_mechanism
from fed_distill.privacy.merchant_level import PrivateMean, QuantileClipping
from fed_distill.privacy.votes import NO_ANSWER, VoteMechanism, plurality
from fed_distill.runtime import seeds
from fed_distill.runtime.seeds import Randomness


def private_mean(
    config: PrivacyConfig, federation: FederationConfig, student: TextModel, merchants: int, randomness: Randomness
) -> PrivateMean:
    """The aggregator of unit ``merchant``, in the place of plain averaging; ``student`` is frozen as at merchants."""
    freeze(student, config.freeze)
    frozen = frozenset(name for name, value in student.named_parameters() if not value.requires_grad)
    quantile = config.adaptive_quantile
    return PrivateMean(
        noise_multiplier=mean_noise(config, federation, merchants),
        expected_merchants=federation.participation * merchants,
        clip_norm=config.max_update_norm,
        randomness=(*randomness, "merchant noise"),
        frozen=frozen,
        padded=frozenset(student.tables),
        adaptive=None if quantile is None else QuantileClipping(quantile),
    )


def vote_count(
    config: PrivacyConfig, federation: FederationConfig, merchants: int, proxy: int, randomness: Randomness
) -> Callable[[Tensor], Tensor]:
    """How one round's votes ``[proxy, classes]`` become answers int64 ``[proxy]``, for unit ``vote``.

    ``randomness`` is of the round: which examples are asked about, which is public, and the noise.
    """
    queries = queried(config, proxy)
    mechanism = vote_mechanism(config, federation, merchants, queries)
    return partial(_counted, mechanism=mechanism, queries=queries, randomness=randomness)


def counted_plainly(histogram: Tensor) -> Tensor:
    """Answers without privacy: what most say, and nothing where nobody voted."""
    return torch.where(histogram.sum(dim=-1) > 0, plurality(histogram), NO_ANSWER)


def _counted(histogram: Tensor, mechanism: VoteMechanism, queries: int, randomness: Randomness) -> Tensor:
    order = torch.randperm(len(histogram), generator=seeds.torch_stream(*randomness, "queries"))[:queries]
    answers = torch.full((len(histogram),), NO_ANSWER)
    answers[order] = mechanism.answers(histogram[order], seeds.torch_stream(*randomness, "vote noise"))
    return answers
