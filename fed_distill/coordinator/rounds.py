"""The rounds of one federation: broadcast, train at sites, validate uplinks, merge, evaluate, write the checkpoint."""

import logging
import time
from collections.abc import Callable
from typing import Any

from fed_distill.aggregation.base import Aggregator
from fed_distill.aggregation.checks import least_merchants
from fed_distill.config import FederationConfig
from fed_distill.coordinator.attempts import patiently
from fed_distill.coordinator.federation import Federation, round_learning_rate
from fed_distill.coordinator.progress import FederationProgress, better, keep, restored
from fed_distill.coordinator.uplink_validator import UplinkValidator
from fed_distill.errors import BudgetExceeded
from fed_distill.evaluation.metrics import Metrics
from fed_distill.logs import observed
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Protecting
from fed_distill.methods.base import GlobalState, replace
from fed_distill.models.weights import Weights
from fed_distill.privacy.disclosure import coarse
from fed_distill.storage.sealed import chained

_log = logging.getLogger(__name__)


def federate(
    federation: Federation,
    on_round: Callable[[dict[str, Any]], None],
    on_resume: Callable[[FederationProgress], None],
) -> FederationProgress:
    """Run all rounds, from the checkpoint if there is one.

    A round's results are published only after its checkpoint is written: a round that is repeated after a crash has not
    been released. The federation ends early when no merchant can participate any more.

    :param on_resume: called before the first round with the checkpoint (round 0 without one); the record of its last
        round may not have been published
    :param on_round: called with each round's record
    :raises BudgetExceeded: no merchant can participate in the first round
    :raises CheckpointError: stored state of merchants does not match the checkpoint
    """
    config = federation.config
    aggregator = federation.aggregator()
    progress = restored(federation.part, federation.first_state(), aggregator, federation.identity)
    if federation.released is not None:
        federation.released.check(federation.title, progress.state.round)
        if progress.state.round:  # not noted yet if the run stopped right after its checkpoint
            federation.released.note(federation.title, progress.state.round)
    on_resume(progress)
    if _goes_on(config, progress):
        federation.check_kept(progress.state.round + 1, progress.kept)
    if federation.mechanism.poisson:
        federation.sites.join(federation.request(federation.sites.merchants))
    while _goes_on(config, progress):
        began = time.perf_counter()
        try:
            with observed(round=progress.state.round + 1):
                record = _one_round(federation, aggregator, progress)
        except BudgetExceeded as error:
            if not progress.state.round:
                raise
            _log.warning("%s ends after round %d of %d: %s", federation.arm, progress.state.round, config.rounds, error)
            break
        progress.seconds += time.perf_counter() - began
        progress.record = {**record, "seconds": time.perf_counter() - began}
        progress.lines = chained(progress.lines, progress.record)
        progress.kept = federation.stores.rounds(progress.state.round + 1)
        keep(federation.part, aggregator, progress)
        if federation.released is not None:
            federation.released.note(federation.title, progress.state.round)
        on_round(progress.record)
    return _ended(federation, progress)


def _goes_on(config: FederationConfig, progress: FederationProgress) -> bool:
    """Whether rounds remain, and patience is not exhausted."""
    stale = config.patience is not None and progress.best is not None and progress.best.since >= config.patience
    return progress.state.round < config.rounds and not stale


def _ended(federation: Federation, progress: FederationProgress) -> FederationProgress:
    """Return the final progress: with the best round's student if ``patience`` is set, and mean bytes over rounds."""
    planned, done = federation.config.rounds, progress.state.round
    if 0 < done < planned:
        progress.downlink_bytes *= planned / done
        progress.uplink_bytes *= planned / done
    if federation.config.patience is not None and progress.best is not None:
        progress.state = replace(progress.state, weights=progress.best.weights)
    return progress


def _one_round(federation: Federation, aggregator: Aggregator, progress: FederationProgress) -> dict[str, Any]:
    config, method, state = federation.config, federation.method, progress.state
    number = state.round + 1
    merchants = federation.sampled(number)
    personal = method.keeps == "own_student"
    rate = round_learning_rate(federation.training, number, config.rounds)
    request = federation.request(merchants, rate, test=personal)
    starts: dict[str, dict[str, Weights]] = {}
    if personal:
        starts = {
            merchant: {name: federation.starts[name]}
            for merchant, name in zip(request.merchants, request.students, strict=True)
            if merchant not in progress.started
        }
    down = method.broadcast(state)
    failed: list[str] = []
    least = least_merchants(config)

    def take() -> tuple[GlobalState, UplinkValidator]:
        intake = federation.intake(request, down, starts, state, number, least)
        merged = method.merge(state, intake, federation.services(aggregator, number))
        intake.finish()
        return merged, intake

    merged, intake = patiently(take, config, failed)
    progress.started |= set(intake.merchants) if personal else set()
    progress.state = merged
    progress.downlink_bytes += intake.bytes["downlink"] / config.rounds
    progress.uplink_bytes += intake.bytes["uplink"] / config.rounds
    progress.personal_counts |= intake.own_counts
    record: dict[str, Any] = {
        "seed": federation.seed,
        "federation": federation.arm,
        "round": number,
        "rounds": config.rounds,
        "merchants": len(intake.merchants),
        "rejected": len(intake.refusals),
        "reasons": [refusal.reason for refusal in intake.refusals],
        "answers": intake.answers,
        "retried": failed,
        "train_loss": None if isinstance(federation.mechanism, AtServer) else intake.train_loss,
        "causes": intake.causes,
        "bytes": intake.bytes,
        "total_bytes": intake.total_bytes,
    }
    if number % config.validate_every == 0 or number == config.rounds:
        record["valid"] = validated(federation, merged.weights)
        if merged.teacher_weights:
            record["valid_teacher"] = federation.teacher.validation(merged, federation.evaluator)
        if config.patience is not None:
            progress.best = better(progress.best, _score(federation, record["valid"]), merged.weights)
    counted = [counts for merchant, counts in progress.personal_counts.items() if merchant not in federation.byzantine]
    shares = [right / count for right, count in counted]
    if shares:
        worst = coarse(min(shares)) if isinstance(federation.mechanism, Protecting) else min(shares)
        record["merchant_accuracy"] = {"mean": sum(shares) / len(shares), "worst": worst}
    return record


def validated(federation: Federation, weights: Weights) -> Metrics:
    """Return metrics of the global student on the common validation set."""
    student = federation.students[federation.global_student]
    student.load_state_dict(dict(weights))
    return federation.evaluator.validation(student)


def _score(federation: Federation, valid: Metrics) -> float:
    """Return the score for early stopping. For a private federation it is on the server's own validation examples, as
    the last round must not depend on merchants' data."""
    if isinstance(federation.mechanism, Protecting):
        return federation.evaluator.public_score(federation.students[federation.global_student])
    return federation.evaluator.score(valid)
