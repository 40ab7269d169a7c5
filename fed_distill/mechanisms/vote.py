"""Unit ``vote``: merchants vote on the label of a public example, and only a noisy winner is told.

Confident-GNMax of Papernot et al., "Scalable private learning with PATE", ICLR 2018, algorithm 1: whether enough
merchants agree is asked with noise, and if they do, the winner is found with noise. The promise is about any one
merchant's votes, whatever they become; the server, which counts the votes, is trusted to add the noise.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.aggregation.votes import NO_ANSWER, plurality
from fed_distill.config import Experiment, FederationConfig, VotesConfig
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import NoiseSource, Terms, Words
from fed_distill.payloads.base import Payload
from fed_distill.payloads.votes import Votes
from fed_distill.privacy.accounting import Accountant, Spend, epsilon, noise_for
from fed_distill.privacy.exposure import MOVED_BY
from fed_distill.seeds import Keystream
from fed_distill.transport.messages import Kinds

_ORDERS = 1.0 + torch.logspace(-2.0, 3.0, 400, dtype=torch.float64)
_STEP = 1e-4


@dataclass(frozen=True)
class ByVote(AtServer):
    """Hides everything of a merchant in the noisy winners of its and others' votes."""

    settings: VotesConfig = field(default_factory=VotesConfig)
    moved_by: ClassVar[float] = MOVED_BY["vote"]

    @property
    def words(self) -> Words:
        """What is promised to a merchant."""
        return Words(
            hides="all examples of any one merchant, through the votes that they decide",
            trusted="the server, which receives each merchant's votes and adds noise to their counts",
            title="A merchant's votes",
            promise="Whoever sees the labels that the votes gave, and the student trained on them, can hardly tell "
            "whether any one merchant took part, with all the examples that decide its votes.",
            counts="the voting merchants",
            assumption="Each merchant has one vote for each proxy example. Two federations are neighbours if one "
            "merchant's votes are added or removed.",
        )

    def covers(self, kind: type[Payload]) -> str | None:
        """Votes, which are counted."""
        return "received by the server, which releases noised counts" if kind is Votes else None

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """ConfigError for a method that sends anything but votes."""
        self.check_covered(federation.method, sends)
        if sends != (Votes,):
            raise ConfigError(
                f"privacy.unit = {self.name!r} noises counts of votes: it needs a method that sends votes only, such "
                f"as pate, not {federation.method}"
            )

    def counting(self, terms: Terms) -> "VoteMechanism":
        """How each round's votes are counted; the share that must agree is of those who are asked in a round."""
        config, own, federation = terms.promise, self.settings, terms.federation
        voters = max(1, round(federation.participation * terms.merchants))
        if config.noise_multiplier is not None:
            noise = config.noise_multiplier
            return VoteMechanism(own.consensus * voters, own.vote_noise_ratio * noise, noise, own.answers)
        assert config.epsilon is not None
        return calibrated(
            config.epsilon,
            self.delta(config, terms.merchants),
            queries=queried(own, terms.proxy),
            max_answers=own.answers,
            voters=voters,
            consensus=own.consensus,
            ratio=own.vote_noise_ratio,
            rounds=federation.rounds,
            accountant=config.accountant,
        )

    def spends(self, terms: Terms) -> tuple[Spend, ...]:
        """What all rounds of a federation cost each of its merchants."""
        return vote_spends(self.counting(terms), queried(self.settings, terms.proxy), terms.federation.rounds)

    def tally(self, terms: Terms, noise: NoiseSource, round: int) -> Callable[[Tensor], Tensor]:
        """How votes ``[proxy, classes]`` of a round become answers int64 ``[proxy]``."""
        queries = queried(self.settings, terms.proxy)
        return partial(_counted, mechanism=self.counting(terms), queries=queries, noise=noise, round=round)


def queried(config: VotesConfig, proxy: int) -> int:
    """Proxy examples that are asked about in a round."""
    return proxy if config.queries is None else min(config.queries, proxy)


def _counted(histogram: Tensor, mechanism: "VoteMechanism", queries: int, noise: NoiseSource, round: int) -> Tensor:
    """Which examples are asked about is public."""
    order = torch.randperm(len(histogram), generator=seeds.torch_stream(*noise.name, "queries", round))[:queries]
    asked = histogram[order]
    counted = b"" if noise.reproducible else hashlib.sha256(asked.contiguous().numpy().data).digest()
    answers = torch.full((len(histogram),), NO_ANSWER)
    stream = Keystream(*noise.name, "vote noise", round, repr(mechanism), counted)
    answers[order] = mechanism.answers(asked, stream)
    return answers


