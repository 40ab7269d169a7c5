"""Data of a run whose score selects settings: nothing in them is a test example."""

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load

SMALL = {"cold_merchants": 0.2, "options": {"merchants": 10, "rows": 60, "ranking_candidates": 10}}


@pytest.fixture(scope="module")
def both():
    return load(DataConfig(**SMALL)), load(DataConfig(**SMALL, scored_on="validation"))


def groups(*parts):
    return {int(group) for part in parts for group in part.groups}


def test_no_group_of_the_test_is_in_any_part(both):
    whole, scored = both
    tests = groups(whole.test, whole.ranking_test.examples, *(one.test for one in whole.merchants.values()))
    assert tests and whole.cold is not None
    parts = [scored.test, scored.valid, scored.ranking_test.examples, scored.ranking_valid.examples]
    for merchant in scored.merchants.values():
        parts += [merchant.test, merchant.valid]
    assert not groups(*parts) & tests
    assert scored.cold is None


def test_scores_are_of_the_validation_examples(both):
    whole, scored = both
    assert scored.test is scored.valid and scored.ranking_test is scored.ranking_valid
    assert scored.test.texts == whole.valid.texts
    assert "validation" in scored.account["scored_on"]


def test_training_is_unchanged(both):
    whole, scored = both
    for ours, theirs in ((whole.public, scored.public), (whole.proxy, scored.proxy)):
        assert ours.texts == theirs.texts and np.array_equal(ours.labels, theirs.labels)
    assert {name: one.train.texts for name, one in whole.merchants.items()} == {
        name: one.train.texts for name, one in scored.merchants.items()
    }


def test_real_sites_which_read_their_own_test_examples_are_refused():
    with pytest.raises(ValueError, match="cannot drop the test examples of real sites"):
        DataConfig(scored_on="validation", clients="elsewhere")
