"""Domain-adaptive distillation of one student: fine-tune, distil from the teacher, fine-tune again.

Each stage is evaluated on validation data and undone unless the score rises by more than its standard error (the "one
standard error" rule; Breiman et al. 1984, "Classification and regression trees", section 3.4.3), as a smaller rise is
likely chance. The error is a bootstrap's, so its own is added twice: a rise of one query alone equals its standard
error, and would be kept or not by the draw. On other data a stage that was kept may still be worse. The caller provides
training and evaluation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fed_distill.distill.losses import hard_labels
from fed_distill.evaluation.resampling import REPEATS, Resampled
from fed_distill.models.weights import Weights
from fed_distill.training.plan import Phase, Plan

UPPER = 1.0 + 2.0 / (2.0 * (REPEATS - 1)) ** 0.5
"""Upper end of the bootstrap's standard error, relative to it: the relative error of one that is estimated from n
values is 1 / sqrt(2 (n - 1))."""


@dataclass(frozen=True)
class Part:
    """One training plan (``private`` phases use the server's own examples) and the weights that it keeps fixed."""

    plan: Plan
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AdaptationStage:
    """A stage: its title, and the parts that are trained in sequence."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Adapted:
    """The adapted weights, and one line per stage about its effect."""

    weights: Weights
    notes: tuple[str, ...]


def domain_stages(distil: Phase, steps: int, layers: Sequence[frozenset[str]] = ()) -> list[AdaptationStage]:
    """Return the three stages.

    :param distil: a phase of distillation on the proxy set
    :param steps: number of steps of a stage of fine-tuning
    :param layers: the student's weights by layer, for gradual unfreezing in fine-tuning (Howard and Ruder, ACL 2018,
        section 3.3): the last layer first, then one more at a time; without layers, all weights are trained throughout
    """
    free = max(len(layers), 1)
    ends = [steps * number // free for number in range(free + 1)]
    parts = [
        Part(Plan((Phase(hard_labels(), steps=end - begin),)), frozenset().union(*layers[:held]))
        for held, (begin, end) in zip(reversed(range(free)), pairwise(ends), strict=True)
        if end > begin  # fewer steps than layers: several are freed at once
    ]
    return [
        AdaptationStage("fine-tune on the domain", tuple(parts)),
        AdaptationStage("distil on the domain", (Part(Plan((distil,))),)),
        AdaptationStage("fine-tune again", tuple(parts)),
    ]


def adapt(
    weights: Weights,
    stages: list[AdaptationStage],
    train: Callable[[Weights, AdaptationStage], Weights],
    validate: Callable[[Weights], Resampled],
) -> Adapted:
    """Run the stages in order; keep a result only if it improves ``validate`` (higher is better) clearly."""
    score = validate(weights)
    notes = []
    for stage in stages:
        candidate = train(weights, stage)
        reached = validate(candidate)
        rise = reached.value - score.value
        change = f"{stage.title}: validation {score.value:.4f} -> {reached.value:.4f}"
        if not rise > 0.0:
            notes.append(f"{change}, undone (no improvement)")
        elif rise > (error := UPPER * reached.standard_error(score)):
            notes.append(f"{change}, kept (+{rise:.2g}, above {UPPER:.1f} standard errors, {error:.2g})")
            weights, score = candidate, reached
        else:
            notes.append(f"{change}, undone (+{rise:.2g}, within {UPPER:.1f} standard errors, {error:.2g})")
    return Adapted(weights, tuple(notes))
