"""Teachers of a run: fine-tuning, labels for the proxy set, and evaluation.

Results are cached under fingerprints, so that other runs with the same teachers and data start immediately. Several
teachers act as one: their labels are combined, and hidden states are those of the first.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pooch
import torch
from torch import Tensor

from fed_distill.config import Experiment
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.data.proxy import least_sure
from fed_distill.data.proxy_account import proxy_account
from fed_distill.distill.ensemble import combined, confidence, domains_of, similarity
from fed_distill.distill.features import features
from fed_distill.distill.soft_labels import soft_labels
from fed_distill.distill.teacher import cached_teacher, teacher_fingerprint, teacher_folder
from fed_distill.distill.transfer import FEATURES, GRADED, DistillationTarget, lone, partners
from fed_distill.evaluation.metrics import Metrics, classification, ranking
from fed_distill.models import TextModel
from fed_distill.reporting.callbacks import Callback
from fed_distill.storage.fingerprint import fingerprint


@dataclass(frozen=True)
class Member:
    """One teacher. trained_on: public examples of its fine-tuning. name: its fingerprint."""

    model: TextModel
    name: str
    trained_on: Examples


@dataclass(frozen=True)
class TeacherEnsemble:
    """All teachers of a run and their combination; ``labels`` returns the combined labels."""

    members: tuple[Member, ...]
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

    def labels(self, what: str, examples: Examples) -> Tensor:
        """Return combined probabilities ``[n, classes]``; ``what`` describes the examples in the progress."""
        found = [self._labels(place, what, examples) for place in range(len(self.members))]
        if len(found) == 1:
            return found[0]
        stacked = torch.stack(found)
        if self.combine == "confidence":
            return combined(stacked, confidence(stacked))
        if self.combine == "similarity":
            return combined(stacked, similarity(examples, [member.trained_on for member in self.members]))
        return combined(stacked)

    def _labels(self, place: int, what: str, examples: Examples) -> Tensor:
        member, which = self.members[place], f" {place + 1} of {len(self.members)}" if len(self.members) > 1 else ""
        self.callbacks.on_stage(f"teacher{which}: labels for {what}", len(examples))
        return soft_labels(member.model, member.name, examples, 1.0, self.cache, self._done)

    def _done(self, done: int, total: int) -> None:
        self.callbacks.on_step(done, {})


@dataclass(frozen=True)
class Teaching:
    """ensemble: the fine-tuned teachers. target: distillation target of students on the proxy set. metrics: on the
    common test set, with ``parameters``. data: with the selected proxy set. chosen: selected candidates, bool
    ``[candidates]``, if the teachers select the proxy set."""

    ensemble: TeacherEnsemble
    target: DistillationTarget
    metrics: Metrics
    data: FederatedData
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


def domain_texts(data: FederatedData) -> Examples:
    """Return the server's texts of the domain, without labels: public texts and the proxy set."""
    return Examples.concatenate([data.public.unlabeled(), data.proxy.unlabeled()])


def prepare_teacher(experiment: Experiment, data: FederatedData, callbacks: Callback) -> Teaching:
    """Fine-tune the teachers on the public examples, select the proxy set with them if configured, label it, and
    evaluate the teachers."""
    ensemble, chosen = _fine_tuned(experiment, data, callbacks), None
    if experiment.data.proxy_choice == "uncertainty":
        labels = ensemble.labels("the proxy set's candidates", data.proxy)
        chosen = least_sure(labels.numpy(), experiment.data.proxy_size)
        data = _with_chosen(data, chosen)
    target = _target(experiment, data, ensemble)
    measured = dict(classification(ensemble.labels("the test set", data.test).numpy(), data.test.labels, data.task))
    if data.ranking_test is not None:
        ranked = ensemble.labels("the test ranking", data.ranking_test.examples)
        measured |= ranking(ranked.numpy(), data.ranking_test, data.task)
    return Teaching(ensemble, target, {**measured, "parameters": ensemble.parameters}, data, chosen)


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
            made_of = kind, data.task, own, own_valid, domain_texts(data), experiment.data.seed + added
            if teacher_folder(cache, teacher_fingerprint(*made_of)).exists():
                callbacks.on_message(f"teacher {kind.model}{which}: loaded from {cache}")
            else:
                callbacks.on_stage(f"teacher {kind.model}{which}: fine-tuning", None)
            tuned, name = cached_teacher(
                cache,
                *made_of,
                lambda done, total, metrics: callbacks.on_step(done, {"steps": total, **metrics}),
            )
            members.append(Member(tuned.model.eval(), name, own))
    return TeacherEnsemble(tuple(members), config.combine, cache, callbacks)


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
    return DistillationTarget(
        config,
        data.task,
        ensemble.labels("the proxy set", data.proxy),
        experiment.training.server.temperature,
        read,
        partners(config.transfer, data.proxy, experiment.data.seed),
    )
