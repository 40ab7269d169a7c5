"""White-box audit of central noise with canary merchants: mean update (unit ``merchant``) and votes (``vote``).

Aggregator and vote count are production code, with their own noise streams. A canary merchant changes one coordinate by
far more than the clipping norm, or votes on queries that a single vote decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_ndtr
from torch import Tensor

from fed_distill.aggregation.votes import NO_ANSWER
from fed_distill.audit.gradient_canaries import TABLE
from fed_distill.audit.membership import BoolArray, IntArray
from fed_distill.audit.roc import FloatArray
from fed_distill.audit.white_box import CANARIES, REFERENCES, Canaries, WhiteBoxAudit
from fed_distill.mechanisms.merchant import PrivateMean
from fed_distill.mechanisms.vote import VoteMechanism, vote_spends
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import Accountant, Spend
from fed_distill.transport.messages import Uplink

Tally = Callable[[int], Callable[[Tensor], Tensor]]

_STRENGTH = 1000.0
"""Norm of a canary's update relative to the initial clipping norm, which may adapt."""
_INSTANCES = 400
_SURELY = 10.0
"""Margin of a decided vote, in standard deviations of the noise."""


@dataclass(frozen=True)
class MeanAudit:
    """Inputs of an audit of merchant-level DP.

    mean: returns a federation's aggregator before its first round, for a ``CanaryStudent``; its argument distinguishes
    federations. present: returns which merchants participate in a round (1-based), bool ``[merchants]``. rate: sampling
    probability. rounds: rounds per federation.
    """

    mean: Callable[[int], PrivateMean]
    present: Callable[[int, int], BoolArray]
    rate: float
    rounds: int

    def run(
        self,
        *,
        seed: int,
        delta: float = 1e-5,
        confidence: float = 0.95,
        canaries: int = 20_000,
        references: int = REFERENCES,
        accountant: Accountant = "pld",
    ) -> WhiteBoxAudit:
        """Run one federation with a random half of the canaries and return lower bounds on epsilon at ``delta``."""
        secret = Canaries.drawn(canaries, self.rounds, seed)
        mean, seen = self.mean(0), np.zeros((self.rounds, canaries + references))
        start = {TABLE: torch.zeros(canaries + references + 1, 1)}
        for number in range(1, self.rounds + 1):
            norm = float(mean.state()["clip_norm"])
            there = np.flatnonzero(secret.included & self.present(number, canaries))
            moved = mean.average(start, _uplinks(there, secret.directions[number - 1], _STRENGTH * mean.clip_norm))
            seen[number - 1] = moved[TABLE][1:, 0].double().numpy() * (mean.expected_merchants / norm)
        spend = Spend(mean.noise_multiplier, self.rate, 1)
        scores = secret.scores(seen, None, spend)
        return secret.bounds("merchant", scores, [spend] * self.rounds, delta, confidence, accountant)

    def foreseen(
        self,
        outsider: Callable[[int], PrivateMean],
        *,
        seed: int,
        delta: float = 1e-5,
        confidence: float = 0.95,
        accountant: Accountant = "pld",
    ) -> WhiteBoxAudit:
        """Run federations of one canary each against an attacker with the run's seed and without its secrets.

        A canary is guessed as included if the true first release is closer to the attacker's release with it than to
        the one without. An update of 0 represents absence, so that participation reveals nothing.

        :param outsider: returns the attacker's guess of the aggregator
        """
        secret = Canaries.drawn(_INSTANCES, 1, seed)
        spend = Spend(self.mean(0).noise_multiplier, self.rate, 1)
        start = {TABLE: torch.zeros(3, 1)}
        scores = np.zeros(_INSTANCES)

        def release(mean: PrivateMean, included: bool) -> Tensor:
            sent = _uplinks(np.array([0]), np.array([float(included)]), _STRENGTH * mean.clip_norm)
            return mean.average(start, sent)[TABLE]

        for place, included in enumerate(secret.included):
            true = release(self.mean(place + 1), bool(included))
            away = [float((true - release(outsider(place + 1), guess)).square().sum()) for guess in (False, True)]
            scores[place] = away[0] - away[1]
        return secret.bounds("merchant", [scores], [spend] * self.rounds, delta, confidence, accountant)


def _uplinks(merchants: IntArray, directions: FloatArray, strength: float) -> Iterator[Uplink]:
    """Yield the update of each canary merchant, which changes only its own coordinate."""
    for place in merchants.tolist():
        moved = torch.full((1, 1), strength * float(directions[place]))
        rows = {TABLE: torch.tensor([place + 1])}
        yield Uplink(f"canary {place}", 1, (StudentUpdate({TABLE: moved}, rows),))


