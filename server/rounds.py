"""The rounds of one federation: broadcast, train at the sites, check, merge, measure, keep, repeat."""

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fed_distill.config import FederationConfig, PrivacyConfig, TrainingConfig
from fed_distill.errors import BudgetExceeded
from fed_distill.merging import AGGREGATORS
from fed_distill.merging.base import Aggregator
from fed_distill.methods import METHODS
from fed_distill.methods.base import GlobalState, Method, Relearn, replace
from fed_distill.models import TextModel
from fed_distill.observing.logs import observed
from fed_distill.results.metrics import Metrics
from fed_distill.runtime import seeds
from fed_distill.runtime.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.training.optimization import Pace, schedule_factor
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink, Weights
from fed_distill.transport.requests import TrainRequest, blueprint_of
from server.attempts import check_there, patiently
from server.evaluation import Evaluator
from server.intake import Intake
from server.learning_teacher import LearningTeacher
from server.protection import counted_plainly, private_mean, vote_count
from server.received import Received
from server.sites import Chunk, Sites, chunk_size
from server.students import ServerTraining

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Federation:
    """One federation on one seed: what it needs, and who runs it.

    unit: of the privacy that the arm is protected by, or ``none``. students: one model by name, the global one first;
    starts: the server's weights for each. relearn: as in ``GlobalState``. checkpoint: the file that keeps the state
    between rounds. codec: how its messages are coded. liars: merchants of a simulation that lie, whose own scores are
    of no interest.
    """

    arm: str
    config: FederationConfig
    training: TrainingConfig
    privacy: PrivacyConfig
    unit: str
    seed: int
    students: Mapping[str, TextModel]
    starts: Mapping[str, Weights]
    dealt: Sequence[str]
    teacher_labels: Tensor
    relearn: Relearn
    sites: Sites
    server: ServerTraining
    evaluator: Evaluator
    teacher: LearningTeacher
    checkpoint: Path
    codec: Codec
    liars: frozenset[str] = frozenset()

    def request(self, merchants: Sequence[str], learning_rate: float = 0.0, test: bool = False) -> TrainRequest:
        """A request to ``merchants``, each with the student dealt to it."""
        place = {merchant: number for number, merchant in enumerate(self.sites.merchants)}
        return TrainRequest(
            arm=self.arm,
            seed=self.seed,
            merchants=tuple(merchants),
            students=tuple(self.dealt[place[merchant] % len(self.dealt)] for merchant in merchants),
            blueprints={name: blueprint_of(model) for name, model in self.students.items()},
            rounds=tuple(max(self.planned[merchant], 1) for merchant in merchants),
            population=len(self.sites.merchants),
            learning_rate=learning_rate,
            test=test,
        )

    @cached_property
    def planned(self) -> Mapping[str, int]:
        """In how many rounds each merchant is asked."""
        config, merchants = self.config, self.sites.merchants
        if config.participation == 1.0:
            return dict.fromkeys(merchants, config.rounds)
        counts = Counter(merchant for number in range(1, config.rounds + 1) for merchant in self.sampled(number))
        return {merchant: counts[merchant] for merchant in merchants}

    def aggregator(self) -> Aggregator:
        """What merges weights: the configured aggregator, or a private mean in its place."""
        if self.unit == "merchant":
            student = copy.deepcopy(self.students[self.global_student])
            merchants = len(self.sites.merchants)
            return private_mean(self.privacy, self.config, student, merchants, (self.seed, self.arm))
        options = dict(self.config.aggregator_options)
        if self.unit == "example" and self.privacy.weighting != "examples":
            options["weight"] = self.privacy.weighting
        built: Aggregator = AGGREGATORS.build(self.config.aggregator, options)
        return built

    def tally(self, number: int) -> Callable[[Tensor], Tensor]:
        """What counts the votes of round ``number``."""
        if self.unit != "vote":
            return counted_plainly
        merchants, proxy = len(self.sites.merchants), len(self.teacher_labels)
        return vote_count(self.privacy, self.config, merchants, proxy, (self.seed, self.arm, number))

    def sampled(self, number: int) -> list[str]:
        """The merchants of round ``number``, sorted; for unit ``merchant`` by a coin for each (Poisson sampling)."""
        merchants, share = self.sites.merchants, self.config.participation
        if self.unit != "merchant":
            return sampled(merchants, share, self.seed, self.arm, number)
        coins = seeds.numpy_stream(self.seed, self.arm, number, "sample merchants").random(len(merchants))
        return [merchant for merchant, coin in zip(merchants, coins, strict=True) if coin < share]

    def first_state(self, aggregator: Aggregator) -> GlobalState:
        """What the server knows before the first round."""
        return GlobalState(
            0,
            self.starts[self.global_student],
            self.teacher_labels,
            aggregator.average,
            self.tally(1),
            self.relearn,
            population=len(self.sites.merchants),
            rounds=self.config.rounds,
        )

    def chunk(self) -> int:
        """Merchants whose uplinks are taken in at once, by the size of the largest student."""
        return chunk_size(
            max(sum(value.nbytes for value in model.state_dict().values()) for model in self.students.values())
        )

    def asked(
        self,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Mapping[str, Weights]],
        away: frozenset[str] | None = None,
    ) -> Iterator[Chunk]:
        """The answers of the request's merchants, as ``Sites.train`` gives them, on this federation's terms."""
        proxy, classes = self.teacher_labels.shape
        received = None
        if self.codec.cache is not None:
            received = Received.beside(self.checkpoint, self.arm, self.seed, down.round)
            request = received.told(request)
        shape, deadline = (proxy, classes), self.config.deadline
        return self.sites.train(request, down, starts, self.chunk(), self.codec, shape, received, deadline, away)

    def intake(
        self,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Mapping[str, Weights]],
        state: GlobalState,
        number: int,
    ) -> Intake:
        """The uplinks of round ``number``, from all of the request's merchants that are there; TooFewAnswers if these
        are too few, before any of them is asked."""
        merchants, share, longest = request.merchants, self.config.minimum_share, self.config.max_update_norm
        away = self.sites.away()
        check_there(merchants, away, share, number)
        chunks = self.asked(request, down, starts, away) if merchants else iter(())
        return Intake(chunks, state, len(merchants), number, share, longest)

    @property
    def global_student(self) -> str:
        """Name of the global student."""
        return next(iter(self.students))


