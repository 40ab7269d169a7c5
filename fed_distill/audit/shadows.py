"""Shadow students: the attacker trains students as the victim was, on random halves of the examples in question.

They are cheap because a cohort trains all of them at once. An attacker that has nothing but soft labels on the proxy
set first distils a student of its own from them (Jagielski et al., "Students parrot their teachers: membership
inference on model distillation", NeurIPS 2023, on what a student passes on of its teacher's examples).
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
"""Epochs over the proxy set in which an attacker distils its student."""


@dataclass(frozen=True)
class Recipe:
    """How a student is trained on somebody's examples: what a merchant does, and what an attacker imitates.

    student: the model, whose own weights are overwritten. start: where training starts. proxy: the shared proxy set.
    plan, pace, trainer: as at a merchant; several rounds are several times its epochs. privacy: DP-SGD of private
    phases.
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
        """The proxy set, encoded once."""
        return self.student.encode(self.proxy.texts, self.proxy.pairs)

    def learner(self, name: str, private: Encoded, labels: IntArray, randomness: Randomness) -> Learner:
        """A learner of this recipe with its own examples."""
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
        """Name and whole weights of each learner when it is trained, in any order; TrainingError if one fails."""
        plans = {learner.name: self.plan for learner in learners}
        for fitted in self.trainer.fit(learners, plans, self.pace, progress):
            if isinstance(fitted, Failure):
                raise TrainingError(fitted.reason)
            yield fitted.name, completed(fitted.weights, self.start)

    def train(self, examples: Examples, seed: int) -> Predictor:
        """A student trained on ``examples``, as a function that predicts."""
        encoded = self.student.encode(examples.texts, examples.pairs)
        return self._fit_one(self.learner("the attacked student", encoded, examples.labels, (seed, "attacked student")))

    def distil(self, probabilities: FloatArray, seed: int, epochs: float = DISTILLING_EPOCHS) -> Predictor:
        """A student distilled from soft labels ``[proxy, classes]`` alone, from the same start, without private data.

        Raises DataError if there is not one row for each proxy example.
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
    """Which shadow is trained on which example, ``[shadows, examples]``: each unit in exactly half of the shadows.

    units: ``[examples]``, examples of one unit are in or out together.

    Raises DataError for an odd number of shadows, or for fewer than four: an example needs two with and two without it.
    """
    if shadows < 4 or shadows % 2:
        raise DataError(f"LiRA wants an even number of shadow students, four or more, not {shadows}")
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
    """Train ``shadows`` students on random halves of the labelled ``pool`` and have each score all of it.

    by_group: keep groups together, as is right where the victim was trained on whole groups: a shadow that had seen
    other examples of a held-out product would not be like it. ``progress`` is called with (steps done, steps in all).
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
