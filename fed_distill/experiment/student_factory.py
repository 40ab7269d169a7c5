"""Train the server's students of one seed, on labels and by distillation from the teacher and its assistants.

Training is deterministic: the same target gives the same student. Assistants and the initial students of federations
are stored in the cache folder beside the teachers, so that cells of a study that differ at merchants only share them.
"""

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import AssistantConfig, Experiment
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.students import Progress, ServerTraining, distillation_plan
from fed_distill.data.examples import UNLABELED, Examples, FederatedData
from fed_distill.data.fingerprint import examples_fingerprint, run_fingerprint
from fed_distill.distill.chain import ChainLevel, levels
from fed_distill.distill.losses import hard_labels
from fed_distill.distill.masked import pretrain_on_domain
from fed_distill.distill.soft_labels import soft_labels
from fed_distill.distill.transfer import DistillationTarget, check_soft_label_transfer
from fed_distill.errors import CheckpointError, ConfigError, DataError
from fed_distill.experiment.teaching import Teaching, domain_texts, server_texts
from fed_distill.models import TextModel, build_student, predict
from fed_distill.models.building import rebuild
from fed_distill.models.weights import Weights
from fed_distill.reporting.callbacks import Callback
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.storage.fingerprint import fingerprint, named_files, own_code
from fed_distill.storage.versions import CACHE_VERSION, versions
from fed_distill.training.choosing import chosen_device
from fed_distill.training.plan import Phase, Plan

logger = logging.getLogger(__name__)

Start = Literal["teacher", "labels"]
"""``federation.start``: what the initial global student was trained on, besides the server's labels."""


