"""A round's work for a site's merchants: the plan, and the initial weights of each training."""

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
class RoundTask:
    """The parts of a request that are common to all merchants."""

    request: TrainRequest
    down: Downlink
    method: Method
    plan: Plan


@dataclass(frozen=True)
class Participant:
    """A merchant that trains in a round: its weight in examples, and the release that it was charged for."""

    learner: Learner
    size: int
    release: Release | None = None


def planned(method: Method, down: Downlink, name: str) -> Plan:
    """Return the method's plan for a downlink.

    :raises TrainingError: the downlink is incomplete, or the plan requires state that the method does not declare
    """
    try:
        plan = method.plan(down)
    except (AssertionError, KeyError) as error:
        raise TrainingError(f"the downlink lacks payloads that method {name} requires") from error
    if plan.pair and method.keeps != "own_student":
        raise TrainingError(f"method {name} plans a pair of students, which requires keeps = 'own_student'")
    if plan.looks_back and method.keeps not in ("own_student", "last_student"):
        raise TrainingError(f"method {name} uses the previous student, which requires keeps = 'last_student'")
    return plan


def starting_weights(
    method: Method, plan: Plan, down: Downlink, kept: Weights | None, first: Weights | None
) -> Weights:
    """Return the initial weights of a merchant's training.

    :param kept: weights of the merchant's own student, None if it has none yet
    :param first: initial weights of an own student
    """
    if method.keeps != "own_student":
        if not down.weights:
            raise TrainingError("the downlink lacks the weights of the student")
        return down.weights
    own = first if kept is None else kept
    if own is None:
        raise TrainingError("the merchant has no student of its own, and the request has no initial weights for one")
    if not plan.pair:
        return own
    if not down.weights:
        raise TrainingError("the downlink lacks the weights of the shared student")
    return paired(down.weights, own)
