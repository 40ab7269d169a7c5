"""A small student, a shared proxy set, and recipes that train on them."""

import pytest

from fed_distill.audit.shadows import Recipe
from fed_distill.config import TrainerConfig
from fed_distill.distill.losses import hard_labels
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan


@pytest.fixture
def recipe_of(student, make_examples):
    """A function (steps, privacy, trainer) -> a recipe that overfits within a hundred steps."""
    start = {key: value.clone() for key, value in student.state_dict().items()}

    def make(steps=100, privacy=None, trainer=CohortTrainer):
        plan = Plan((Phase(hard_labels(), steps=steps),))
        config = TrainerConfig(batch_size=16)
        return Recipe(student, start, make_examples(60, seed=9), plan, Pace(0.05), trainer(config), privacy)

    return make
