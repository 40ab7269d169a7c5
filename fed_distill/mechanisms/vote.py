"""Unit ``vote``: merchants vote on the labels of public examples, and only noisy winners are released.

Confident-GNMax of Papernot et al., "Scalable private learning with PATE", ICLR 2018, algorithm 1: a noisy threshold
test decides whether enough merchants agree, and if so, a noisy argmax selects the label. The guarantee covers any
change of one merchant's votes. The server, which counts the votes, is trusted to add the noise.
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

_STEP = 1e-4


@dataclass(frozen=True)
class ByVote(AtServer):
    """Hides a merchant's whole contribution in noisy winners of votes."""

    settings: VotesConfig = field(default_factory=VotesConfig)
    moved_by: ClassVar[float] = MOVED_BY["vote"]

    @property
    def words(self) -> Words:
        """The guarantee for a merchant."""
        return Words(
            hides="all examples of any one merchant, through the votes that they decide",
            trusted="the server, which receives each merchant's votes and adds noise to their counts",
            title="A merchant's votes",
            promise="An observer of the labels that result from the votes, and of the student trained on them, can "
            "hardly tell whether any one merchant participated, with all the examples that decide its votes.",
            counts="the voting merchants",
            assumption="Each merchant has one vote for each proxy example. Two federations are neighbours if one "
            "merchant's votes are added or removed.",
        )

    def covers(self, kind: type[Payload]) -> str | None:
        """Cover votes, which are counted."""
        return "received by the server, which releases noised counts" if kind is Votes else None

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Raise ConfigError unless the method sends votes only."""
        self.check_covered(federation.method, sends)
        if sends != (Votes,):
            raise ConfigError(
                f"privacy.unit = {self.name!r} adds noise to counts of votes: choose a method that sends votes only, "
                f"such as pate, not {federation.method}"
            )

    def counting(self, terms: Terms) -> "VoteMechanism":
        """Return the vote mechanism of each round; the consensus is a share of the merchants sampled in a round."""
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
        """Return the cost of all rounds of a federation for each merchant."""
        return vote_spends(self.counting(terms), queried(self.settings, terms.proxy), terms.federation.rounds)

    def tally(self, terms: Terms, noise: NoiseSource, round: int) -> Callable[[Tensor], Tensor]:
        """Return a function from votes ``[proxy, classes]`` of a round to labels int64 ``[proxy]``."""
        queries = queried(self.settings, terms.proxy)
        return partial(_counted, mechanism=self.counting(terms), queries=queries, noise=noise, round=round)


def queried(config: VotesConfig, proxy: int) -> int:
    """Return the number of proxy examples queried per round."""
    return proxy if config.queries is None else min(config.queries, proxy)


def _counted(histogram: Tensor, mechanism: "VoteMechanism", queries: int, noise: NoiseSource, round: int) -> Tensor:
    """Answer a public random subset of the queries."""
    order = torch.randperm(len(histogram), generator=seeds.torch_stream(*noise.name, "queries", round))[:queries]
    selected = histogram[order]
    counted = b"" if noise.reproducible else hashlib.sha256(selected.contiguous().numpy().data).digest()
    answers = torch.full((len(histogram),), NO_ANSWER)
    stream = Keystream(*noise.name, "vote noise", round, repr(mechanism), counted)
    answers[order] = mechanism.answers(selected, stream)
    return answers


@dataclass(frozen=True)
class VoteMechanism:
    """Confident-GNMax (Papernot et al. 2018, algorithm 1) with a maximum number of answers.

    threshold: minimum noised number of votes of the winner (T). threshold_noise: standard deviation of that noise, in
    votes (sigma_1). answer_noise: standard deviation of the noise on each class's votes (sigma_2). max_answers: maximum
    number of answers per round, so that their cost is known in advance. Raises ValueError for values out of range.
    """

    threshold: float
    threshold_noise: float
    answer_noise: float
    max_answers: int

    def __post_init__(self) -> None:
        if not all(math.isfinite(noise) and noise >= 0.0 for noise in (self.threshold_noise, self.answer_noise)):
            raise ValueError("the noise on votes must be finite and at least 0")
        if not math.isfinite(self.threshold) or self.max_answers < 1:
            raise ValueError("votes require a finite threshold and max_answers of at least 1")

    def answers(self, histogram: Tensor, stream: Keystream) -> Tensor:
        """Return labels int64 ``[queries]`` for votes ``[queries, classes]``; ``NO_ANSWER`` without a consensus.

        Queries after the first ``max_answers`` answers are not answered.
        """
        votes = histogram.double()
        queries = len(votes)
        doubt = stream.normal(queries) * self.threshold_noise
        noise = stream.normal(*votes.shape) * self.answer_noise
        agreed = votes.amax(dim=-1) + doubt >= self.threshold
        answered = agreed & (agreed.cumsum(0) <= self.max_answers)
        return torch.where(answered, plurality(votes + noise), NO_ANSWER)


def vote_spends(mechanism: VoteMechanism, queries: int, rounds: int = 1) -> tuple[Spend, Spend]:
    """Return the data-independent cost of ``rounds`` rounds for a merchant, for any votes.

    Neighbours differ in one merchant's votes, replaced or removed. A replaced vote moves from one class to another: the
    largest count changes by at most 1, and the counts by sqrt(2) in L2 norm (Papernot et al. 2018, proposition 8). A
    removed vote changes both by 1, so that replacement, the paper's adjacency, covers both; under add/remove adjacency
    alone the answers would cost half. Every query of a round costs a threshold test, and ``max_answers`` of them an
    answer. Amplification by sampling of merchants is not used: the rate is 1.

    :param mechanism: the vote mechanism
    :param queries: number of queries per round
    :param rounds: number of rounds
    :returns: cost of the threshold tests and of the answers
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
    """Return the mechanism with the least noise that stays within ``target_epsilon`` over all rounds.

    :param target_epsilon: epsilon of ``vote_spends``
    :param delta: delta of the target
    :param queries: number of queries per round
    :param max_answers: maximum number of answers per round
    :param voters: number of merchants per round
    :param consensus: share of the ``voters`` that must agree, in (0, 1]
    :param ratio: ``threshold_noise`` / ``answer_noise`` (3.75 to 5 in Papernot et al. 2018)
    :param rounds: number of rounds
    :param accountant: ``pld`` or ``rdp``
    :raises BudgetExceeded: no noise level suffices
    :raises ValueError: a parameter is out of range
    """
    if not 0.0 < consensus <= 1.0 or not 0.0 < ratio < math.inf or min(queries, max_answers, voters, rounds) < 1:
        raise ValueError("votes require a consensus in (0, 1], a ratio above 0, and counts of at least 1")
    # Gaussian mechanisms compose to one, of noise z: 1 / z^2 = checks / sigma_1^2 + 2 answers / sigma_2^2.
    whole = noise_for(target_epsilon, delta, 1.0, 1, accountant=accountant)
    noise = whole * math.sqrt(rounds * (queries / ratio**2 + 2.0 * min(max_answers, queries)))
    while True:
        mechanism = VoteMechanism(consensus * voters, ratio * noise, noise, max_answers)
        if epsilon(vote_spends(mechanism, queries, rounds), delta, accountant) <= target_epsilon:
            return mechanism
        noise *= 1.0 + _STEP  # numerical composition of many steps may be slightly above the closed form