@dataclass(frozen=True)
class VoteMechanism:
    """Confident-GNMax (Papernot et al. 2018, algorithm 1) that stops after a number of answers.

    threshold: votes that the winner must have, with noise (T). threshold_noise: standard deviation of that noise, in
    votes (sigma_1). answer_noise: standard deviation of the noise on each class's votes (sigma_2). max_answers: of one
    round, so that their cost is known before. ValueError for impossible numbers.
    """

    threshold: float
    threshold_noise: float
    answer_noise: float
    max_answers: int

    def __post_init__(self) -> None:
        if not all(math.isfinite(noise) and noise >= 0.0 for noise in (self.threshold_noise, self.answer_noise)):
            raise ValueError("the noise on votes must be finite and at least 0")
        if not math.isfinite(self.threshold) or self.max_answers < 1:
            raise ValueError("votes need a finite threshold and max_answers of at least 1")

    def answers(self, histogram: Tensor, stream: Keystream) -> Tensor:
        """Labels int64 ``[queries]`` from votes ``[queries, classes]``; ``NO_ANSWER`` without a consensus.

        After ``max_answers`` answers, in the order of the queries, nothing more is answered.
        """
        votes = histogram.double()
        queries = len(votes)
        doubt = stream.normal(queries) * self.threshold_noise
        noise = stream.normal(*votes.shape) * self.answer_noise
        agreed = votes.amax(dim=-1) + doubt >= self.threshold
        answered = agreed & (agreed.cumsum(0) <= self.max_answers)
        return torch.where(answered, plurality(votes + noise), NO_ANSWER)


def vote_spends(mechanism: VoteMechanism, queries: int, rounds: int = 1) -> tuple[Spend, Spend]:
    """What ``rounds`` rounds of ``queries`` examples each cost a merchant, whatever the votes: a bound without data.

    Neighbours differ in one merchant's votes, replaced by any others or taken away. A vote that is replaced moves from
    one class to another: the largest count changes by 1 at most, the counts by sqrt(2) in L2 norm (Papernot et al.
    2018, proposition 8). A vote that is taken away changes both by 1, so that replacing, which the paper means, covers
    either; under add/remove adjacency alone the answers would cost half. Each round's every example costs a check, and
    ``max_answers`` of them cost an answer. Merchants that are drawn by chance are not counted on: a rate of 1.
    """
    answers = min(mechanism.max_answers, queries)
    return (
        Spend(mechanism.threshold_noise, 1.0, rounds * queries),
        Spend(mechanism.answer_noise / math.sqrt(2.0), 1.0, rounds * answers),
    )


def calibrated(
    target_epsilon: float,
    delta: float,
    *,
    queries: int,
    max_answers: int,
    voters: int,
    consensus: float,
    ratio: float,
    rounds: int = 1,
    accountant: Accountant = "pld",
) -> VoteMechanism:
    """The mechanism with the least noise whose ``vote_spends`` over all rounds stay within ``target_epsilon``.

    queries: examples of a round. max_answers: of a round. consensus: share of the ``voters`` that must agree, in
    (0, 1]. ratio: ``threshold_noise`` over ``answer_noise`` (Papernot et al. 2018 take 3.75 to 5). BudgetExceeded if no
    noise is enough; ValueError for impossible numbers.
    """
    if not 0.0 < consensus <= 1.0 or not 0.0 < ratio < math.inf or min(queries, max_answers, voters, rounds) < 1:
        raise ValueError("votes need a consensus in (0, 1], a ratio above 0, and counts of at least 1")
    # Gaussian mechanisms compose to one, of noise z: 1 / z^2 = checks / sigma_1^2 + 2 answers / sigma_2^2.
    whole = noise_for(target_epsilon, delta, 1.0, 1, accountant=accountant)
    noise = whole * math.sqrt(rounds * (queries / ratio**2 + 2.0 * min(max_answers, queries)))
    while True:
        mechanism = VoteMechanism(consensus * voters, ratio * noise, noise, max_answers)
        if epsilon(vote_spends(mechanism, queries, rounds), delta, accountant) <= target_epsilon:
            return mechanism
        noise *= 1.0 + _STEP  # numerical composition may find the many parts a little dearer than the whole


