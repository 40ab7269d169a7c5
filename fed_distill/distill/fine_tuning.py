"""Fine-tuning a teacher on the public examples.

Fine-tuning follows BERT (Devlin et al. 2019, appendix A.3): AdamW, linear warm-up and decay, a few epochs. Batches have
similar lengths, and the best weights of several validations are kept. It can be interrupted: ``TuningCheckpoint``.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import TeacherConfig
from fed_distill.data.examples import UNLABELED, Examples, Task
from fed_distill.errors import CheckpointError, DataError, TrainingError
from fed_distill.evaluation.metrics import classification
from fed_distill.models import TextModel, predict
from fed_distill.models.precision import autocast, products
from fed_distill.models.prediction import lengths
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.text.encoded import Encoded
from fed_distill.training.batching import bucketed_batches
from fed_distill.training.optimization import Pace, build_optimizer, clip, set_rate

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with steps done, total steps and current metrics (``train_loss``, ``valid_macro_f1`` ...)."""

VALIDATION_EXAMPLES = 2000
"""Maximum number of validation examples: enough to compare epochs, and cheaper than one."""

EPOCHS, PATIENCE, CHECKS = 3, 2, 20
"""Default epochs, and default patience with them; default number of validations with a budget of steps."""

STORE_EVERY = 60.0
"""Least number of seconds between two writes of a ``TuningCheckpoint``."""
WRITING_SHARE = 0.05
"""Largest share of the time that these writes take."""

FEW = 100
"""A validation set with fewer examples compares weights by loss first: the standard error of an accuracy is then 0.05
or more, and a teacher's probabilities, which its students learn, are scored by the loss."""


@dataclass(frozen=True)
class FineTuned:
    """A teacher with its best weights.

    history: one row per validation (``epoch``, ``step``, ``train_loss`` since the last one, ``learning_rate``,
    ``valid_loss``, ``valid_macro_f1``); empty without fine-tuning. best_epoch: epoch of the best weights.
    """

    model: TextModel
    history: list[dict[str, float]]
    best_epoch: float


def fine_tune(
    teacher: TextModel,
    public: Examples,
    valid: Examples,
    task: Task,
    config: TeacherConfig,
    seed: int,
    progress: Progress,
    checkpoint: "TuningCheckpoint | None" = None,
) -> FineTuned:
    """Fine-tune ``teacher`` in place and keep the weights with the best macro-F1 on ``valid``, then the lowest loss;
    if ``valid`` has fewer than `FEW` examples, the loss is compared first.

    :param teacher: model to train
    :param public: labelled training examples
    :param valid: labelled validation examples
    :param task: the task
    :param config: the ``[teacher]`` table
    :param seed: seed of the run
    :param progress: see ``Progress``
    :param checkpoint: where an interrupted fine-tuning is continued from, and where this one is stored
    :raises DataError: there are no labelled examples, or ``public`` has a single class
    :raises TrainingError: the loss is not finite
    """
    public = labelled_sample(public, "public", config.max_examples, seed)
    valid = labelled_sample(valid, "public validation", VALIDATION_EXAMPLES, seed)
    if len(np.unique(public.labels)) < 2:
        only = task.classes[public.labels[0]]
        raise DataError(f"all {len(public)} public examples have the label {only!r}: a teacher requires two classes")
    encoded, labels = teacher.encode(public.texts, public.pairs), torch.from_numpy(public.labels)
    encoded_valid = teacher.encode(valid.texts, valid.pairs)

    per_epoch = math.ceil(len(public) / config.batch_size)
    budget = TuningSteps.of(config, per_epoch)
    total = budget.steps
    optimizer = build_optimizer(teacher.named_parameters(), _undecayed(teacher), config)
    pace = replace(Pace.of(config), warmup_share=round(config.warmup_share * total) / total)  # whole steps
    order = seeds.torch_stream(seed, "teacher", "order")
    sizes = lengths(encoded)
    batches = (index for _ in count() for index in bucketed_batches(sizes, config.batch_size, order))

    with seeds.scope(seed, "teacher", "dropout"), products(config.precision):
        done = _Done() if checkpoint is None else checkpoint.restore(teacher, optimizer)
        for step, index in enumerate(islice(batches, done.steps, total), start=done.steps + 1):
            if checkpoint is not None:
                checkpoint.write_if_due(teacher, optimizer, done)
            rate = pace.after((step - 1) / total)  # of the step's start, as in BERT's own code: the first one has none
            set_rate(optimizer, rate)
            done.losses.append(_train_step(teacher, encoded, labels, index, optimizer, config, step))
            done.steps = step
            trained = {"train_loss": sum(done.losses) / len(done.losses), "learning_rate": rate}
            if step not in budget.checks:
                progress(step, total, trained)
                continue
            done.losses.clear()
            with autocast(config.precision, next(teacher.parameters()).device):
                measured = _validate(teacher, encoded_valid, valid, task)
            history = done.history
            history.append({"epoch": step / per_epoch, "step": step, **trained, **measured})
            progress(step, total, history[-1])
            if not done.best_weights or _score(history[-1], len(valid)) > _score(history[done.best], len(valid)):
                done.best = len(history) - 1
                done.best_weights = {name: value.detach().clone() for name, value in teacher.state_dict().items()}
            elif budget.patience is not None and len(history) - 1 - done.best >= budget.patience:
                break
    teacher.load_state_dict(done.best_weights)
    return FineTuned(teacher.eval(), done.history, done.history[done.best]["epoch"])


