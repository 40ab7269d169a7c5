"""This project's own trainers, on the same cohort: in one process, and as Flower messages to worker processes.

A round is all that a round of a run does with the weights: batches and submodels are drawn, merchants train, in the
chunks in which a site is asked for them, and what comes back is merged as a running sum. Only the order of a merchant's
batches differs from the other contenders: it is drawn by the trainer.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from experiments.benchmarks.contenders import Clock, Settings
from experiments.benchmarks.opacus_hooks import MAX_GRAD_NORM, NOISE_MULTIPLIER
from experiments.benchmarks.workload import Cohort, Shop, Weights, freeze_embeddings
from fed_distill.aggregation.running import mean_weights
from fed_distill.config import RuntimeConfig, TrainerConfig
from fed_distill.coordinator.sites import chunk_size
from fed_distill.distill.losses import hard_labels
from fed_distill.experiment.workers import WorkerGrid
from fed_distill.models.transformer import Transformer
from fed_distill.models.weights import update_of
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.trainer import Fitted, Learner, Trainer
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.records import (
    by_prefix,
    decode_downlink,
    decode_uplink,
    encode_downlink,
    encode_uplink,
    prefixed,
)

_PUBLIC_SHOPS = 2
"""Merchants whose examples stand for the public proxy set where DP trains only the rows that this touches."""


def train(
    cohort: Cohort,
    settings: Settings,
    clock: Clock,
    trainer: str = "cohort",
    private: bool = False,
    submodel: bool = True,
    precision: str = "float32",
    size: int | None = None,
) -> None:
    """Train the cohort in this process. ``size``: merchants trained together at most."""
    side = Side(cohort, settings.device, trainer, private, submodel, precision, size)
    weights: Weights = {name: value.clone() for name, value in side.student.state_dict().items()}
    chunk = chunk_size(sum(value.nbytes for value in weights.values()))
    chunks = [range(len(cohort.shops))[first : first + chunk] for first in range(0, len(cohort.shops), chunk)]
    for number in range(1, settings.rounds + 1):
        trained = chain.from_iterable(side.round(number, weights, shops) for shops in chunks)
        weights = mean_weights(weights, trained)
        if settings.device != "cpu":
            clock.device_memory(torch.cuda.max_memory_allocated())
        clock.round_done(partial(dict, weights))


def train_with_workers(cohort: Cohort, settings: Settings, clock: Clock, private: bool = False) -> None:
    """Train the cohort in as many worker processes as there are threads, each with one."""
    weights: Weights = {name: value.clone() for name, value in cohort.workload.new_student().state_dict().items()}
    run_config = {"folder": str(cohort.folder), "private": private, "workers": settings.threads}
    with WorkerGrid(f"{__name__}:build_app", run_config, settings.threads, settings.threads, 1) as grid:
        for number in range(1, settings.rounds + 1):
            content = encode_downlink(Downlink(number, (StudentWeights(weights),)))
            asked = [Message(RecordDict(dict(content.items())), node, "train.round") for node in grid.get_node_ids()]
            weights = mean_weights(weights, _uplinks(grid, asked))
            clock.round_done(partial(dict, weights))


def _uplinks(grid: WorkerGrid, asked: list[Message]) -> Iterator[Uplink]:
    for message_id in grid.push_messages(asked):
        (reply,) = grid.pull_messages([message_id])
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        for content in by_prefix(reply.content).values():
            yield decode_uplink(content, (StudentUpdate,))


def build_app() -> ClientApp:
    """The app of a worker: trains every so-many-th merchant of the cohort."""
    app = ClientApp()
    sides: dict[int, Side] = {}

    @app.train("round")
    def train_round(message: Message, context: Context) -> Message:
        config, node = context.run_config, context.node_id
        if node not in sides:
            cohort = Cohort.open(Path(str(config["folder"])))
            sides[node] = Side(cohort, "cpu", "cohort", bool(config["private"]), True, "float32", None)
        down = decode_downlink(message.content, (StudentWeights,))
        part, parts = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
        shops = range(part, len(sides[node].cohort.shops), parts)
        reply = RecordDict()
        for place, uplink in enumerate(sides[node].round(down.round, down.weights, shops)):
            reply.update(prefixed(encode_uplink(uplink), f"{place}/"))
        return Message(reply, reply_to=message)

    return app


class Side:
    """The merchants' side: the trainer and everything that it needs from round to round."""

    def __init__(
        self,
        cohort: Cohort,
        device: str,
        trainer: str,
        private: bool,
        submodel: bool,
        precision: str,
        size: int | None,
    ) -> None:
        workload = cohort.workload
        self.cohort = cohort
        self.student = workload.new_student()
        if private and isinstance(self.student, Transformer):
            freeze_embeddings(self.student)
        training = TrainerConfig.model_validate(
            {
                "optimizer": "adamw",
                "learning_rate": workload.learning_rate,
                "batch_size": workload.batch_size,
                "submodel": submodel,
                "precision": precision,
            }
        )
        runtime = RuntimeConfig.model_validate({"trainer": trainer, "cohort": size, "device": device})
        self._trainer: Trainer = build_trainer(training, runtime)
        self._pace = Pace(workload.learning_rate)
        self._privacy = ExampleDP(NOISE_MULTIPLIER, MAX_GRAD_NORM) if private else None
        self._plan = Plan((Phase(hard_labels(), epochs=1),))
        public = cohort.shops[:_PUBLIC_SHOPS]
        fields = public[0].encoded
        self._proxy = {name: torch.cat([shop.encoded[name] for shop in public]) for name in fields}

    def round(self, number: int, weights: Weights, shops: range) -> Iterator[Uplink]:
        """Train the merchants ``shops`` from ``weights``."""
        learners = [self._learner(place, self.cohort.shops[place], number, weights) for place in shops]
        examples = {learner.name: learner.examples() for learner in learners}
        for fitted in self._trainer.fit(learners, dict.fromkeys(examples, self._plan), self._pace):
            if not isinstance(fitted, Fitted):
                raise RuntimeError(fitted.reason)
            yield Uplink(fitted.name, examples[fitted.name], (StudentUpdate.of(update_of(fitted.weights, weights)),))

    def _learner(self, place: int, shop: Shop, number: int, weights: Weights) -> Learner:
        name = f"shop {place}"
        randomness = (self.cohort.workload.seed, "benchmark", name, number)
        start: dict[str, Tensor] = dict(weights)
        learner = Learner(name, self.student, start, shop.encoded, shop.labels, self._proxy, randomness)
        return learner if self._privacy is None else replace(learner, privacy=self._privacy)
