"""Domain-adaptive distillation of one student: fine-tune, distil from the teacher again, fine-tune once more.

Each stage is judged on validation data and undone if it made the student worse, so adaptation can only cost
time. There is no federation in here: how a plan is trained and a student judged is given by the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Weights


@dataclass(frozen=True)
class Stage:
    """One stage: what it is called and what it trains (``private`` phases run on the server's own examples)."""

    title: str
    plan: Plan


@dataclass(frozen=True)
class Adapted:
    """The adapted weights, and one line a stage on what it did."""

    weights: Weights
    notes: tuple[str, ...]


def domain_stages(teacher_labels: Tensor, temperature: float, epochs: float, learning_rate_scale: float) -> list[Stage]:
    """The three stages. teacher_labels: the teacher's probabilities on the proxy set ``[proxy, classes]``."""
    fine_tune = Phase(hard_labels(), epochs=epochs, learning_rate_scale=learning_rate_scale)
    distil = Phase(
        soft_labels(temperature),
        data="proxy",
        epochs=epochs,
        references={"soft_labels": teacher_labels},
        learning_rate_scale=learning_rate_scale,
    )
    return [
        Stage("fine-tune on the domain", Plan((fine_tune,))),
        Stage("distil on the domain", Plan((distil,))),
        Stage("fine-tune again", Plan((fine_tune,))),
    ]


def adapt(
    weights: Weights,
    stages: list[Stage],
    train: Callable[[Weights, Stage], Weights],
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