@dataclass(frozen=True)
class Best:
    """The best validation so far: its score, and the global student there. since: validations that came after it."""

    score: float
    weights: Weights
    since: int = 0


@dataclass
class Progress:
    """What a federation carries from round to round beside the method's state. best: where it may stop early."""

    state: GlobalState
    best: Best | None = None
    started: set[str] = field(default_factory=set)
    downlink_bytes: float = 0.0
    uplink_bytes: float = 0.0
    seconds: float = 0.0
    personal_counts: dict[str, tuple[int, int]] = field(default_factory=dict)


def federate(
    federation: Federation,
    on_round: Callable[[dict[str, Any]], None],
    on_resume: Callable[[int], None],
) -> Progress:
    """Run all rounds, going on from the checkpoint if there is one.

    ``on_resume`` is told the round that the checkpoint holds (0 for none) before the first round; ``on_round``
    gets each round's record before the round's checkpoint is written. A federation ends when no merchant may take part
    any more; BudgetExceeded if none ever could.
    """
    config = federation.config
    method: Method = METHODS.build(config.method, config.options)
    aggregator = federation.aggregator()
    progress = _restore(federation, aggregator)
    on_resume(progress.state.round)
    if federation.unit == "merchant":
        federation.sites.join(federation.request(federation.sites.merchants))
    while progress.state.round < config.rounds and not _is_stale(config, progress):
        began = time.perf_counter()
        try:
            with observed(round=progress.state.round + 1):
                record = _one_round(federation, method, progress)
        except BudgetExceeded as error:
            if not progress.state.round:
                raise
            _log.warning("%s ends after round %d of %d: %s", federation.arm, progress.state.round, config.rounds, error)
            break
        progress.seconds += time.perf_counter() - began
        on_round({**record, "seconds": time.perf_counter() - began})
        _keep(federation, aggregator, progress)
    return _ended(federation, progress)


def _is_stale(config: FederationConfig, progress: Progress) -> bool:
    """Whether the last validations were all worse than one before."""
    return config.patience is not None and progress.best is not None and progress.best.since >= config.patience


def _ended(federation: Federation, progress: Progress) -> Progress:
    """With the best round's student, where that is asked for, and bytes that are means over the rounds that were."""
    planned, done = federation.config.rounds, progress.state.round
    if 0 < done < planned:
        progress.downlink_bytes *= planned / done
        progress.uplink_bytes *= planned / done
    if federation.config.patience is not None and progress.best is not None:
        progress.state = replace(progress.state, weights=progress.best.weights)
    return progress


