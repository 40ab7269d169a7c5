"""Teachers of a run: fine-tuning, labels for the proxy set, and evaluation.

Results are cached under fingerprints, so that other runs with the same teachers and data start immediately. Several
teachers act as one: their labels are combined, and hidden states are those of the first.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pooch
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import Experiment
from fed_distill.config.tables import Precision
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.data.proxy import least_sure
from fed_distill.data.proxy_account import proxy_account
from fed_distill.distill.coverage import covered
from fed_distill.distill.ensemble import combined, confidence, domains_of, similarity
from fed_distill.distill.features import features, sentence_embeddings
from fed_distill.distill.soft_labels import soft_labels
from fed_distill.distill.teacher import (
    cached_teacher,
    is_fine_tuned,
    teacher_fingerprint,
    teacher_folder,
    tuning_file,
)
from fed_distill.distill.transfer import FEATURES, GRADED, DistillationTarget, lone, partners
from fed_distill.evaluation.campaigns import qini_of, trial_of
from fed_distill.evaluation.metrics import Metrics, classification, expected_gains, ranking
from fed_distill.models import TextModel, load_teacher
from fed_distill.models.transformer import Transformer
from fed_distill.reporting.callbacks import Callback
from fed_distill.storage.fingerprint import fingerprint

_LEAST = 1e-6
"""Least weight of a teacher on an example that it covers and others do not."""


@dataclass(frozen=True)
class Member:
    """One teacher. trained_on: public examples of its fine-tuning. name: its fingerprint. precision: of matrix products
    in labelling."""

    model: TextModel
    name: str
    trained_on: Examples
    precision: Precision = "float32"


@dataclass(frozen=True)
class TeacherEnsemble:
    """All teachers of a run and their combination; ``labels`` returns the combined labels."""

    members: tuple[Member, ...]
    classes: int
    combine: str
    cache: Path
    callbacks: Callback

    @property
    def name(self) -> str:
        """Fingerprint of everything that the labels depend on."""
        names = [member.name for member in self.members]
        return names[0] if len(names) == 1 else fingerprint(members=names, combine=self.combine)

    @property
    def parameters(self) -> int:
        """Number of weights of all teachers."""
        return sum(member.model.parameter_count() for member in self.members)

    def covered(self, examples: Examples) -> npt.NDArray[np.bool_]:
        """Return which examples at least one teacher has a prediction for, bool ``[n]``."""
        return covered([member.model for member in self.members], examples).any(dim=0).numpy()

    def labels(self, what: str, examples: Examples) -> Tensor:
        """Return combined probabilities ``[n, classes]``; ``what`` describes the examples in the progress.

        A teacher has weight 0 on examples that it does not cover; each must be covered by one.
        """
        covers = covered([member.model for member in self.members], examples)
        found = [self._labels(place, what, examples, covers[place]) for place in range(len(self.members))]
        if len(found) == 1:
            return found[0]
        stacked, weights = torch.stack(found), None
        if self.combine == "confidence":
            weights = confidence(stacked)
        elif self.combine == "similarity":
            weights = similarity(examples, [member.trained_on for member in self.members])
        if not bool(covers.all()):
            weights = covers if weights is None else weights.clamp_min(_LEAST) * covers
        return combined(stacked, weights)

    def _labels(self, place: int, what: str, examples: Examples, covers: Tensor) -> Tensor:
        """Return one teacher's probabilities; rows that it does not cover are 0, if another teacher covers them."""
        member, which = self.members[place], f" {place + 1} of {len(self.members)}" if len(self.members) > 1 else ""
        own = examples
        if len(self.members) > 1 and not bool(covers.all()):
            own = examples.take(np.flatnonzero(covers.numpy()))
        self.callbacks.on_stage(f"teacher{which}: labels for {what}", len(own))
        report = _reported(self.callbacks)
        if len(own) == len(examples):
            return soft_labels(member.model, member.name, own, 1.0, self.cache, report, member.precision)
        found = torch.zeros(len(examples), self.classes)
        if len(own):
            found[covers] = soft_labels(member.model, member.name, own, 1.0, self.cache, report, member.precision)
        return found


