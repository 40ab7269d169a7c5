"""A round's work for a site's merchants: the plan, and the initial weights of each training."""

from dataclasses import dataclass
from functools import cached_property

from fed_distill.config.training import UnlabeledConfig
from fed_distill.distill.losses import PSEUDO_LABELS, pseudo_labels
from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.mechanisms.release import Release
from fed_distill.merchant.drawn_labels import Drawn
from fed_distill.methods.base import Method
from fed_distill.models.pair import paired
from fed_distill.models.weights import Weights
from fed_distill.training.plan import Phase, Plan, Predicted
from fed_distill.training.preparation import private_steps, public_steps
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.requests import TrainRequest


@dataclass(frozen=True)
class RoundTask:
    """The parts of a request that are common to all merchants."""

    request: TrainRequest
    down: Downlink
    method: Method
    plan: Plan

    @cached_property
    def labelled(self) -> Plan:
        """The plan of merchants without unlabeled examples: one object, as merchants of one plan train together."""
        return Plan(tuple(phase for phase in self.plan.phases if phase.data != "unlabeled"), self.plan.pair)

    def steps(self, learner: Learner, members: int, private_batch: int, batch: int) -> int:
        """Return a merchant's number of optimizer steps in the round.

        :param members: its number of members of the privacy unit
        :param private_batch: expected batch size on private examples
        :param batch: batch size on other examples
        """
        proxy, unlabeled = (len(next(iter(one.values()), ())) for one in (learner.proxy, learner.unlabeled))
        steps = private_steps(self.plan, members, private_batch) + public_steps(self.plan, "proxy", proxy, batch)
        return steps + (public_steps(self.plan, "unlabeled", unlabeled, batch) if unlabeled else 0)


@dataclass(frozen=True)
class Participant:
    """A merchant that trains in a round: its weight in examples, the release that it was charged for, and its
    randomized labels, each if privacy has them."""

    learner: Learner
    size: int
    release: Release | None = None
    drawn: Drawn | None = None


def planned(method: Method, down: Downlink, name: str, unlabeled: UnlabeledConfig) -> Plan:
    """Return the method's plan for a downlink, with a phase on unlabeled examples if configured.

    :raises TrainingError: the downlink is incomplete, or the plan requires state or trains on private examples for a
        time that the method does not declare
    """
    try:
        plan = method.plan(down)
    except (AssertionError, KeyError) as error:
        raise TrainingError(f"the downlink lacks payloads that method {name} requires") from error
    if plan.private_durations != method.private_durations(down.round):
        raise TrainingError(
            f"method {name} plans other training on private examples in round {down.round} than its private_durations "
            "declares: plan phases of these durations"
        )
    if plan.pair and method.keeps != "own_student":
        raise TrainingError(f"method {name} plans a pair of students, which requires keeps = 'own_student'")
    if plan.looks_back and method.keeps not in ("own_student", "last_student"):
        raise TrainingError(f"method {name} uses the previous student, which requires keeps = 'last_student'")
    return with_unlabeled(plan, unlabeled, name)


def with_unlabeled(plan: Plan, config: UnlabeledConfig, name: str) -> Plan:
    """Return the plan with a phase on a merchant's unlabeled examples after its last private phase, if configured.

    :raises TrainingError: the method's private phases cannot be followed by such a phase
    """
    if not config.epochs:
        return plan
    if plan.pair or any(phase.corrected for phase in plan.phases):
        raise TrainingError(f"method {name} does not support training.unlabeled: set training.unlabeled.epochs = 0")
    phase = Phase(
        pseudo_labels(config.confidence, config.pseudo_labels == "soft"),
        data="unlabeled",
        epochs=config.epochs,
        predicted={PSEUDO_LABELS: Predicted("start", "probabilities")},
    )
    place = max((place for place, one in enumerate(plan.phases, 1) if one.data == "private"), default=0)
    return Plan((*plan.phases[:place], phase, *plan.phases[place:]))


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


def check_declared(uplink: Uplink, method: Method, arm: str) -> None:
    """Raise UplinkRejected, naming the merchant, if an uplink has payloads that its method does not declare."""
    undeclared = {kind.name for kind in uplink.kinds - set(method.sends)}
    if undeclared:
        raise UplinkRejected(
            f"merchant {uplink.merchant}: method {arm} sends {', '.join(sorted(undeclared))}, but its `sends` does not "
            "declare it"
        )