@dataclass(frozen=True)
class VoteAudit:
    """Inputs of an audit of vote-level DP.

    tally: for a round (1-based), maps votes ``[queries, 2]`` to answers, for any number of queries. mechanism: the
    claimed mechanism. queries, rounds: of a federation. outsider: ``tally`` as guessed by an attacker with the run's
    seed and without its secrets; None for no such attack.
    """

    tally: Tally
    mechanism: VoteMechanism
    queries: int
    rounds: int
    outsider: Tally | None = None

    def run(
        self,
        *,
        seed: int,
        delta: float = 1e-5,
        confidence: float = 0.95,
        canaries: int = CANARIES,
        accountant: Accountant = "pld",
    ) -> WhiteBoxAudit:
        """Run a federation in which each canary merchant votes on its own queries, all for one class or all for the
        other, with probability 1/2; their number is that of all answered queries.

        The guarantee is about replaced votes. The other merchants' votes are tied and far above the threshold, so that
        one vote decides; in every sixteenth query they are at the threshold, so that it decides whether there is an
        answer.
        """
        secret = Canaries.drawn(canaries, self.rounds, seed)
        answers = self._answers(self.tally, secret.directions, secret.included)
        weights, checks = self._weights()
        scores = [answers @ weights, answers @ (weights * checks)]
        if self.rounds > 1:
            scores.append(self._swayed(answers, secret.directions))
        if self.outsider is not None:
            every: BoolArray = np.ones(canaries, dtype=np.bool_)
            right = [self._answers(self.outsider, secret.directions, guess) == answers for guess in (every, ~every)]
            scores.append(right[0].sum(axis=1) - 1.0 * right[1].sum(axis=1))
        spends = vote_spends(self.mechanism, self.queries, self.rounds)
        return secret.bounds("vote", scores, spends, delta, confidence, accountant)

    def _swayed(self, answers: FloatArray, directions: FloatArray) -> FloatArray:
        """Return for each canary ``[m]`` the number of queries that indicate inclusion minus those that indicate
        exclusion, among queries that do so in two successive rounds with different votes. If both rounds have the same
        noise, no indication is wrong."""
        of_rounds = answers.reshape(len(answers), self.rounds, self._own)
        turned = (directions[1:] != directions[:-1]).T
        both = np.where(of_rounds[:, 1:] == of_rounds[:, :-1], of_rounds[:, 1:], 0.0).sum(axis=2)
        swayed: FloatArray = (both * turned).sum(axis=1)
        return swayed

    @property
    def _own(self) -> int:
        """Number of queries per canary."""
        return min(self.queries, self.mechanism.max_answers)

    @property
    def _checks(self) -> BoolArray:
        return np.asarray(np.arange(self._own) % 16 == 15)

    def _weights(self) -> tuple[FloatArray, FloatArray]:
        """Return the log-likelihood ratio of an answer by round and query, and which queries are checks, as 0 and 1."""
        checks = np.tile(self._checks, self.rounds)
        noise = np.where(checks, 2.0 * self.mechanism.threshold_noise, np.sqrt(2.0) * self.mechanism.answer_noise)
        ahead = 1.0 / np.maximum(noise, 1.0 / 30.0)
        return np.asarray(log_ndtr(ahead) - log_ndtr(-ahead)), checks.astype(np.float64)

    def _votes(self) -> Tensor:
        """Return votes ``[2, own queries, 2]``, with the canary's for the second class and for the first.

        In a check the second class is far behind, so that a vote for it has no effect.
        """
        base, mechanism = self.mechanism.threshold, self.mechanism
        votes = torch.full((self._own, 2), base + _SURELY * max(mechanism.threshold_noise, 1.0), dtype=torch.float64)
        checks = torch.from_numpy(self._checks)
        votes[checks] = base - 0.5
        votes[checks, 1] -= 2.0 * _SURELY * max(mechanism.answer_noise, 1.0)
        return votes + torch.eye(2, dtype=torch.float64).flip(0).unsqueeze(1)

    def _answers(self, tally: Tally, directions: FloatArray, included: BoolArray) -> FloatArray:
        """Return 1 for an answer (for a check, any) that an included canary makes more likely, -1 for one that it makes
        less likely, 0 for none: ``[canaries, rounds x own queries]``."""
        found, votes = [], self._votes()
        for number, direction in enumerate(directions, start=1):
            histogram = votes[torch.from_numpy((direction > 0) == included).long()]
            answers = tally(number)(histogram.view(-1, 2)).view(-1, self._own).numpy()
            shown = np.where(self._checks, 2.0 * (answers != NO_ANSWER) - 1.0, 1.0 * (answers == 0) - (answers == 1))
            found.append(shown * direction[:, None])
        return np.concatenate(found, axis=1)