def _one_round(federation: Federation, method: Method, progress: Progress) -> dict[str, Any]:
    config, state = federation.config, progress.state
    number = state.round + 1
    merchants = federation.sampled(number)
    state = replace(state, tally=federation.tally(number))
    rate = round_learning_rate(federation.training, number, config.rounds)
    request = federation.request(merchants, rate, test=method.personal)
    starts: dict[str, dict[str, Weights]] = {}
    if method.personal:
        starts = {
            merchant: {name: federation.starts[name]}
            for merchant, name in zip(request.merchants, request.students, strict=True)
            if merchant not in progress.started
        }
    down = method.broadcast(state)
    failed: list[str] = []

    def take() -> tuple[GlobalState, Intake]:
        intake = federation.intake(request, down, starts, state, number)
        merged = method.merge(state, intake)
        intake.finish()
        return merged, intake

    merged, intake = patiently(take, config, failed)
    progress.started |= set(intake.merchants) if method.personal else set()
    if merged.teacher_plan.phases:
        merged = federation.teacher.taught(
            merged, federation.server, (federation.seed, federation.arm, "teacher", number)
        )
    if merged.server_plan.phases:
        student = federation.students[federation.global_student]
        weights = federation.server.train(
            student,
            merged.weights,
            merged.server_plan,
            (federation.seed, federation.arm, "server", number),
            Pace(federation.server.config.server_learning_rate * left(federation.server.config, number, config.rounds)),
        )
        merged = replace(merged, weights=weights)
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
        "train_loss": None if federation.unit in ("merchant", "vote") else intake.train_loss,
        "causes": intake.causes,
        "bytes": intake.bytes,
        "total_bytes": intake.total_bytes,
    }
    if number % config.validate_every == 0 or number == config.rounds:
        record["valid"] = validated(federation, merged.weights)
        if merged.teacher_weights:
            record["valid_teacher"] = federation.teacher.validation(merged, federation.evaluator)
        if config.patience is not None:
            progress.best = _better(progress.best, _score(federation, record["valid"]), merged.weights)
    counted = [counts for merchant, counts in progress.personal_counts.items() if merchant not in federation.liars]
    shares = [right / count for right, count in counted]
    if shares:
        record["merchant_accuracy"] = {"mean": sum(shares) / len(shares), "worst": min(shares)}
    return record


def validated(federation: Federation, weights: Weights) -> Metrics:
    """Metrics of the global student on the common validation set."""
    student = federation.students[federation.global_student]
    student.load_state_dict(dict(weights))
    return federation.evaluator.validation(student)


def _score(federation: Federation, valid: Metrics) -> float:
    """What tells when to stop, of the student that was just measured: of a protected federation on the server's own
    validation examples, since when it stops must not depend on merchants'."""
    if federation.unit != "none":
        return federation.evaluator.public_score(federation.students[federation.global_student])
    return federation.evaluator.score(valid)


def _better(best: Best | None, score: float, weights: Weights) -> Best:
    if best is not None and score <= best.score:
        return replace(best, since=best.since + 1)
    return Best(score, {name: value.clone() for name, value in weights.items()})


def sampled(merchants: Sequence[str], participation: float, seed: int, arm: str, number: int) -> list[str]:
    """The merchants of one round, sorted: a share of all, at least one, drawn anew each round."""
    size = max(1, round(participation * len(merchants)))
    if size == len(merchants):
        return list(merchants)
    chosen = seeds.numpy_stream(seed, arm, number, "sample merchants").choice(len(merchants), size, replace=False)
    return [merchants[place] for place in sorted(chosen)]


def round_learning_rate(training: TrainingConfig, number: int, rounds: int) -> float:
    """The merchants' learning rate in round ``number`` (1-based): the configured schedule runs over the rounds."""
    return training.learning_rate * left(training, number, rounds)


def left(training: TrainingConfig, number: int, rounds: int) -> float:
    """What the schedule leaves of a learning rate in round ``number`` (1-based) of ``rounds``."""
    return schedule_factor(training.schedule, training.warmup_share, (number - 0.5) / rounds)


def _restore(federation: Federation, aggregator: Aggregator) -> Progress:
    start = federation.first_state(aggregator)
    found = read_checkpoint(federation.checkpoint)
    if found is None:
        return Progress(start)
    tensors, values = found
    aggregator.restore(_under(tensors, "aggregator/"))
    state = replace(
        start,
        round=values["round"],
        weights=_under(tensors, "weights/"),
        consensus=tensors.get("consensus"),
        kept=_under(tensors, "kept/"),
        teacher_weights=_under(tensors, "teacher/"),
        teacher_labels=tensors.get("teacher_labels", start.teacher_labels),
    )
    best = values["best"]
    return Progress(
        state,
        None if best is None else Best(best["score"], _under(tensors, "best/"), best["since"]),
        set(values["started"]),
        values["downlink_bytes"],
        values["uplink_bytes"],
        values["seconds"],
        {merchant: (right, count) for merchant, (right, count) in values["personal_counts"].items()},
    )


def _keep(federation: Federation, aggregator: Aggregator, progress: Progress) -> None:
    state = progress.state
    tensors = {f"weights/{name}": value for name, value in state.weights.items()}
    tensors |= {f"aggregator/{name}": value for name, value in aggregator.state().items()}
    tensors |= {f"kept/{name}": value for name, value in state.kept.items()}
    if state.teacher_weights:
        tensors |= {f"teacher/{name}": value for name, value in state.teacher_weights.items()}
        tensors["teacher_labels"] = state.teacher_labels
    best = progress.best
    tensors |= {} if best is None else {f"best/{name}": value for name, value in best.weights.items()}
    if state.consensus is not None:
        tensors["consensus"] = state.consensus
    values = {
        "round": state.round,
        "started": sorted(progress.started),
        "downlink_bytes": progress.downlink_bytes,
        "uplink_bytes": progress.uplink_bytes,
        "seconds": progress.seconds,
        "personal_counts": progress.personal_counts,
        "best": None if best is None else {"score": best.score, "since": best.since},
    }
    write_checkpoint(federation.checkpoint, tensors, values)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