@dataclass
class StudentFactory:
    """Builds and distils students by name; ``callbacks`` report progress.

    evaluator: scores students on validation examples, to choose the epochs of training on labels only
    """

    experiment: Experiment
    seed: int
    teaching: Teaching
    server: ServerTraining
    callbacks: Callback
    evaluator: Evaluator
    _built: dict[str, TextModel] = field(default_factory=dict)

    def student(self, name: str) -> TextModel:
        """Build a student by name, deterministically for a seed."""
        if name not in self._built:
            with seeds.scope(self.seed, "student", name):
                options = self.experiment.student.options_of(name)
                self._built[name] = self._build(name, options, self.teaching.teacher)
        return copy.deepcopy(self._built[name])

    def _build(self, name: str, options: Mapping[str, Any], teacher: TextModel | None) -> TextModel:
        data, texts = self.server.data, server_texts(self.server.data, self.teaching.candidates)
        return build_student(name, options, data.task, teacher, texts)

    @property
    def target(self) -> DistillationTarget:
        """The distillation target of students: the teacher's, combined with the last assistant's if there is one."""
        above = self.levels
        return self.teaching.target.below(above[-1].labels) if above else self.teaching.target

    def start(self, name: str, start: Start) -> tuple[Weights, float]:
        """Return the initial weights of federations for a student, and its training time in seconds.

        :param start: ``federation.start``: trained on labels and the teacher's soft labels, or on labels only

        The student is loaded from the cache or trained. A cached student that cannot be read is logged and trained
        again; a failure to store it is logged too.
        """
        path, what = self._kept(name, start), name if start == "teacher" else f"{name}, on labels only"
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            logger.warning("the cached student in %s cannot be used and is trained again: %s", path, error)
            found = None
        if found is not None:
            message = f"seed {self.seed}: the server's {what} is loaded from {path.parent}"
            self.callbacks.on_message(message)
            return found[0], found[1]["seconds"]
        self.callbacks.on_stage(f"seed {self.seed} · the server's {what}", None)
        began = time.perf_counter()
        weights = self.trained(name, self.target, self.step) if start == "teacher" else self.on_labels(name)
        seconds = time.perf_counter() - began
        try:
            write_checkpoint(path, weights, {"seconds": seconds})
        except (OSError, CheckpointError) as error:
            logger.warning("the server's %s cannot be cached for other runs: %s", what, error)
        return weights, seconds

    def _kept(self, name: str, start: Start) -> Path:
        """Return the cache file of a student. On labels only, it depends on no assistant, so that none is trained."""
        config = self.experiment.student
        taught: dict[str, Any] = {}
        if start == "teacher":
            taught["levels"] = [level.name for level in self.levels]
            taught["distill"] = self.experiment.distill.model_dump(mode="json")
        elif len(self.experiment.training.student.epochs) > 1:
            taught["chosen_on"] = [self._chosen_in_private, run_fingerprint(self.server.data)]
        key = fingerprint(
            **self._depends_on,
            **taught,
            name=[name, own_code(name)],
            options=[config.options_of(name), named_files(config.options_of(name))],
            masked=config.masked.model_dump(mode="json"),
            start=start,
        )
        return self.teaching.ensemble.cache / "students" / f"{key}.safetensors"

    @cached_property
    def _depends_on(self) -> dict[str, Any]:
        """Return all settings and data that students depend on, beside their own model and target."""
        data, config, runtime = self.server.data, self.experiment.training, self.experiment.runtime
        training = config.model_dump(mode="json", exclude={"merchants", "local", "pooled"})
        return {
            "teacher": self.teaching.ensemble.name,
            "task": [data.task.classes, data.task.pair, data.task.gains],
            "public": examples_fingerprint(data.public),
            "proxy": examples_fingerprint(data.proxy.unlabeled()),
            "candidates": examples_fingerprint(self.teaching.candidates),
            "partners": self.experiment.data.seed,
            "training": [training, named_files(training)],
            "seed": self.seed,
            "versions": versions(),
            "cache": CACHE_VERSION,
            "computed": [runtime.trainer, str(chosen_device(runtime.device)), torch.get_num_threads()],
        }

    def trained(self, name: str, target: DistillationTarget, progress: Progress | None = None) -> Weights:
        """Pretrain a student on the domain's texts if configured, train it on labels and ``target``, and return its
        weights."""
        student = self.student(name)
        self.pretrain_on_domain(student, name, progress)
        return self.distilled(student, target, self.experiment.training.server.epochs, progress, "server", name)

    def on_labels(self, name: str) -> Weights:
        """Pretrain a student if configured, train it on the server's labels only, and return its weights.

        A student that starts from weights of the teacher starts from random ones here. Of several numbers of epochs,
        each trains from the same weights, with a schedule of its own.

        :raises ConfigError: see ``without_teacher``
        """
        student, config = self.without_teacher(name), self.experiment.training
        self.pretrain_on_domain(student, name, self.step)
        first = {key: value.clone() for key, value in student.state_dict().items()}
        optimizer = config.student.over(config.server)

        def trained(epochs: float) -> Weights:
            plan = Plan((Phase(hard_labels(), epochs=epochs),))
            return self.server.train(student, first, plan, (self.seed, "server", name), optimizer, self.step)

        shortest, *longer = config.student.epochs
        weights = trained(shortest)
        if not longer:
            return weights
        scores = [(shortest, self._validated(student, weights))]
        for epochs in longer:
            found = trained(epochs)
            scores.append((epochs, self._validated(student, found)))
            if scores[-1][1] <= scores[-2][1]:
                break
            weights = found
        told = ", ".join(f"{epochs:g} epochs {score:.4f}" for epochs, score in scores)
        self.callbacks.on_message(f"seed {self.seed}: the server's {name}, on labels only, in validation: {told}")
        return weights

    def _validated(self, student: TextModel, weights: Weights) -> float:
        student.load_state_dict(dict(weights))
        return (self.evaluator.public_score if self._chosen_in_private else self.evaluator.validation_score)(student)

    @property
    def _chosen_in_private(self) -> bool:
        """Whether a private federation starts on labels only: its students must not depend on merchants' validation
        examples, so that epochs are chosen on the server's own."""
        arms = self.experiment.arms()
        return any(self.experiment.protects(name) and arm.start == "labels" for name, arm in arms.items())

    def without_teacher(self, name: str) -> TextModel:
        """Build a student by name as ``student`` does, with random weights in place of the teacher's.

        A student with ``of_teacher`` is rebuilt from its settings; any other is built again without a teacher, so that
        one that copies the teacher's weights without saying so does not. What cannot be prevented is custom code that
        reads the teacher's weights from a file, or keeps them from an earlier call.

        :raises ConfigError: a student without ``of_teacher`` cannot be built without a teacher, or becomes another
        """
        student = self.student(name)
        if student.of_teacher:
            drawn = rebuild(student.kind, student.settings, (self.seed, "student", name, "without the teacher"))
            student.load_state_dict(drawn.state_dict())
            return student
        remedy = "set of_teacher = True on the model, whose weights are then drawn anew where there is no teacher"
        try:
            with seeds.scope(self.seed, "student", name):
                alone = self._build(name, self.experiment.student.options_of(name), None)
        except Exception as error:  # custom code that expects a teacher can fail in any way
            raise ConfigError(f"student {name!r} cannot be built without a teacher ({error}): {remedy}") from error
        if (alone.kind, alone.settings) != (student.kind, student.settings):
            raise ConfigError(f"student {name!r} has other settings if there is no teacher: {remedy}")
        return alone

    def on_true_labels(self, name: str, truth: Tensor) -> Weights:
        """As ``trained``, with the proxy set's true classes, int64 ``[proxy]``, in place of soft labels."""
        target = self.teaching.target.true_labels(truth)
        return self.trained(name, target, self.step)

    def distilled_anew(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """As ``Services.distil_anew``; with the teacher's soft labels, it returns the initial weights of federations.

        Other parts of ``[distill]`` (hidden states, assistants, ``hard_weight``) remain those of the teacher.

        :raises ConfigError: ``[distill]`` uses no soft labels
        """
        check_soft_label_transfer(self.experiment.distill)
        return self.trained(self.experiment.student.model, self.target.with_soft_labels(soft_labels, temperature))

    def distilled_onwards(self, weights: Weights, soft_labels: Tensor, *purpose: str | int) -> Weights:
        """As ``Services.distil_onwards``; ``purpose`` names the randomness of this training.

        :raises ConfigError: ``[distill]`` uses no soft labels
        """
        check_soft_label_transfer(self.experiment.distill)
        name = self.experiment.student.model
        student = self.student(name)
        student.load_state_dict(dict(weights))
        target, epochs = self.target.with_soft_labels(soft_labels, None), self.experiment.training.server.epochs
        return self.distilled(student, target, epochs, None, "server", name, *purpose)

    def pretrain_on_domain(self, student: TextModel, name: str, progress: Progress | None = None) -> None:
        """Pretrain ``student`` with masked language modelling on the domain's texts, if configured."""
        config = self.experiment.student.masked
        if config.epochs:
            texts, randomness = domain_texts(self.server.data, self.teaching.candidates), (self.seed, "server", name)
            report = progress or (lambda done, total: None)
            pretrain_on_domain(student, texts, config, randomness, report)

    def distilled(
        self,
        student: TextModel,
        target: DistillationTarget,
        epochs: float,
        progress: Progress | None,
        *purpose: str | int,
        upper: TextModel | None = None,
    ) -> Weights:
        """Train ``student`` from its own weights on all data of the server, and return the new weights.

        :param upper: model for soft labels on labelled examples; None for the teacher
        """
        weights = {name: value.clone() for name, value in student.state_dict().items()}
        prepared = target.prepared(student, self.seed, *purpose)
        plan = distillation_plan(target, prepared, epochs, self.labelled([self.server.data.public], upper))
        return self.server.train(prepared, weights, plan, (self.seed, *purpose), progress=progress)

    def labelled(self, parts: Sequence[Examples], upper: TextModel | None = None) -> Tensor | None:
        """Return probabilities of the teacher, or of ``upper``, on labelled examples; None if they are not used."""
        if self.experiment.distill.hard_weight == 1.0:
            return None
        examples = Examples.concatenate(parts)
        if upper is None:
            return self.teaching.ensemble.labels("labelled examples", examples)
        return predict(upper, upper.encode(examples.texts, examples.pairs))

    @property
    def step(self) -> Progress:
        """Return a progress function for a training with its own stage."""
        return lambda done, total: self.callbacks.on_step(done, {"steps": total})

    @cached_property
    def levels(self) -> list[ChainLevel]:
        """Return the assistants between teacher and student, trained or loaded from the cache."""
        data, experiment = self.server.data, self.experiment
        cache = self.teaching.ensemble.cache
        depends_on = fingerprint(
            **self._depends_on,
            hard_weight=experiment.distill.hard_weight,
            final_temperature=experiment.distill.final_temperature,
        )

        def build(assistant: AssistantConfig, place: int) -> TextModel:
            with seeds.scope(self.seed, "assistant", place):
                return self._build(assistant.model, assistant.options, self.teaching.teacher)

        def train(
            model: TextModel,
            target: DistillationTarget,
            assistant: AssistantConfig,
            place: int,
            upper: TextModel | None,
        ) -> Weights:
            self.callbacks.on_stage(f"seed {self.seed} · assistant {place}: {assistant.model}", None)
            return self.distilled(model, target, assistant.epochs, self.step, "assistant", place, upper=upper)

        def label(model: TextModel, name: str) -> Tensor:
            return soft_labels(model, name, data.proxy, 1.0, cache, lambda done, total: None)

        return levels(experiment.distill.assistants, self.teaching.target, depends_on, cache, build, train, label)


def started(name: str, start: Start) -> str:
    """Return the name of a server's student in the checkpoint: of its model, and of its start unless that is the
    teacher."""
    return name if start == "teacher" else f"{name}/{start}"


def known_truth(data: FederatedData) -> Tensor:
    """Return the proxy set's true classes, int64 ``[proxy]``; raise DataError where one is unknown."""
    truth = data.proxy_truth
    unknown = len(data.proxy) if truth is None else int((truth == UNLABELED).sum())
    if truth is None or unknown:
        raise DataError(
            f"control 'oracle-proxy' requires the true labels of the proxy set, and {unknown} of {len(data.proxy)} "
            "have none: remove it from controls, or use a dataset that grades every pair, such as marketplace"
        )
    return torch.from_numpy(truth)
