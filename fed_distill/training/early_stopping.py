"""Early stopping of one training: train in chunks of steps, and return the weights with the best validation score.

Lin et al., "Ensemble distillation for robust model fusion in federated learning", NeurIPS 2020, section 4.1, stop the
server's distillation so: when the validation score has not improved for 1,000 steps, or after 10,000 steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fed_distill.errors import TrainingError
from fed_distill.models.weights import Weights
from fed_distill.training.plan import Phase, Plan


@dataclass(frozen=True)
class EarlyStopping:
    """patience: number of steps without a better score after which training ends. check_every: number of steps between
    two scores."""

    patience: int
    check_every: int

    def chunks(self, plan: Plan, steps: int) -> tuple[Plan, ...]:
        """Split a plan of one phase with a total of ``steps`` into plans of ``check_every`` steps, the last one short.

        :raises TrainingError: the plan has several phases
        """
        if len(plan.phases) != 1:
            raise TrainingError(f"early stopping is for plans of one phase, not of {len(plan.phases)}")
        sizes = [min(self.check_every, steps - done) for done in range(0, steps, self.check_every)]
        return tuple(replace(plan, phases=(_of_steps(plan.phases[0], size),)) for size in sizes)

    def train(
        self,
        weights: Weights,
        chunks: tuple[Plan, ...],
        train: Callable[[Weights, Plan, int], Weights],
        score: Callable[[Weights], float],
    ) -> Weights:
        """Return the best weights after any number of chunks; the initial ones if no chunk improves their score.

        :param train: trains from weights by a plan, which is the chunk with the given number
        :param score: validation score of weights; the larger the better
        """
        best, highest, stale = weights, score(weights), 0
        for number, chunk in enumerate(chunks):
            weights = train(weights, chunk, number)
            stale += chunk.phases[0].steps or 0
            reached = score(weights)
            if reached > highest:
                best, highest, stale = weights, reached, 0
            if stale >= self.patience:
                break
        return best


def _of_steps(phase: Phase, steps: int) -> Phase:
    return replace(phase, steps=steps, epochs=None)