def data_dependent_epsilon(histograms: Tensor, answered: Tensor, mechanism: VoteMechanism, delta: float) -> float:
    """What the answers cost as the votes were; NOT RELEASABLE, for the operator's own eyes.

    It is smaller where merchants agree, and so depends on the private votes itself: telling it needs noise by its
    smooth sensitivity (Papernot et al. 2018, section 3.3), which is not done here. Quote ``vote_spends`` instead.
    histograms: votes ``[queries, classes]``. answered: bool ``[queries]``, which were answered. ValueError unless
    0 < delta < 1.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    if not mechanism.threshold_noise or not mechanism.answer_noise:
        return math.inf
    votes = histograms.double()
    # A check changes by 1 and not sqrt(2): it costs what GNMax with sqrt(2) times its noise would.
    checks = renyi_bound(_log_surprise(votes, mechanism), math.sqrt(2.0) * mechanism.threshold_noise, _ORDERS)
    answers = renyi_bound(log_miss(votes[answered], mechanism.answer_noise), mechanism.answer_noise, _ORDERS)
    total = checks.sum(dim=0) + answers.sum(dim=0)
    # From Rényi DP to (epsilon, delta): Balle et al. 2020, arXiv 1905.09982, theorem 21.
    bounds = total - (math.log(delta) + _ORDERS.log()) / (_ORDERS - 1.0) + torch.log1p(-1.0 / _ORDERS)
    return max(0.0, float(bounds.min()))


def log_miss(histogram: Tensor, answer_noise: float) -> Tensor:
    """Upper bound on log Pr[GNMax does not tell the true plurality], ``[queries]``, of votes ``[queries, classes]``.

    Papernot et al. 2018, proposition 7: a union bound over the other classes; by symmetry at most 1 - 1 / classes.
    """
    votes = histogram.double()
    top, best = votes.max(dim=-1, keepdim=True)
    beats: Tensor = torch.special.log_ndtr((votes - top) / (math.sqrt(2.0) * answer_noise))
    beats = beats.scatter(-1, best, -math.inf)
    return beats.logsumexp(dim=-1).clamp_max(math.log1p(-1.0 / votes.shape[-1]))


def renyi_bound(log_q: Tensor, answer_noise: float, orders: Tensor) -> Tensor:
    """Bound on GNMax's Rényi divergence, from votes whose winner is missed with probability q at most to neighbours.

    Papernot et al. 2018, theorem 6 at the orders mu_1, mu_2 of proposition 10 where it applies, and at most the
    data-independent order / sigma^2 of proposition 8. log_q: ``[queries]``, below 0. orders: above 1. Returns float64
    ``[queries, orders]``.
    """
    variance = answer_noise**2
    log_q = log_q.double().unsqueeze(-1)
    order = orders.double()
    mu_2 = answer_noise * (-log_q).sqrt()
    mu_1 = mu_2 + 1.0
    epsilon_1, epsilon_2 = mu_1 / variance, mu_2 / variance
    ceiling = (mu_2 - 1.0) * epsilon_2 - mu_2 * ((mu_1 / (mu_1 - 1.0)).log() + (mu_2 / (mu_2 - 1.0)).log())
    applies = (mu_2 > 1.0) & (order <= mu_1) & (log_q <= ceiling) & (log_q + epsilon_2 < 0.0)
    log_right = _log1mexp(log_q)
    log_a = log_right - _log1mexp(((log_q + epsilon_2) * (1.0 - 1.0 / mu_2)).clamp_max(-1e-300))
    log_b = epsilon_1 - log_q / (mu_1 - 1.0)
    power = order - 1.0
    found = torch.logaddexp(log_right + power * log_a, log_q + power * log_b) / power
    independent = order / variance
    return torch.where(applies, found.clamp_min(0.0).minimum(independent), independent)


def _log_surprise(votes: Tensor, mechanism: VoteMechanism) -> Tensor:
    """log Pr[the check turns out the less likely way], ``[queries]``."""
    margin = (votes.amax(dim=-1) - mechanism.threshold).abs() / mechanism.threshold_noise
    surprise: Tensor = torch.special.log_ndtr(-margin)
    return surprise


def _log1mexp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) of negative values, without cancellation at either end."""
    return torch.where(value < -math.log(2.0), torch.log1p(-value.exp()), torch.log(-torch.expm1(value)))
