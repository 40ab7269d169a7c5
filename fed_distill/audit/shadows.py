"""Shadow students: train students like the victim on random halves of the candidate examples.

A cohort trains all of them together. An attacker with soft labels on the proxy set only distils a student from them
first (Jagielski et al., "Students parrot their teachers: membership inference on model distillation", NeurIPS 2023, on
leakage about a teacher's examples through its student).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.audit.membership import BoolArray, IntArray, Shadows, scaled_confidence
from fed_distill.audit.roc import FloatArray
from fed_distill.audit.victim import Predictor, predicted, predictor
from fed_distill.data.examples import Examples
from fed_distill.distill.losses import soft_labels
from fed_distill.errors import DataError, TrainingError
from fed_distill.models.base import TextModel
from fed_distill.models.weights import Weights
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.seeds import Randomness
from fed_distill.text.encoded import Encoded
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Learner, Trainer

DISTILLING_EPOCHS = 10.0
"""Number of epochs in which an attacker distils its student."""


@dataclass(frozen=True)
class Recipe:
    """The training procedure of a student, as at a merchant and as imitated by an attacker.

    student: the model; its weights are overwritten. start: initial weights. proxy: the proxy set. plan, pace, trainer:
    as at a merchant; several rounds are represented by more epochs. privacy: DP-SGD of private phases.
    """

    student: TextModel
    start: Weights
    proxy: Examples
    plan: Plan
    pace: Pace
    trainer: Trainer
    privacy: ExampleDP | None = None

    @cached_property
    def encoded_proxy(self) -> Encoded:
        """The encoded proxy set."""
        return self.student.encode(self.proxy.texts, self.proxy.pairs)

    def learner(self, name: str, private: Encoded, labels: IntArray, randomness: Randomness) -> Learner:
        """Return a learner with its own examples."""
        return Learner(
            name,
            self.student,
            self.start,
            private,
            torch.from_numpy(labels),
            self.encoded_proxy,
            randomness,
            self.privacy,
        )

    def fit(
        self, learners: Sequence[Learner], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield name and final weights of each learner, in any order; raise TrainingError if one fails."""
        plans = {learner.name: self.plan for learner in learners}
        for fitted in self.trainer.fit(learners, plans, self.pace, progress):
            if isinstance(fitted, Failure):
                raise TrainingError(fitted.reason)
            yield fitted.name, completed(fitted.weights, self.start)

    def train(self, examples: Examples, seed: int) -> Predictor:
        """Train a student on ``examples`` and return its predictor."""
        encoded = self.student.encode(examples.texts, examples.pairs)
        return self._fit_one(self.learner("the attacked student", encoded, examples.labels, (seed, "attacked student")))

    def distil(self, probabilities: FloatArray, seed: int, epochs: float = DISTILLING_EPOCHS) -> Predictor:
        """Distil a student from soft labels ``[proxy, classes]`` only, without private data.

        :raises DataError: the number of rows is not that of the proxy set
        """
        if len(probabilities) != len(self.proxy):
            raise DataError(f"there are {len(probabilities)} soft labels for {len(self.proxy)} proxy examples")
        references = {"soft_labels": torch.from_numpy(probabilities).float()}
        phase = Phase(soft_labels(1.0), data="proxy", epochs=epochs, references=references)
        recipe = replace(self, plan=Plan((phase,)), privacy=None)
        nothing = {key: values[:0] for key, values in self.encoded_proxy.items()}
        none = np.empty(0, dtype=np.int64)
        return recipe._fit_one(recipe.learner("the distilled student", nothing, none, (seed, "distilled student")))

    def _fit_one(self, learner: Learner) -> Predictor:
        ((_, weights),) = self.fit([learner])
        return predictor(self.student, weights)


def halves(units: IntArray, shadows: int, generator: np.random.Generator) -> BoolArray:
    """Assign examples to shadow students, bool ``[shadows, examples]``: each unit is in exactly half of them.

    :param units: unit of each example ``[examples]``; the examples of a unit are included together
    :param shadows: number of shadow students
    :param generator: random generator
    :raises DataError: ``shadows`` is odd or less than four: LiRA requires two with and two without each example
    """
    if shadows < 4 or shadows % 2:
        raise DataError(f"LiRA requires an even number of at least four shadow students, not {shadows}")
    distinct, of_example = np.unique(units, return_inverse=True)
    order = generator.random((shadows, len(distinct))).argsort(axis=0)
    inside: BoolArray = (order < shadows // 2)[:, of_example]
    return inside


def train_shadows(
    recipe: Recipe,
    pool: Examples,
    shadows: int,
    seed: int,
    by_group: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Shadows:
    """Train ``shadows`` students on random halves of the labelled ``pool`` and score all of it with each.

    :param by_group: keep groups together, if the victim was trained on whole groups: a shadow student trained on
        other examples of a held-out product would not be comparable
    :param progress: called with (steps done, total steps)
    """
    units = pool.groups if by_group else np.arange(len(pool), dtype=np.int64)
    inside = halves(units, shadows, seeds.numpy_stream(seed, "shadow halves"))
    encoded = recipe.student.encode(pool.texts, pool.pairs)
    learners = []
    for number, chosen in enumerate(inside):
        rows = torch.from_numpy(np.flatnonzero(chosen))
        own = {key: values[rows] for key, values in encoded.items()}
        name = f"shadow student {number}"
        learners.append(recipe.learner(name, own, pool.labels[chosen], (seed, name)))
    place = {learner.name: number for number, learner in enumerate(learners)}
    scores = np.empty(inside.shape, dtype=np.float64)
    for name, weights in recipe.fit(learners, progress):
        scores[place[name]] = scaled_confidence(predicted(recipe.student, weights, encoded), pool.labels)
    return Shadows(scores, inside)