@dataclass(frozen=True)
class Teaching:
    """ensemble: the fine-tuned teachers. target: distillation target of students on the proxy set. metrics: on the
    common test set, with ``parameters``. data: with the selected proxy set. chosen: selected candidates, bool
    ``[candidates]``, if the teachers select the proxy set or do not cover it all. candidates: all candidates without
    labels, from which students choose their vocabulary, so that those without a teacher do not depend on it."""

    ensemble: TeacherEnsemble
    target: DistillationTarget
    metrics: Metrics
    data: FederatedData
    candidates: Examples
    chosen: npt.NDArray[np.bool_] | None = None

    @property
    def teacher(self) -> TextModel:
        """The first teacher, whose layers can initialise students."""
        return self.ensemble.members[0].model

    @property
    def labels(self) -> Tensor:
        """The teachers' probabilities on the proxy set ``[proxy, classes]``."""
        return self.target.soft_labels


def cache_folder(experiment: Experiment) -> Path:
    """Return the cache folder: ``runtime.cache``, or the user's cache folder."""
    return experiment.runtime.cache or Path(pooch.os_cache("fed-distill"))


def domain_texts(data: FederatedData, candidates: Examples) -> Examples:
    """Return the server's texts of the domain, without labels: public texts and the proxy set's ``candidates``."""
    return Examples.concatenate([data.public.unlabeled(), candidates.unlabeled()])


def server_texts(data: FederatedData, candidates: Examples) -> list[str]:
    """Return each distinct text of ``domain_texts`` once, from which students choose their vocabulary."""
    examples = domain_texts(data, candidates)
    return list(dict.fromkeys([*examples.texts, *(examples.pairs or ())]))


def prepare_teacher(experiment: Experiment, data: FederatedData, callbacks: Callback) -> Teaching:
    """Fine-tune the teachers on the public examples, select the proxy set with them if configured, label it, and
    evaluate the teachers.

    Proxy examples that no teacher covers (see ``distill.coverage``) are left out. Teachers that do not cover the whole
    test set have no scores: on a part of it they could not be compared with a student's.
    """
    ensemble, candidates, chosen = _fine_tuned(experiment, data, callbacks), data.proxy.unlabeled(), None
    covers = ensemble.covered(data.proxy)
    if not covers.all():
        chosen = covers
        callbacks.on_message(
            f"the teachers have labels for {covers.sum():,} of {len(covers):,} proxy examples; the others are left out"
        )
    if experiment.data.proxy_choice == "uncertainty":
        labels = ensemble.labels("the proxy set's candidates", data.proxy.take(np.flatnonzero(covers)))
        chosen = np.zeros(len(covers), dtype=np.bool_)
        chosen[covers] = least_sure(labels.numpy(), experiment.data.proxy_size)
    if chosen is not None:
        data = _with_chosen(data, chosen)
    target = _target(experiment, data, ensemble)
    metrics = {**_measured(data, ensemble), "parameters": ensemble.parameters}
    return Teaching(ensemble, target, metrics, data, candidates, chosen)


def _measured(data: FederatedData, ensemble: TeacherEnsemble) -> Metrics:
    """Return the teachers' metrics on the test set and the test ranking; none of a part that they do not cover."""
    measured: dict[str, float | None] = {}
    if _covers(ensemble, "the test set", data.test):
        probabilities = ensemble.labels("the test set", data.test).numpy()
        measured |= classification(probabilities, data.test.labels, data.task)
        if data.task.of_campaigns:
            measured["qini"] = qini_of(probabilities, trial_of(data.test))
    if data.ranking_test is not None and _covers(ensemble, "the test ranking", data.ranking_test.examples):
        ranked = ensemble.labels("the test ranking", data.ranking_test.examples)
        measured |= ranking(expected_gains(ranked.numpy(), data.task), data.ranking_test, data.task)
    return measured


def _covers(ensemble: TeacherEnsemble, what: str, examples: Examples) -> bool:
    covers = ensemble.covered(examples)
    if not covers.all():
        ensemble.callbacks.on_message(
            f"the teachers have labels for {covers.sum():,} of {len(covers):,} examples of {what} and no score on it"
        )
    return bool(covers.all())


