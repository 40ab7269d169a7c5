"""Shadow students: halves, and cohort-trained shadows against students trained one by one."""

import numpy as np
import pytest
import torch

from fed_distill import seeds
from fed_distill.audit.membership import scaled_confidence
from fed_distill.audit.shadows import halves, train_shadows
from fed_distill.audit.victim import predictor
from fed_distill.errors import DataError, TrainingError
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.sequential import SequentialTrainer


def test_each_unit_is_in_exactly_half_of_the_shadows_as_a_whole():
    units = np.array([4, 4, 9, 1, 9, 4])
    inside = halves(units, 8, seeds.numpy_stream(0))
    assert inside.shape == (8, 6)
    assert inside.sum(axis=0).tolist() == [4] * 6
    for unit in (1, 4, 9):
        assert (inside[:, units == unit] == inside[:, units == unit][:, :1]).all()


def test_shadows_have_about_half_of_the_examples_each():
    sizes = halves(np.arange(4000), 10, seeds.numpy_stream(0)).sum(axis=1)
    assert abs(sizes - 2000).max() < 5 * np.sqrt(1000)


@pytest.mark.parametrize("shadows", [0, 2, 5])
def test_too_few_or_an_odd_number_of_shadows_is_refused(shadows):
    with pytest.raises(DataError, match=f"an even number of at least four shadow students, not {shadows}"):
        halves(np.arange(5), shadows, seeds.numpy_stream(0))


@pytest.fixture
def pool(make_examples):
    return make_examples(40)


@pytest.mark.parametrize("privacy", [None, ExampleDP(0.5, 1.0)])
def test_shadows_trained_together_score_as_students_trained_alone(recipe_of, pool, privacy):
    found = train_shadows(recipe_of(20, privacy), pool, 4, seed=1, by_group=False)
    alone = recipe_of(20, privacy, SequentialTrainer)
    for number, inside in enumerate(found.inside):
        own, name = pool.take(np.flatnonzero(inside)), f"shadow student {number}"
        encoded = alone.student.encode(own.texts, own.pairs)
        ((_, weights),) = alone.fit([alone.learner(name, encoded, own.labels, (1, name))])
        expected = scaled_confidence(predictor(alone.student, weights)(pool), pool.labels)
        np.testing.assert_allclose(found.scores[number], expected, atol=2e-3)


def test_an_overfitted_shadow_is_surer_of_what_it_was_trained_on(recipe_of, pool):
    found = train_shadows(recipe_of(), pool, 4, seed=0, by_group=False)
    assert found.scores[found.inside].mean() > found.scores[~found.inside].mean() + 3.0


def test_halves_by_group_keep_groups_together(recipe_of, pool):
    whole = pool.take(np.repeat(np.arange(20), 2))
    by_group = train_shadows(recipe_of(1), whole, 4, seed=0, by_group=True).inside
    assert (by_group[:, ::2] == by_group[:, 1::2]).all()
    by_example = train_shadows(recipe_of(1), whole, 4, seed=0, by_group=False).inside
    assert not (by_example[:, ::2] == by_example[:, 1::2]).all()


def test_progress_tells_the_steps_of_all_shadows(recipe_of, pool):
    told = []
    train_shadows(
        recipe_of(3), pool, 4, seed=0, by_group=False, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (12, 12)


def test_a_shadow_that_cannot_be_trained_is_an_error_that_names_it(recipe_of, pool):
    recipe = recipe_of()
    recipe.start["head.2.bias"][0] = float("nan")
    with pytest.raises(TrainingError, match="shadow student 0: the loss of phase 1 is nan"):
        train_shadows(recipe, pool, 4, seed=0, by_group=False)


def test_a_distilled_student_says_what_the_soft_labels_say(recipe_of):
    recipe = recipe_of(privacy=ExampleDP(100.0, 0.1))
    target = torch.softmax(torch.randn(60, 3, generator=seeds.torch_stream(1)) * 3, dim=-1).double().numpy()
    distilled = recipe.distil(target, seed=0, epochs=100)(recipe.proxy)
    away = np.abs(distilled - target).sum(axis=1).mean() / 2
    untrained = np.abs(recipe.distil(target, seed=0, epochs=0.1)(recipe.proxy) - target).sum(axis=1).mean() / 2
    assert away < untrained / 3


def test_soft_labels_of_another_proxy_set_are_refused(recipe_of):
    with pytest.raises(DataError, match="59 soft labels for 60 proxy examples"):
        recipe_of().distil(np.full((59, 3), 1 / 3), seed=0)
