"""Domain-adaptive distillation of one student: fine-tune, distil from the teacher again, fine-tune once more.

Each stage is judged on validation data and undone if it made the student worse on them; on other data it may have made
it worse all the same. There is no federation in here: how a plan is trained and a student judged is given by the
caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fed_distill.distill.losses import hard_labels
from fed_distill.models.weights import Weights
from fed_distill.training.plan import Phase, Plan


@dataclass(frozen=True)
class Part:
    """One training (``private`` phases run on the server's own examples), and the weights that it leaves alone."""

    plan: Plan
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AdaptationStage:
    """One stage: what it is called, and what is trained one after another."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Adapted:
    """The adapted weights, and one line a stage on what it did."""

    weights: Weights
    notes: tuple[str, ...]


def domain_stages(distil: Phase, layers: Sequence[frozenset[str]] = ()) -> list[AdaptationStage]:
    """The three stages, all as long as ``distil``, a phase of distillation on the proxy set.

    layers: the student's weights by layer, to fine-tune with gradual unfreezing (Howard and Ruder, ACL 2018, sec. 3.3):
    the last layer first, then with the one before it, at last with all of them. None: all layers all the time.
    """
    free = max(len(layers), 1)
    fine_tune = Phase(hard_labels(), epochs=(distil.epochs or 0.0) / free)
    parts = [Part(Plan((fine_tune,)), frozenset().union(*layers[:held])) for held in reversed(range(free))]
    return [
        AdaptationStage("fine-tune on the domain", tuple(parts)),
        AdaptationStage("distil on the domain", (Part(Plan((distil,))),)),
        AdaptationStage("fine-tune again", tuple(parts)),
    ]


def adapt(
    weights: Weights,
    stages: list[AdaptationStage],
    train: Callable[[Weights, AdaptationStage], Weights],
    validate: Callable[[Weights], float],
) -> Adapted:
    """Run the stages in order, keeping each only if ``validate`` (higher is better) does not fall."""
    score = validate(weights)
    notes = []
    for stage in stages:
        candidate = train(weights, stage)
        reached = validate(candidate)
        change = f"validation {score:.4f} -> {reached:.4f}"
        if reached < score:
            notes.append(f"{stage.title}: {change}, undone")
        else:
            notes.append(f"{stage.title}: {change}, kept")
            weights, score = candidate, reached
    return Adapted(weights, tuple(notes))
