"""This project's own trainers, on the same cohort.

A round is all that a round of a run does with the weights: batches and submodels are drawn, merchants train, in the
chunks in which a site is asked for them, and what comes back is merged as a running sum. Only the order of a merchant's
batches differs from the other contenders: it is drawn by the trainer.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from experiments.benchmarks.contenders import Clock, Settings
from experiments.benchmarks.opacus_hooks import MAX_GRAD_NORM, NOISE_MULTIPLIER
from experiments.benchmarks.workload import Cohort, Shop, Weights, freeze_embeddings
from fed_distill.aggregation.running import mean_weights
from fed_distill.config import RuntimeConfig, TrainerConfig
from fed_distill.coordinator.sites import chunk_size
from fed_distill.distill.losses import hard_labels
from fed_distill.models.transformer import Transformer
from fed_distill.models.weights import update_of
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.trainer import Fitted, Learner, Trainer
from fed_distill.transport.messages import Uplink

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