def _reported(callbacks: Callback) -> Callable[[int, int], None]:
    """Return a function that reports the examples done, and how many a second since its last call."""
    before, since = 0, perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal before, since
        now = perf_counter()
        callbacks.on_step(done, {"examples/s": (done - before) / max(now - since, 1e-9)})
        before, since = done, now

    return report


def _with_chosen(data: FederatedData, chosen: npt.NDArray[np.bool_]) -> FederatedData:
    """Keep the ``chosen`` proxy examples, bool ``[proxy]``."""
    proxy = data.proxy.take(np.flatnonzero(chosen))
    truth = None if data.proxy_truth is None else data.proxy_truth[chosen]
    selected = replace(data, proxy=proxy, proxy_truth=truth)
    examples = {**data.account["examples"], "proxy": len(proxy)}
    return replace(selected, account={**data.account, "examples": examples, "proxy": proxy_account(selected)})


def _fine_tuned(experiment: Experiment, data: FederatedData, callbacks: Callback) -> TeacherEnsemble:
    """Fine-tune or load every teacher of the ensemble in every domain."""
    config, cache, members = experiment.teacher, cache_folder(experiment), []
    domains = domains_of(data.public, data.public_valid, config.domains, experiment.data.seed)
    kinds = config.members()
    for number, (own, own_valid) in enumerate(domains, 1):
        for place, (kind, added) in enumerate(kinds, 1):
            which = f", {place} of {len(kinds)}" if len(kinds) > 1 else ""
            which += f", domain {number} of {len(domains)}" if len(domains) > 1 else ""
            made_of = kind, data.task, own, own_valid, domain_texts(data, data.proxy), experiment.data.seed + added
            if not is_fine_tuned(kind):
                callbacks.on_message(f"teacher {kind.model}{which}: used without fine-tuning")
            elif teacher_folder(cache, own_name := teacher_fingerprint(*made_of)).exists():
                callbacks.on_message(f"teacher {kind.model}{which}: loaded from {cache}")
            else:
                continued = " (continued)" if tuning_file(cache, own_name).exists() else ""
                callbacks.on_stage(f"teacher {kind.model}{which}: fine-tuning{continued}", None)
            tuned, name = cached_teacher(
                cache,
                *made_of,
                lambda done, total, metrics: callbacks.on_step(done, {"steps": total, **metrics}),
            )
            members.append(Member(tuned.model.eval(), name, own, kind.precision))
    return TeacherEnsemble(tuple(members), len(data.task.classes), config.combine, cache, callbacks)


def _target(experiment: Experiment, data: FederatedData, ensemble: TeacherEnsemble) -> DistillationTarget:
    config, first = experiment.distill, ensemble.members[0]
    read = None
    if set(config.transfer) & set(GRADED) and (alone := lone(data.proxy)):
        message = f"{alone} of {len(data.proxy)} proxy examples are alone in their query and have no ranking loss"
        ensemble.callbacks.on_message(message)
    if set(config.transfer) & set(FEATURES):
        if len(ensemble.members) > 1:
            ensemble.callbacks.on_message(f"hidden states are those of the first of {len(ensemble.members)} teachers")
        ensemble.callbacks.on_stage("teacher: hidden states on the proxy set", len(data.proxy))
        read = features(
            first.model,
            first.name,
            data.proxy,
            ensemble.cache,
            lambda done, total: ensemble.callbacks.on_step(done, {}),
        )
    embedded = None
    if "embeddings" in config.transfer:
        ensemble.callbacks.on_stage("teacher: sentence embeddings of the proxy set", None)
        with seeds.scope(experiment.data.seed, "teacher before fine-tuning"):
            untuned = load_teacher(experiment.teacher, data.task)
        if isinstance(untuned, Transformer) and untuned.from_scratch:
            ensemble.callbacks.on_message(
                f"teacher {experiment.teacher.model} has no pretrained weights: its sentence embeddings are random"
            )
        embedded = sentence_embeddings(untuned, first.name, data.proxy, ensemble.cache, lambda done, total: None)
    return DistillationTarget(
        config,
        data.task,
        ensemble.labels("the proxy set", data.proxy),
        experiment.training.server.temperature,
        read,
        partners(config.transfer, data.proxy, experiment.data.seed),
        embedded,
    )
