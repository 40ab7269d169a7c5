"""What is attacked: predictions, and examples held back at random within each merchant."""

import numpy as np
import pytest
import torch

from fed_distill.audit.victim import Victim, hold_back, predictor, trained_without
from fed_distill.data.examples import Examples
from fed_distill.errors import DataError


@pytest.fixture
def shops(make_examples):
    return Examples.concatenate([make_examples(20, "north", 1), make_examples(7, "south", 2), make_examples(1, "tiny")])


def test_a_predictor_gives_the_probabilities_of_its_own_weights(student, make_examples):
    examples = make_examples(9)
    start = {key: value.clone() for key, value in student.state_dict().items()}
    biased = {**start, "head.2.bias": start["head.2.bias"] + torch.tensor([0.0, 0.0, 3.0])}
    before, after = predictor(student, start), predictor(student, biased)
    after(examples)
    student.load_state_dict(start)
    with torch.no_grad():
        logits = student(student.encode(examples.texts, examples.pairs)).logits.double()
    np.testing.assert_allclose(before(examples), torch.softmax(logits, dim=-1), atol=1e-6)
    expected = torch.softmax(logits + torch.tensor([0.0, 0.0, 3.0]), dim=-1)
    np.testing.assert_allclose(after(examples), expected, atol=1e-6)


def test_holding_back_takes_the_share_of_each_merchant_and_leaves_it_one_example(shops):
    kept, held = hold_back(shops, 0.3, seed=0)
    assert [held.merchants.count(name) for name in ("north", "south", "tiny")] == [6, 2, 0]
    assert [kept.merchants.count(name) for name in ("north", "south", "tiny")] == [14, 5, 1]


def test_every_example_is_kept_or_held_back(shops):
    kept, held = hold_back(shops, 0.5, seed=0)
    everything = sorted(zip(shops.texts, shops.pairs, shops.merchants, strict=True))
    parts = [*zip(kept.texts, kept.pairs, kept.merchants, strict=True)]
    parts += zip(held.texts, held.pairs, held.merchants, strict=True)
    assert sorted(parts) == everything


def test_what_a_merchant_holds_back_does_not_depend_on_the_others(shops, make_examples):
    alone = hold_back(make_examples(20, "north", 1), 0.3, seed=0)[1]
    together = hold_back(shops, 0.3, seed=0)[1]
    assert together.texts[:6] == alone.texts
    assert hold_back(shops, 0.3, seed=1)[1].texts[:6] != alone.texts


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_holding_back_nothing_or_all_is_refused(shops, share):
    with pytest.raises(DataError, match=f"not {share}"):
        hold_back(shops, share, seed=0)


def test_candidates_are_the_members_and_then_the_nonmembers(student, make_examples):
    known = predictor(student, student.state_dict())
    members, others = make_examples(6), make_examples(4, seed=1)
    assert Victim(known, known, members, others, by_group=False).candidates.texts == members.texts + others.texts


def test_a_victim_made_for_the_audit_is_trained_on_its_members_alone(shops, student):
    seen = []

    def train(examples):
        seen.append(examples)
        return predictor(student, student.state_dict())

    victim = trained_without(train, predictor(student, student.state_dict()), shops, seed=3, share=0.25)
    assert [part.texts for part in seen] == [victim.members.texts]
    assert victim.nonmembers.texts == hold_back(shops, 0.25, seed=3)[1].texts
    assert not victim.by_group
