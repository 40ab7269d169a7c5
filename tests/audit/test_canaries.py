"""The canary audit, against trainings that remember all, nothing, or as much as a known epsilon lets them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fed_distill.audit.canaries import canary_audit, make_canaries
from fed_distill.audit.one_run import epsilon_lower_bound
from fed_distill.audit.victim import predictor
from fed_distill.data.examples import Examples
from fed_distill.errors import DataError
from fed_distill.privacy.dp_sgd import ExampleDP

CLASSES = 3


@pytest.fixture
def source(make_examples):
    """Held-out examples of one merchant."""
    return make_examples(300, "north", 5)


@pytest.fixture
def base(make_examples):
    return make_examples(30, "north", 6)


def test_mislabeled_canaries_are_rows_of_the_source_with_another_label(source):
    canaries = make_canaries(source, CLASSES, 200, "mislabeled", seed=0)
    texts = list(zip(source.texts, source.pairs, strict=True))
    labels = dict(zip(texts, source.labels, strict=True))
    unique = [at for at, text in enumerate(zip(canaries.texts, canaries.pairs, strict=True)) if texts.count(text) == 1]
    assert len(unique) > 150
    assert all(labels[canaries.texts[at], canaries.pairs[at]] != canaries.labels[at] for at in unique)
    assert set(canaries.labels.tolist()) == {0, 1, 2}


def test_random_text_has_the_sources_words_and_lengths_in_another_order(source):
    canaries = make_canaries(source, CLASSES, 500, "random_text", seed=0)
    assert {word for text in canaries.texts for word in text.split()} <= {
        word for text in source.texts for word in text.split()
    }
    assert {len(text.split()) for text in canaries.texts} == {3}
    assert {len(text.split()) for text in canaries.pairs} == {4}
    assert np.bincount(canaries.labels, minlength=CLASSES).min() > 120
    assert len(set(canaries.texts) - set(source.texts)) > 100


def test_random_text_of_a_task_without_pairs_has_none(source):
    assert make_canaries(replace(source, pairs=None), CLASSES, 5, "random_text", seed=0).pairs is None


def test_canaries_are_groups_of_their_own_of_one_merchant(source):
    canaries = make_canaries(source, CLASSES, 50, "mislabeled", seed=0)
    assert len(set(canaries.groups.tolist())) == 50
    assert not set(canaries.groups.tolist()) & set(source.groups.tolist())
    assert set(canaries.merchants) == {"north"}


def test_another_seed_makes_other_canaries(source):
    first, again, other = (make_canaries(source, CLASSES, 50, "mislabeled", seed=seed) for seed in (0, 0, 1))
    assert first.texts == again.texts and first.labels.tolist() == again.labels.tolist()
    assert first.texts != other.texts


@pytest.mark.parametrize(
    ("classes", "count", "message"),
    [
        (1, 5, "at least two classes, not 1"),
        (3, 301, "300 examples are too few for 301 canaries"),
        (3, 0, "for 0 canaries"),
    ],
)
def test_canaries_that_cannot_be_made_are_refused(source, classes, count, message):
    with pytest.raises(DataError, match=message):
        make_canaries(source, classes, count, "mislabeled", seed=0)


def uniform(examples):
    return np.full((len(examples), CLASSES), 1 / CLASSES)


def remembering(told_with=1.0):
    """A training that makes the labels of what it saw likely; each answer on an example is true with a probability."""

    def train(examples):
        seen = set(zip(examples.texts, examples.pairs, examples.labels.tolist(), strict=True))
        draw = np.random.default_rng(len(seen))

        def probabilities(asked):
            known = [key in seen for key in zip(asked.texts, asked.pairs, asked.labels.tolist(), strict=True)]
            answers = np.where(draw.random(len(asked)) < told_with, known, ~np.array(known))
            found = np.full((len(asked), CLASSES), 0.0)
            found[np.arange(len(asked)), asked.labels] = np.where(answers, 0.9, 0.1)
            return found

        return probabilities

    return train


@pytest.fixture
def distinct(source):
    """Canaries no two of which have the same text."""
    canaries = make_canaries(source, CLASSES, 200, "random_text", seed=0)
    return replace(canaries, texts=tuple(f"{text} {number}" for number, text in enumerate(canaries.texts)))


def test_a_training_that_remembers_all_is_bounded_as_if_no_guess_failed(base, distinct):
    found = canary_audit(remembering(), uniform, base, distinct, delta=1e-5, seed=0, guess_shares=[0.05, 0.25])
    bound = found.bound
    assert (bound.correct, bound.included_guesses, bound.canaries) == (100, 50, 200)
    assert bound.epsilon == pytest.approx(epsilon_lower_bound(200, 100, 100, 1e-5, 1 - 0.05 / 2))
    assert found.separation.auc == 1.0


def test_a_training_that_forgets_all_is_not_bounded(base, distinct):
    found = canary_audit(lambda examples: uniform, uniform, base, distinct, delta=1e-5, seed=0)
    assert (found.bound.epsilon, found.separation.auc) == (0.0, 0.5)


def test_a_training_that_answers_by_randomized_response_is_bounded_below_its_epsilon(base, source):
    canaries = make_canaries(source, CLASSES, 300, "random_text", seed=0)
    distinct = replace(canaries, texts=tuple(f"{text} {number}" for number, text in enumerate(canaries.texts)))
    told_with = 1 / (1 + math.exp(-1.5))
    bounds = [
        canary_audit(
            remembering(told_with), uniform, base, distinct, delta=0.0, seed=seed, guess_shares=[0.3]
        ).bound.epsilon
        for seed in range(20)
    ]
    assert sum(bound > 1.5 for bound in bounds) <= 3
    assert np.mean(bounds) > 0.5


def test_training_gets_the_base_and_about_half_of_the_canaries(base, distinct):
    given = []

    def train(examples):
        given.append(examples)
        return uniform

    canary_audit(train, uniform, base, distinct, delta=0.0, seed=0)
    (examples,) = given
    assert examples.texts[:30] == base.texts
    assert set(examples.texts[30:]) < set(distinct.texts)
    assert 75 <= len(examples) - 30 <= 125


def test_a_score_is_what_training_added(base, distinct):
    """A start that already knows half of the canaries, and a training that leaves it as it is: nothing is found."""
    knowing = remembering()(Examples.concatenate([base, distinct.take(np.arange(100))]))
    found = canary_audit(lambda examples: knowing, knowing, base, distinct, delta=0.0, seed=0)
    assert found.separation.auc == 0.5


@pytest.mark.parametrize("shares", [[], [0.001], [0.6]])
def test_shares_that_guess_nothing_or_too_much_are_refused(base, distinct, shares):
    with pytest.raises(DataError, match="at least one guess, at most half"):
        canary_audit(remembering(), uniform, base, distinct, delta=0.0, seed=0, guess_shares=shares)


def test_too_few_canaries_are_refused(base, distinct):
    with pytest.raises(DataError, match="3 canaries are too few"):
        canary_audit(remembering(), uniform, base, distinct.take([0, 1, 2]), delta=0.0, seed=0, guess_shares=[0.4])


@pytest.fixture
def audited(recipe_of, base, source):
    """A function (kind of canaries, privacy) -> the bound on a real training."""

    def bound(kind, privacy):
        recipe = recipe_of(300, privacy)
        canaries = make_canaries(source, CLASSES, 120, kind, seed=0)
        start = predictor(recipe.student, recipe.start)
        found = canary_audit(lambda examples: recipe.train(examples, 0), start, base, canaries, delta=1e-5, seed=0)
        return found.bound.epsilon

    return bound


@pytest.mark.parametrize("kind", ["mislabeled", "random_text"])
def test_a_training_without_privacy_is_caught(audited, kind):
    assert audited(kind, None) > 1.0


def test_a_training_that_clips_and_forgets_the_noise_is_caught(audited):
    """120 canaries bound it by steps: one guess more or less, as rounding decides, moves the bound by a tenth."""
    assert audited("random_text", ExampleDP(0.0, 1.0)) > 0.7


def test_nothing_is_claimed_of_a_training_with_much_noise(audited):
    assert audited("random_text", ExampleDP(50.0, 1.0)) == 0.0


def test_a_canary_audit_survives_json(base, distinct):
    found = canary_audit(remembering(), uniform, base, distinct, delta=1e-5, seed=0).to_json()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"bound", "separation"}
