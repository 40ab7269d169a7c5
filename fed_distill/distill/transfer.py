"""Distillation targets on the proxy set: kinds of transfer, their weights, and the teacher's outputs for each.

The losses of all kinds are added. Probabilities, decoupled, correlation and decisions require logits only and work with
any student; for the others the student is wrapped during training (``hints.FeatureStudent``).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import DistillConfig, Transfer
from fed_distill.config.distillation import PROBABILITIES, SOFTENED
from fed_distill.data.examples import Examples, Task
from fed_distill.distill import losses
from fed_distill.distill.features import Features
from fed_distill.distill.hints import PARTNERS, READ, FeatureStudent, guided_layer, layer_map
from fed_distill.distill.losses import graded_log_odds, log_probabilities
from fed_distill.errors import ConfigError, DataError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.training.plan import Objective, Phase, References

FEATURES: tuple[Transfer, ...] = ("hints", "hidden", "attention", "relations")
"""Kinds of transfer that require the teacher's hidden states."""

GRADED: tuple[Transfer, ...] = ("ranking", "listwise")
"""Kinds of transfer that compare the candidates of a query."""

FROM_SOFT_LABELS: tuple[Transfer, ...] = (*SOFTENED, "decisions", *GRADED, "contrastive")
"""Kinds of transfer that use soft labels, of the teacher or of merchants."""

SMALLEST_PROBABILITY = 1e-6
"""Smaller probabilities of a teacher are raised to it before their log-odds are the target of a score, so that a class
that it excludes, as votes and coded labels do, does not give an unbounded score."""

_LOSSES: Mapping[Transfer, Callable[[Tensor, Tensor], Tensor]] = {
    "hints": losses.hint_loss,
    "hidden": losses.hidden_loss,
    "attention": losses.attention_loss,
    "embeddings": losses.embedding_loss,
    "relations": losses.relation_loss,
    "ranking": losses.margin_loss,
}