@dataclass
class _Done:
    """A fine-tuning so far.

    steps: optimizer steps. history: see ``FineTuned``. best, best_weights: place of the best validation, and its
    weights; none before the first. losses: of the steps since the last validation.
    """

    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


class TuningCheckpoint:
    """The file from which an interrupted fine-tuning continues, on the same machine to the same weights as without the
    interruption.

    It has the weights, the best weights, the optimizer's state and that of torch's generator on the CPU; the order of
    batches follows from the seed. It is written between two steps, once in ``STORE_EVERY`` seconds at most, and less
    often where writing would take more than ``WRITING_SHARE`` of the time. A file that cannot be read is reported in
    the log, and the fine-tuning starts again; after a failed write, it goes on without the file.
    """

    def __init__(self, path: Path) -> None:
        """Read ``path``, if the file exists."""
        self._path = path
        self._stored: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        try:
            self._stored = read_checkpoint(path, "it will be written again")
        except CheckpointError as error:
            logger.warning("an interrupted fine-tuning starts again: %s", error)
        self._last, self._wait = perf_counter(), STORE_EVERY

    @property
    def begun(self) -> bool:
        """Whether there is a fine-tuning to continue."""
        return self._stored is not None

    def restore(self, teacher: TextModel, optimizer: torch.optim.Optimizer) -> _Done:
        """Load what was stored, if anything was, into ``teacher``, ``optimizer`` and torch's global generator.

        :raises CheckpointError: the file is intact, and of another teacher
        """
        if self._stored is None:
            return _Done()
        (tensors, values), self._stored = self._stored, None
        try:
            teacher.load_state_dict(_part(tensors, "weights"))
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _part(tensors, "optimizer").items():
                number, entry = name.split(".", 1)
                state.setdefault(int(number), {})[entry] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            torch.set_rng_state(tensors["generator"])
            return _Done(values["steps"], values["history"], values["best"], _part(tensors, "best"), values["losses"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self._path} is of another teacher: delete it to train from the beginning"
            ) from error

    def write_if_due(self, teacher: TextModel, optimizer: torch.optim.Optimizer, done: _Done) -> None:
        """Write the file, unless the last time was not long ago. A failure is logged, and is the last attempt."""
        since = perf_counter()
        if since - self._last < self._wait:
            return
        state = optimizer.state_dict()["state"].items()
        tensors = {
            **{f"weights.{name}": value.detach().clone() for name, value in teacher.state_dict().items()},
            **{f"best.{name}": value for name, value in done.best_weights.items()},
            **{f"optimizer.{number}.{entry}": value for number, entries in state for entry, value in entries.items()},
            "generator": torch.get_rng_state(),
        }
        values = {"steps": done.steps, "history": done.history, "best": done.best, "losses": done.losses}
        try:
            write_checkpoint(self._path, tensors, values)
        except (CheckpointError, TrainingError, OSError) as error:
            logger.warning("if this fine-tuning is interrupted, it will not be continued from here: %s", error)
            self._wait = math.inf
            return
        self._last = perf_counter()
        self._wait = max(STORE_EVERY, (self._last - since) / WRITING_SHARE)

    def remove(self) -> None:
        """Remove the file: the fine-tuning is finished."""
        self._path.unlink(missing_ok=True)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``name`` and a point, by the rest of their names."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


