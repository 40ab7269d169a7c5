"""What a round asks of a site's merchants: the plan, and where each one's training starts."""

from dataclasses import dataclass

from fed_distill.errors import (
    TrainingError,
)
from fed_distill.mechanisms.release import Release
from fed_distill.methods.base import Method
from fed_distill.models.pair import paired
from fed_distill.models.weights import Weights
from fed_distill.training.plan import Plan
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import TrainRequest


@dataclass(frozen=True)
class Asked:
    """What is asked of all merchants of a request alike."""

    request: TrainRequest
    down: Downlink
    method: Method
    plan: Plan


@dataclass(frozen=True)
class Participant:
    """A merchant that trains in a round: by how many examples it counts, and as which release it was charged."""

    learner: Learner
    size: int
    release: Release | None = None


def planned(method: Method, down: Downlink, name: str) -> Plan:
    """What a method plans for a downlink. TrainingError for a downlink that it cannot plan for, or a plan that takes
    more than the method says its merchants keep."""
    try:
        plan = method.plan(down)
    except (AssertionError, KeyError) as error:
        raise TrainingError(f"a downlink without all that method {name} needs") from error
    if plan.pair and method.keeps != "own_student":
        raise TrainingError(f"method {name} plans a pair of students, which takes keeps = 'own_student'")
    if plan.looks_back and method.keeps not in ("own_student", "last_student"):
        raise TrainingError(f"method {name} compares with the student of before, which takes keeps = 'last_student'")
    return plan


def starting_weights(
    method: Method, plan: Plan, down: Downlink, kept: Weights | None, first: Weights | None
) -> Weights:
    """Where a merchant's training starts; ``first``: its own student's weights, if it has ``kept`` none yet."""
    if method.keeps != "own_student":
        if not down.weights:
            raise TrainingError("a downlink without the weights that a merchant trains")
        return down.weights
    own = first if kept is None else kept
    if own is None:
        raise TrainingError("a merchant has kept no student of its own, and was sent none to start from")
    if not plan.pair:
        return own
    if not down.weights:
        raise TrainingError("a downlink without the weights of the shared student")
    return paired(down.weights, own)
