"""Distillation targets on the proxy set: kinds of transfer, their weights, and the teacher's outputs for each.

The losses of all kinds are added. Probabilities and decisions require logits only and work with any student; for the
others the student is wrapped during training (``hints.FeatureStudent``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import DistillConfig, Transfer
from fed_distill.config.distillation import PROBABILITIES
from fed_distill.data.examples import Examples, Task
from fed_distill.distill import losses
from fed_distill.distill.features import Features
from fed_distill.distill.hints import LIST, READ, FeatureStudent, expected_gain, guided_layer, layer_map
from fed_distill.errors import ConfigError, DataError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.training.plan import Objective, Phase, References

FEATURES: tuple[Transfer, ...] = ("hints", "hidden", "attention", "relations")
"""Kinds of transfer that require the teacher's hidden states."""

GRADED: tuple[Transfer, ...] = ("ranking", "listwise")
"""Kinds of transfer that compare the candidates of a query."""

FROM_SOFT_LABELS: tuple[Transfer, ...] = ("probabilities", "decisions", *GRADED)
"""Kinds of transfer that use soft labels, of the teacher or of merchants."""

_LOSSES = {
    "hints": losses.hint_loss,
    "hidden": losses.hidden_loss,
    "attention": losses.attention_loss,
    "relations": losses.relation_loss,
    "ranking": losses.margin_loss,
    "listwise": losses.listwise_loss,
}


@dataclass(frozen=True)
class DistillationTarget:
    """Outputs of a teacher, and optionally an assistant, on the proxy set, and how a student is distilled from them.

    soft_labels: class probabilities of the teacher ``[proxy, classes]``. temperature: temperature of the soft labels;
    ``config.final_temperature`` is that at the end. features: the teacher's hidden features, if ``config`` transfers
    any. partners: for each paired kind, partners of each proxy example, int64 ``[proxy, partners]``. assistant: class
    probabilities of the level above the student, unless that is the teacher. assistant_weight: alpha of that level.
    """

    config: DistillConfig
    task: Task
    soft_labels: Tensor
    temperature: float
    features: Features | None = None
    partners: Mapping[Transfer, Tensor] = field(default_factory=dict)
    assistant: Tensor | None = None
    assistant_weight: float = 1.0

    def prepared(self, student: TextModel, seed: int, *purpose: str | int) -> TextModel:
        """Return ``student`` (shared, not copied), wrapped if a kind of transfer requires more than logits.

        :param student: the student
        :param seed: seed of the projections
        :param purpose: purpose of the random stream
        """
        read = [kind for kind in self.config.transfer if kind in READ]
        if not read:
            return student
        width = 1 if self.features is None else self.features.states.shape[-1]
        with seeds.scope(seed, *purpose, "projections"):
            return FeatureStudent(student, read, self.task.pair, width, self.task.gains or (), self.partners)

    def at(self, done: float) -> "DistillationTarget":
        """Return the target after the share ``done`` of the training: the temperature is interpolated linearly between
        the initial and the final one (annealing, Jafari et al. 2021)."""
        if self.config.final_temperature is None:
            return self
        moved = (self.config.final_temperature - self.temperature) * done
        return replace(self, temperature=self.temperature + moved)

    def with_soft_labels(self, soft_labels: Tensor, temperature: float | None = None) -> "DistillationTarget":
        """Return the target with other soft labels ``[proxy, classes]``, optionally with a constant temperature."""
        if temperature is None:
            return replace(self, soft_labels=soft_labels)
        config = self.config.model_copy(update={"final_temperature": None})
        return replace(self, config=config, soft_labels=soft_labels, temperature=temperature)

    def true_labels(self, truth: Tensor) -> "DistillationTarget":
        """Return the target of the control ``oracle-proxy``: cross-entropy with the true classes, int64 ``[proxy]``."""
        certain = torch.nn.functional.one_hot(truth, len(self.task.classes)).to(self.soft_labels.dtype)
        bare = self.config.model_copy(update={"transfer": list(PROBABILITIES), "weights": {}})
        return replace(self, config=bare, features=None, partners={}, assistant=None).with_soft_labels(certain, 1.0)

    def below(self, assistant: Tensor) -> "DistillationTarget":
        """Return the target of a student below an assistant with class probabilities ``assistant`` ``[proxy,
        classes]``; without any transfer from the teacher, the assistant takes its place (Mirzadeh et al. 2020)."""
        if self.config.transfer:
            return replace(self, assistant=assistant, assistant_weight=self.config.assistant_weight)
        weights = {"probabilities": self.config.assistant_weight}
        config = self.config.model_copy(update={"transfer": list(PROBABILITIES), "weights": weights})
        return replace(self, config=config, soft_labels=assistant)

    def following(self, above: Tensor, weight: float) -> "DistillationTarget":
        """Return the target of an assistant: ``weight`` * CE with the level above only (see ``chain``)."""
        bare = self.config.model_copy(update={"transfer": [], "weights": {}})
        return replace(self, config=bare, assistant=above, assistant_weight=weight)

    def phase(self, prepared: TextModel, epochs: float) -> Phase:
        """Return a phase of ``epochs`` of distillation on the proxy set; ``prepared``: result of ``prepared()``."""
        return Phase(
            self.objective(),
            data="proxy",
            epochs=epochs,
            references=self.references(prepared),
            hidden=isinstance(prepared, FeatureStudent),
        )

    def objective(self) -> Objective:
        """Return the weighted sum of the losses of all kinds of transfer."""
        # Single-step distillation, the baseline of a chain, uses the teacher even if the chain excludes it.
        kinds = self.config.transfer or ([] if self.assistant is not None else list(PROBABILITIES))
        temperature = self.temperature
        if kinds == ["probabilities"] and not self.config.weights and self.assistant is None:
            return losses.soft_labels(temperature)
        weights = {kind: self.config.weights.get(kind, 1.0) for kind in kinds}
        places = {kind: place for place, kind in enumerate(kind for kind in kinds if kind in READ)}
        alpha = None if self.assistant is None else self.assistant_weight

        def objective(outputs: Outputs, references: References) -> Tensor:
            terms = [weights[kind] * _loss(kind, outputs, references, temperature, places) for kind in kinds]
            if alpha is not None:
                followed = losses.softened_cross_entropy(outputs.logits, references["assistant"], temperature)
                terms.append(alpha * followed)
            return torch.stack(terms).sum(dim=0)

        return objective

    def references(self, prepared: TextModel) -> dict[str, Tensor]:
        """Return the teacher's outputs for each kind, aligned with the proxy set."""
        found = {"soft_labels": self.soft_labels}
        if self.assistant is not None:
            found["assistant"] = self.assistant
        if not isinstance(prepared, FeatureStudent):
            return found
        if "ranking" in prepared.kinds:
            score = expected_gain(self.soft_labels, prepared.gains)
            found["ranking"] = score - score[self.partners["ranking"][:, 0]]
        if "listwise" in prepared.kinds:
            score = expected_gain(self.soft_labels, prepared.gains)
            found["listwise"] = torch.cat([score[:, None], score[self.partners["listwise"]]], dim=1)
        if self.features is None:
            return found
        states, maps = self.features.states, self.features.maps
        layers = layer_map(prepared.layers, states.shape[1])
        if "hints" in prepared.kinds:
            found["hints"] = states[:, layers[guided_layer(prepared.layers)]]
        if "hidden" in prepared.kinds:
            found["hidden"] = states[:, layers]
        if "attention" in prepared.kinds:
            found["attention"] = maps[:, layers]
        if "relations" in prepared.kinds:
            found["relations"] = torch.cosine_similarity(states[:, -1], states[self.partners["relations"][:, 0], -1])
        return found


