"""The server's teacher: fine-tuned on the public examples and cached on disk.

By default fine-tuning follows BERT (Devlin et al. 2019, appendix A.3): AdamW, linear warm-up and decay, a few epochs.
Batches have similar lengths, and the best weights of several validations are kept. A teacher that predicts without
fine-tuning (a causal language model, a file) is used as it is, unless epochs or steps are set. A teacher with a
procedure of its own (``FitsItself``) is fitted by it.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import TeacherConfig
from fed_distill.data.examples import UNLABELED, Examples, Task
from fed_distill.data.fingerprint import examples_fingerprint
from fed_distill.distill.masked import pretrain_on_domain
from fed_distill.errors import CheckpointError, ConfigError, DataError, ModelError, TrainingError
from fed_distill.evaluation.metrics import classification
from fed_distill.models import TextModel, load_model, load_teacher, predict
from fed_distill.models.base import FitsItself
from fed_distill.models.building import fits_itself, is_trainable, is_zero_shot
from fed_distill.models.precision import autocast, products
from fed_distill.models.prediction import lengths
from fed_distill.storage.files import read_json, strict_json
from fed_distill.storage.fingerprint import files_fingerprint, fingerprint, named_files, own_code
from fed_distill.storage.sealed import check_folder, replace_sealed_folder
from fed_distill.storage.versions import CACHE_VERSION, versions
from fed_distill.text.encoded import Encoded
from fed_distill.training.batching import bucketed_batches
from fed_distill.training.optimization import Pace, build_optimizer, clip, set_rate

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with steps done, total steps and current metrics (``train_loss``, ``valid_macro_f1`` ...)."""

VALIDATION_EXAMPLES = 2000
"""Maximum number of validation examples: enough to compare epochs, and cheaper than one."""

EPOCHS, PATIENCE, CHECKS = 3, 2, 20
"""Default epochs, and default patience with them; default number of validations with a budget of steps."""

FEW = 100
"""A validation set with fewer examples compares weights by loss first: the standard error of an accuracy is then 0.05
or more, and a teacher's probabilities, which its students learn, are scored by the loss."""