@dataclass(frozen=True)
class TuningSteps:
    """Length of a fine-tuning.

    steps: number of optimizer steps. checks: steps after which the teacher is validated; the last step is one.
    patience: validations without improvement before training stops; None: all steps are made.
    """

    steps: int
    checks: frozenset[int]
    patience: int | None

    @classmethod
    def of(cls, config: TeacherConfig, per_epoch: int) -> Self:
        """Return the budget of ``config`` with ``per_epoch`` steps in an epoch; see the defaults there."""
        patience = config.patience
        if config.steps is None:
            epochs = EPOCHS if config.epochs is None else config.epochs
            steps, checks, patience = per_epoch * epochs, 2 * epochs, patience or PATIENCE
        else:
            steps, checks = config.steps, CHECKS
        checks = config.checks or checks
        spread = frozenset(max(1, round(number * steps / checks)) for number in range(1, checks + 1))
        return cls(steps, spread, patience)


def labelled_sample(examples: Examples, name: str, limit: int, seed: int) -> Examples:
    """Return labelled ones of ``examples``, ``limit`` at most, drawn at random; DataError if there are none.

    ``name`` tells what they are, for the draw and the message.
    """
    labelled = np.flatnonzero(examples.labels != UNLABELED)
    if not len(labelled):
        raise DataError(f"there are no labelled {name} examples for fine-tuning the teacher")
    if len(labelled) > limit:
        draw = seeds.numpy_stream(seed, "teacher", "examples", name)
        labelled = np.sort(draw.choice(labelled, size=limit, replace=False))
    return examples.take(labelled)


def _undecayed(teacher: TextModel) -> set[str]:
    """Weights without weight decay: biases, norms and embedding tables."""
    return {name for name, value in teacher.named_parameters() if value.dim() <= 1 or name in teacher.tables}


def _train_step(
    teacher: TextModel,
    encoded: Encoded,
    labels: Tensor,
    index: Tensor,
    optimizer: torch.optim.Optimizer,
    config: TeacherConfig,
    step: int,
) -> float:
    device = next(teacher.parameters()).device
    teacher.train()
    batch = {name: values.to(device) for name, values in teacher.collate(encoded, index).items()}
    with autocast(config.precision, device):
        logits = teacher(batch).logits.float()
    loss = torch.nn.functional.cross_entropy(logits, labels[index].to(device))
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(f"the teacher's loss is {value} at step {step}: lower teacher.learning_rate")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
    clip(teacher.parameters(), config)
    optimizer.step()
    return value


def _validate(teacher: TextModel, encoded: Encoded, valid: Examples, task: Task) -> dict[str, float]:
    probabilities = predict(teacher, encoded)
    of_label = probabilities[torch.arange(len(valid)), torch.from_numpy(valid.labels)]
    loss = -of_label.clamp_min(torch.finfo(torch.float32).tiny).log().mean().item()
    macro_f1 = classification(probabilities.numpy(), valid.labels, task)["macro_f1"]
    return {"valid_loss": loss, "valid_macro_f1": 0.0 if macro_f1 is None else macro_f1}


def _score(measured: Mapping[str, float], examples: int) -> tuple[float, float]:
    """Return a validation's score on so many examples; the higher is better."""
    f1, loss = measured["valid_macro_f1"], measured["valid_loss"]
    return (f1, -loss) if examples >= FEW else (-loss, f1)
