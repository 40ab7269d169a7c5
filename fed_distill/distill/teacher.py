"""The server's teacher: configuration, cache and fine-tuning (``distill.fine_tuning``).

A teacher that predicts without fine-tuning (a causal language model, a file) is used as it is, unless epochs or steps
are set. A teacher with a procedure of its own (``FitsItself``) is fitted by it.
"""

import logging
from functools import partial
from pathlib import Path

from fed_distill import seeds
from fed_distill.config import TeacherConfig
from fed_distill.data.examples import Examples, Task
from fed_distill.data.fingerprint import examples_fingerprint
from fed_distill.distill.fine_tuning import FineTuned, Progress, TuningCheckpoint, fine_tune, labelled_sample
from fed_distill.distill.masked import pretrain_on_domain
from fed_distill.errors import CheckpointError, ConfigError, ModelError
from fed_distill.models import load_model, load_teacher
from fed_distill.models.base import FitsItself
from fed_distill.models.building import fits_itself, is_trainable, is_zero_shot
from fed_distill.storage.files import read_json, strict_json
from fed_distill.storage.fingerprint import files_fingerprint, fingerprint, named_files, own_code
from fed_distill.storage.sealed import check_folder, replace_sealed_folder
from fed_distill.storage.versions import CACHE_VERSION, versions

logger = logging.getLogger(__name__)


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


def tuning_file(cache_dir: Path, name: str) -> Path:
    """Return the file from which an interrupted fine-tuning of the teacher with this fingerprint continues."""
    return cache_dir / "teachers" / f"{name}.unfinished"


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

    An interrupted fine-tuning is continued (``TuningCheckpoint``). A stored teacher that cannot be read is reported in
    the log and trained again. A teacher without fine-tuning is
    loaded from its own files each time, not stored.

    :param domain: texts for domain-adaptive pretraining (``masked.epochs``); their labels are not used
    """
    name = teacher_fingerprint(config, task, public, valid, domain, seed)
    if not is_fine_tuned(config):
        return FineTuned(load_teacher(config, task).eval(), [], 0.0), name
    folder = teacher_folder(cache_dir, name)
    if folder.exists():
        try:
            found = _load(folder)
            tuning_file(cache_dir, name).unlink(missing_ok=True)  # of a process that was killed when it had finished
            return found, name
        except (ModelError, CheckpointError, KeyError, TypeError) as error:
            logger.warning("the stored teacher in %s cannot be used and will be trained again: %s", folder, error)
    folder.parent.mkdir(parents=True, exist_ok=True)  # fail before the training, which may take hours
    checkpoint = TuningCheckpoint(tuning_file(cache_dir, name))
    with seeds.scope(seed, "teacher", "weights"):
        teacher = load_teacher(config, task)
    if config.masked.epochs and not checkpoint.begun:
        pretrain_on_domain(teacher, domain, config.masked, (seed, "teacher"), lambda d, n: progress(d, n, {}))
    if isinstance(teacher, FitsItself):
        own = labelled_sample(public, "public", config.max_examples, seed)
        teacher.fit(own.texts, own.pairs, own.labels)
        tuned = FineTuned(teacher.eval(), [], 0.0)
    else:
        tuned = fine_tune(teacher, public, valid, task, config, seed, progress, checkpoint)
    replace_sealed_folder(folder, partial(_save, tuned))
    checkpoint.remove()
    return tuned, name


def _save(tuned: FineTuned, folder: Path) -> None:
    tuned.model.save(folder)
    training = {"history": tuned.history, "best_epoch": tuned.best_epoch}
    (folder / "training.json").write_text(strict_json(training, "teacher", indent=2) + "\n", encoding="utf-8")


def _load(folder: Path) -> FineTuned:
    check_folder(folder)
    training = read_json(folder / "training.json")
    return FineTuned(load_model(folder), training["history"], training["best_epoch"])