@dataclass(frozen=True)
class DistillationTarget:
    """Outputs of a teacher, and optionally an assistant, on the proxy set, and how a student is distilled from them.

    soft_labels: class probabilities of the teacher ``[proxy, classes]``. temperature: temperature of the soft labels;
    ``config.final_temperature`` is that at the end. features: the teacher's hidden features, if ``config`` transfers
    any. partners: for each kind that has them, partners of each proxy example, int64 ``[proxy, partners]``. embeddings:
    the teacher's embeddings of single texts ``[proxy, texts, width]``, if ``config`` transfers them. assistant: class
    probabilities of the level above the student, unless that is the teacher. assistant_weight: alpha of that level.
    """

    config: DistillConfig
    task: Task
    soft_labels: Tensor
    temperature: float
    features: Features | None = None
    partners: Mapping[Transfer, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
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
        states = self.embeddings if self.features is None else self.features.states
        width = 1 if states is None else states.shape[-1]
        with seeds.scope(seed, *purpose, "projections"):
            return FeatureStudent(student, read, self.task.pair, width, gains_of(self.task), self.partners)

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
        plain = {"transfer": list(PROBABILITIES), "weights": {}, "standardize": False, "hard_weight": 1.0}
        bare = replace(self, config=self.config.model_copy(update=plain), features=None, partners={}, embeddings=None)
        return replace(bare, assistant=None).with_soft_labels(certain, 1.0)

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
        config, temperature = self.config, self.temperature
        plain = not config.weights and not config.standardize and self.assistant is None
        if kinds == ["probabilities"] and plain:
            return losses.soft_labels(temperature)
        weights = {kind: self.config.weights.get(kind, 1.0) for kind in kinds}
        places = {kind: place for place, kind in enumerate(kind for kind in kinds if kind in READ)}
        alpha = None if self.assistant is None else self.assistant_weight

        def objective(outputs: Outputs, references: References) -> Tensor:
            logits = losses.standardized(outputs.logits) if config.standardize else outputs.logits
            terms = []
            for kind in kinds:
                if kind in SOFTENED:
                    loss = _of_softened(kind, logits, references["soft_labels"], temperature, config)
                elif kind == "decisions":
                    loss = losses.decision_cross_entropy(outputs.logits, references["soft_labels"])
                else:
                    assert outputs.hidden is not None
                    loss = _of_features(kind, outputs.hidden[places[kind]], references[kind], config)
                terms.append(weights[kind] * loss)
            if alpha is not None:
                followed = losses.softened_cross_entropy(logits, references["assistant"], temperature)
                terms.append(alpha * followed)
            return torch.stack(terms).sum(dim=0)

        return objective

    def references(self, prepared: TextModel) -> dict[str, Tensor]:
        """Return the teacher's outputs for each kind, aligned with the proxy set."""
        found = {"soft_labels": self.soft_labels}
        if self.assistant is not None:
            found["assistant"] = self.assistant
        if self.config.standardize:
            found = {name: losses.standardized_probabilities(values) for name, values in found.items()}
        if not isinstance(prepared, FeatureStudent):
            return found
        score = graded_log_odds(log_probabilities(self.soft_labels, SMALLEST_PROBABILITY), gains_of(self.task))
        if "ranking" in prepared.kinds:
            found["ranking"] = score - score[self.partners["ranking"][:, 0]]
        if "listwise" in prepared.kinds:
            found["listwise"] = torch.cat([score[:, None], score[self.partners["listwise"]]], dim=1)
        if "contrastive" in prepared.kinds:
            found["contrastive"] = score.sigmoid()
        if self.embeddings is not None and "embeddings" in prepared.kinds:
            found["embeddings"] = self.embeddings
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


def _of_softened(
    kind: Transfer, logits: Tensor, probabilities: Tensor, temperature: float, config: DistillConfig
) -> Tensor:
    softened = losses.soften(probabilities, temperature)
    if kind == "decoupled":
        return losses.decoupled_kl(logits, softened, temperature, config.decoupled_beta)
    if kind == "correlation":
        return losses.correlation_loss(logits, softened, temperature)
    return losses.distillation_kl(logits, softened, temperature)


def _of_features(kind: Transfer, read: Tensor, target: Tensor, config: DistillConfig) -> Tensor:
    if kind == "contrastive":
        return losses.contrastive_loss(read[:, 0], target)
    read = read.view(target.shape)
    if kind == "listwise":
        return losses.listwise_loss(read, target, config.list_temperature)
    return _LOSSES[kind](read, target)


def gains_of(task: Task) -> tuple[float, ...]:
    """Return the gain of each class; without gains, 1 for the positive class and 0 for all others."""
    return task.gains or tuple(float(name == task.positive) for name in task.classes)


def check_transfer(config: DistillConfig, task: Task, student: TextModel) -> None:
    """Raise ConfigError for kinds of transfer that ``task`` or ``student`` does not support."""
    graded = [kind for kind in config.transfer if kind in GRADED]
    if graded and task.gains is None:
        raise ConfigError(
            f"distill.transfer: {graded[0]} requires graded products of a query, which task {task.name} does not have: "
            "remove it"
        )
    if "contrastive" in config.transfer and not task.pair:
        raise ConfigError(
            f"distill.transfer: contrastive compares pairs of texts, and task {task.name} has one text: remove it"
        )
    if len(task.classes) < 3:
        _check_two_classes(config, task)
    read = [kind for kind in config.transfer if kind in READ]
    if read:
        FeatureStudent(student, read, task.pair, width=1, gains=gains_of(task))


def _check_two_classes(config: DistillConfig, task: Task) -> None:
    """Raise ConfigError for settings that have no effect, or destroy the target, with two classes."""
    without_effect = {
        "transfer: decoupled": (
            "decoupled" in config.transfer,
            "there is one class beside the teacher's decision, so that it equals probabilities: use that",
        ),
        "transfer: correlation": (
            "correlation" in config.transfer,
            "a correlation over two classes is 1 or -1: remove it",
        ),
        "standardize": (config.standardize, "the z-scores of two logits are always 1 and -1: set it to false"),
    }
    for setting, (used, why) in without_effect.items():
        if used:
            raise ConfigError(f"distill.{setting} requires three classes, and task {task.name} has two; {why}")


def check_soft_label_transfer(config: DistillConfig) -> None:
    """Raise ConfigError if merchants' soft labels would have no effect on the distillation of the global student."""
    if config.transfer and not set(config.transfer) & set(FROM_SOFT_LABELS):
        raise ConfigError(
            "distill.transfer has no kind that uses soft labels, from which the method distils the global student: "
            "add probabilities"
        )


def partners(kinds: list[Transfer], proxy: Examples, seed: int) -> dict[Transfer, Tensor]:
    """Select the partners of each proxy example for each kind in ``kinds`` that has them, int64 ``[proxy, partners]``.

    relations: a random other example. ranking, listwise: the next candidates of the same query in random order,
    repeated if there are too few. The only candidate of a query is its own partner and has no effect. contrastive:
    random examples whose second text is not a candidate of the same query; which of them is relevant all the same is
    not known.

    :raises DataError: all candidates are the only ones of their query, or all candidates are of one query
    """
    found: dict[Transfer, Tensor] = {}
    order = seeds.torch_stream(seed, "partners")
    if "relations" in kinds:
        found["relations"] = _next_of_all(torch.randperm(len(proxy), generator=order)).unsqueeze(1)
    if "contrastive" in kinds:
        found["contrastive"] = _other_candidates(proxy, seed)
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
        beside = torch.empty(len(proxy), PARTNERS[kind], dtype=torch.int64)
        for rows in candidates:
            own = torch.tensor(rows)
            for place in range(beside.shape[1]):
                beside[own, place] = own.roll(-1 - place % max(1, len(rows) - 1))
        found[kind] = beside
    return found


def _other_candidates(proxy: Examples, seed: int) -> Tensor:
    """Return rows whose second text is no candidate of the same query, drawn with replacement: int64 ``[proxy,
    partners]``."""
    assert proxy.pairs is not None
    candidates: dict[str, set[str]] = {}
    for text, pair in zip(proxy.texts, proxy.pairs, strict=True):
        candidates.setdefault(text, set()).add(pair)
    distinct = set(proxy.pairs)
    for text, own in candidates.items():
        if own == distinct:
            raise DataError(
                "distill.transfer: contrastive requires second texts of other queries, and all of the proxy set's are "
                f"candidates of {text!r}: raise data.proxy_size or remove it"
            )
    order = seeds.torch_stream(seed, "partners", "contrastive")
    drawn = torch.randint(len(proxy), (len(proxy), PARTNERS["contrastive"]), generator=order)
    left = torch.ones_like(drawn, dtype=torch.bool)
    while bool(left.any()):
        for row, place in left.nonzero().tolist():
            left[row, place] = proxy.pairs[int(drawn[row, place])] in candidates[proxy.texts[row]]
        drawn[left] = torch.randint(len(proxy), (int(left.sum()),), generator=order)
    return drawn


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
