"""The teacher's part of a run: fine-tuned once, its soft labels on the proxy set, and what it scores itself.

All three are kept in the cache folder under fingerprints, so that another run with the same teacher and data
starts at once.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pooch
from torch import Tensor

from fed_distill.config import Experiment
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.distill.soft_labels import soft_labels
from fed_distill.distill.teacher import cached_teacher
from fed_distill.models import TextModel
from fed_distill.results.metrics import Metrics, classification, ranking
from fed_distill.runtime.callbacks import Callback


@dataclass(frozen=True)
class Teaching:
    """teacher: the fine-tuned model. labels: its probabilities on the proxy set ``[proxy, classes]``. metrics: on
    the common test set, with ``parameters``."""

    teacher: TextModel
    labels: Tensor
    metrics: Metrics


def cache_folder(experiment: Experiment) -> Path:
    """Where teachers and soft labels are kept: ``runtime.cache``, or the user's cache folder."""
    return experiment.runtime.cache or Path(pooch.os_cache("fed-distill"))


def prepare_teacher(experiment: Experiment, data: FederatedData, callbacks: Callback) -> Teaching:
    """Fine-tune the teacher on the public examples, label the proxy set, and measure the teacher."""
    cache = cache_folder(experiment)
    callbacks.on_stage(f"teacher {experiment.teacher.model}: fine-tuning", None)
    tuned, fingerprint = cached_teacher(
        cache,
        experiment.teacher,
        data.task,
        data.public,
        data.public_valid,
        experiment.data.seed,
        lambda done, total, metrics: callbacks.on_step(done, {"steps": total, **metrics}),
    )
    tuned.model.eval()
    label = partial(_labels, tuned.model, fingerprint, cache, callbacks)
    proxy = label("the proxy set", data.proxy)
    measured = dict(classification(label("the test set", data.test).numpy(), data.test.labels, data.task))
    if data.ranking_test is not None:
        ranked = label("the test ranking", data.ranking_test.examples)
        measured |= ranking(ranked.numpy(), data.ranking_test, data.task)
    return Teaching(tuned.model, proxy, {**measured, "parameters": tuned.model.parameter_count()})


def _labels(
    teacher: TextModel, fingerprint: str, cache: Path, callbacks: Callback, what: str, examples: Examples
) -> Tensor:
    callbacks.on_stage(f"teacher: labels for {what}", len(examples))
    return soft_labels(teacher, fingerprint, examples, 1.0, cache, lambda done, total: callbacks.on_step(done, {}))