def _loss(
    kind: Transfer, outputs: Outputs, references: References, temperature: float, places: Mapping[Transfer, int]
) -> Tensor:
    if kind == "probabilities":
        softened = losses.soften(references["soft_labels"], temperature)
        return losses.distillation_kl(outputs.logits, softened, temperature)
    if kind == "decisions":
        return losses.decision_cross_entropy(outputs.logits, references["soft_labels"])
    assert outputs.hidden is not None
    target = references[kind]
    return _LOSSES[kind](outputs.hidden[places[kind]].view(target.shape), target)


def check_transfer(config: DistillConfig, task: Task, student: TextModel) -> None:
    """Raise ConfigError for kinds of transfer that ``task`` or ``student`` does not support."""
    graded = [kind for kind in config.transfer if kind in GRADED]
    if graded and task.gains is None:
        raise ConfigError(
            f"distill.transfer: {graded[0]} requires graded products of a query, which task {task.name} does not have: "
            "remove it"
        )
    read = [kind for kind in config.transfer if kind in READ]
    if read:
        FeatureStudent(student, read, task.pair, width=1, gains=task.gains or ())


def check_soft_label_transfer(config: DistillConfig) -> None:
    """Raise ConfigError if merchants' soft labels would have no effect on the distillation of the global student."""
    if config.transfer and not set(config.transfer) & set(FROM_SOFT_LABELS):
        raise ConfigError(
            "distill.transfer has no kind that uses soft labels, from which the method distils the global student: "
            "add probabilities"
        )


def partners(kinds: list[Transfer], proxy: Examples, seed: int) -> dict[Transfer, Tensor]:
    """Select the partners of each proxy example for each paired kind in ``kinds``, int64 ``[proxy, partners]``.

    relations: a random other example. ranking, listwise: the next candidates of the same query in random order,
    repeated if there are too few. The only candidate of a query is its own partner and has no effect.

    :raises DataError: all candidates are the only ones of their query
    """
    found: dict[Transfer, Tensor] = {}
    order = seeds.torch_stream(seed, "partners")
    if "relations" in kinds:
        found["relations"] = _next_of_all(torch.randperm(len(proxy), generator=order)).unsqueeze(1)
    graded = [kind for kind in kinds if kind in GRADED]
    if not graded:
        return found
    candidates = _by_query(proxy, torch.randperm(len(proxy), generator=order).tolist())
    if all(len(rows) == 1 for rows in candidates):
        raise DataError(
            f"distill.transfer: {graded[0]} compares products of a query, and no two of the {len(proxy)} proxy "
            "examples share a query: raise data.proxy_size or remove it"
        )
    for kind in graded:
        beside = torch.empty(len(proxy), LIST - 1 if kind == "listwise" else 1, dtype=torch.int64)
        for rows in candidates:
            own = torch.tensor(rows)
            for place in range(beside.shape[1]):
                beside[own, place] = own.roll(-1 - place % max(1, len(rows) - 1))
        found[kind] = beside
    return found


def lone(proxy: Examples) -> int:
    """Return the number of proxy examples that are the only ones of their query."""
    return sum(len(rows) == 1 for rows in _by_query(proxy, range(len(proxy))))


def _by_query(proxy: Examples, order: Iterable[int]) -> list[list[int]]:
    """Return the rows of each query, in this order."""
    candidates: dict[str, list[int]] = {}
    for row in order:
        candidates.setdefault(proxy.texts[row], []).append(row)
    return list(candidates.values())


def _next_of_all(order: Tensor) -> Tensor:
    """Return each row's successor on the circle ``order``."""
    following = torch.empty_like(order)
    following[order] = order.roll(-1)
    return following