logger = logging.getLogger(__name__)


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
    :raises DataError: there are no labelled examples, or ``public`` has a single class
    :raises TrainingError: the loss is not finite
    """
    public = _sample(public, "public", config.max_examples, seed)
    valid = _sample(valid, "public validation", VALIDATION_EXAMPLES, seed)
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

    history: list[dict[str, float]] = []
    best = 0
    best_weights: dict[str, Tensor] = {}
    losses: list[float] = []
    with seeds.scope(seed, "teacher", "dropout"), products(config.precision):
        for step, index in enumerate(islice(batches, total), start=1):
            rate = pace.after((step - 1) / total)  # of the step's start, as in BERT's own code: the first one has none
            set_rate(optimizer, rate)
            losses.append(_train_step(teacher, encoded, labels, index, optimizer, config, step))
            trained = {"train_loss": sum(losses) / len(losses), "learning_rate": rate}
            if step not in budget.checks:
                progress(step, total, trained)
                continue
            losses.clear()
            with autocast(config.precision, next(teacher.parameters()).device):
                measured = _validate(teacher, encoded_valid, valid, task)
            history.append({"epoch": step / per_epoch, "step": step, **trained, **measured})
            progress(step, total, history[-1])
            if not best_weights or _score(history[-1], len(valid)) > _score(history[best], len(valid)):
                best = len(history) - 1
                best_weights = {name: value.detach().clone() for name, value in teacher.state_dict().items()}
            elif budget.patience is not None and len(history) - 1 - best >= budget.patience:
                break
    teacher.load_state_dict(best_weights)
    return FineTuned(teacher.eval(), history, history[best]["epoch"])


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


def is_fine_tuned(config: TeacherConfig) -> bool:
    """Whether the teacher is fine-tuned: if epochs or steps are set, unless they are 0; by default unless it predicts
    without."""
    budget = config.epochs if config.steps is None else config.steps
    return not is_zero_shot(config) if budget is None else budget > 0


def check_fine_tuning(config: TeacherConfig) -> None:
    """Raise ConfigError if a member of the ensemble cannot be fine-tuned and is, or has to be and is not, or if
    ``domains`` has nothing to train on each domain."""
    for member, _ in config.members():
        name, tuned = member.model, is_fine_tuned(member)
        if fits_itself(member):
            if not (member.epochs is None and member.steps is None):
                raise ConfigError(f"teacher {name} is not fitted by steps: remove its epochs and steps")
            continue
        if tuned and not is_trainable(member):
            raise ConfigError(
                f"teacher {name} cannot be fine-tuned: remove its epochs and steps, or set epochs = 0 if it has them "
                "from [teacher]"
            )
        if not tuned and not is_zero_shot(member):
            raise ConfigError(
                f"teacher {name} cannot predict the classes without fine-tuning: set teacher.epochs or teacher.steps "
                "above 0"
            )
        if not tuned and config.domains > 1:
            raise ConfigError(
                f"teacher.domains = {config.domains} fine-tunes every teacher on each domain, and {name} is not "
                "fine-tuned: set teacher.domains = 1, or fine-tune it with epochs or steps"
            )


def teacher_fingerprint(
    config: TeacherConfig, task: Task, public: Examples, valid: Examples, domain: Examples, seed: int
) -> str:
    """Return a fingerprint of all inputs of a teacher: configuration, files of a pretrained model or of its options,
    code of an import path and library versions; if it is fine-tuned, data and seed too."""
    folder, named = Path(config.model), named_files(config.options)
    model = {
        "pretrained": files_fingerprint(path for path in folder.iterdir() if path.is_file())
        if folder.is_dir()
        else own_code(config.model),
        "classes": task.classes,
        "cache": CACHE_VERSION,
        "versions": versions(),
        **({"files": named} if named else {}),
        **({"precision": config.precision} if config.precision != "float32" else {}),
    }
    if not is_fine_tuned(config):
        return fingerprint(config=config.model_dump(mode="json", include={"model", "options", "max_length"}), **model)
    return fingerprint(
        config=config.model_dump(mode="json", exclude={"ensemble", "domains", "combine", "precision"}),
        domain=examples_fingerprint(domain.unlabeled()) if config.masked.epochs else None,
        public=examples_fingerprint(public),
        valid=examples_fingerprint(valid),
        seed=seed,
        **model,
    )


def teacher_folder(cache_dir: Path, name: str) -> Path:
    """Return the cache folder of the teacher with this fingerprint."""
    return cache_dir / "teachers" / name


def cached_teacher(
    cache_dir: Path,
    config: TeacherConfig,
    task: Task,
    public: Examples,
    valid: Examples,
    domain: Examples,
    seed: int,
    progress: Progress,
) -> tuple[FineTuned, str]:
    """Return the fine-tuned teacher and its fingerprint; train it unless it is in ``cache_dir``.

    A stored teacher that cannot be read is reported in the log and trained again. A teacher without fine-tuning is
    loaded from its own files each time, not stored.

    :param domain: texts for domain-adaptive pretraining (``masked.epochs``); their labels are not used
    """
    name = teacher_fingerprint(config, task, public, valid, domain, seed)
    if not is_fine_tuned(config):
        return FineTuned(load_teacher(config, task).eval(), [], 0.0), name
    folder = teacher_folder(cache_dir, name)
    if folder.exists():
        try:
            return _load(folder), name
        except (ModelError, CheckpointError, KeyError, TypeError) as error:
            logger.warning("the stored teacher in %s cannot be used and will be trained again: %s", folder, error)
    folder.parent.mkdir(parents=True, exist_ok=True)  # fail before the training, which may take hours
    with seeds.scope(seed, "teacher", "weights"):
        teacher = load_teacher(config, task)
    if config.masked.epochs:
        pretrain_on_domain(teacher, domain, config.masked, (seed, "teacher"), lambda d, n: progress(d, n, {}))
    if isinstance(teacher, FitsItself):
        own = _sample(public, "public", config.max_examples, seed)
        teacher.fit(own.texts, own.pairs, own.labels)
        tuned = FineTuned(teacher.eval(), [], 0.0)
    else:
        tuned = fine_tune(teacher, public, valid, task, config, seed, progress)
    replace_sealed_folder(folder, partial(_save, tuned))
    return tuned, name


def _save(tuned: FineTuned, folder: Path) -> None:
    tuned.model.save(folder)
    training = {"history": tuned.history, "best_epoch": tuned.best_epoch}
    (folder / "training.json").write_text(strict_json(training, "teacher", indent=2) + "\n", encoding="utf-8")


def _load(folder: Path) -> FineTuned:
    check_folder(folder)
    training = read_json(folder / "training.json")
    return FineTuned(load_model(folder), training["history"], training["best_epoch"])


def _sample(examples: Examples, name: str, limit: int, seed: int) -> Examples:
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
