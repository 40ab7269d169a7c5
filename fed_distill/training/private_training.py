"""Private training of a merchant in all rounds of a federation, known before the first one.

A site calibrates noise for all rounds at once, and may refuse a federation before its first charge. Both require the
number of private steps of rounds that the server has not requested yet.
"""

from dataclasses import dataclass

from fed_distill.errors import TrainingError
from fed_distill.training.plan import Duration
from fed_distill.training.preparation import steps_of


@dataclass(frozen=True)
class PrivateTraining:
    """Durations of the phases on private examples, by round, as declared by the method
    (``methods.base.private_training``)."""

    rounds: tuple[tuple[Duration, ...], ...]

    def check(self, round: int, taken: int) -> None:
        """Raise TrainingError for a request of a round that the federation does not have.

        :param round: requested round, 1-based
        :param taken: number of rounds in which the merchant takes part
        """
        planned = len(self.rounds)
        if not (1 <= round <= planned and 1 <= taken <= planned):
            raise TrainingError(
                f"the request is for round {round}, and for {taken} rounds of the merchant in all, but the federation "
                f"has {planned}: run the same experiment at server and sites"
            )

    def steps(self, round: int, members: int, batch_size: int) -> int:
        """Return the number of private steps in a round.

        :param round: the round, 1-based
        :param members: number of members of the privacy unit
        :param batch_size: expected number of members in a step
        """
        return sum(steps_of(one, members, batch_size) for one in self.rounds[round - 1])

    def most_steps(self, taken: int, members: int, batch_size: int) -> int:
        """Return the maximum number of private steps in ``taken`` different rounds.

        A site knows in how many rounds a merchant takes part, but not in which, so these are the longest ones.
        """
        rounds = range(1, len(self.rounds) + 1)
        return sum(sorted((self.steps(one, members, batch_size) for one in rounds), reverse=True)[:taken])

    def idle_round(self) -> int | None:
        """Return the first round without a private step; None if all have one."""
        return next((number for number in range(1, len(self.rounds) + 1) if not self.steps(number, 1, 1)), None)
