"""A noised sum of text features: what a member moves in it, and what it says about other texts."""

import numpy as np
import pytest
import scipy.sparse as sparse
import torch

from fed_distill.privacy.text_sum import closeness, text_sum
from fed_distill.text.similarity import bags

OWN = sparse.csr_array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
TEXTS = sparse.csr_array([[1.0, 0.0], [0.0, 1.0]])
"""Of a typical merchant, the mean cosine with each is 0.5."""
QUERIES = ["red shoe", "red shoe", "", "电脑 包", "a a a a", "usb-c hub 7 in 1"]
TITLES = ["shoe, red, 42", "boot", "", "电脑包", "b", "hub " * 300]


def test_examples_or_the_means_of_their_groups_are_added():
    assert text_sum(OWN).tolist() == pytest.approx([1.6, 1.8])
    assert text_sum(OWN, torch.tensor([0, 0, 1])).tolist() == pytest.approx([0.8, 1.4])


def without(features, groups, left_out):
    """The sum without some rows, groups numbered again."""
    kept = np.array([row for row in range(features.shape[0]) if row not in left_out])
    numbers = torch.from_numpy(np.unique(groups[kept], return_inverse=True)[1])
    return text_sum(features[kept], numbers)


def test_a_member_moves_the_sum_by_at_most_one_and_an_example_of_a_group_by_at_most_two():
    """Whatever the texts: none, repeated, longer than what is counted."""
    features = bags(QUERIES, TITLES)
    for groups in (np.arange(6), np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, dtype=np.int64)):
        whole = text_sum(features, torch.from_numpy(groups))
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            if len(rows) < len(groups):
                assert torch.linalg.vector_norm(whole - without(features, groups, {*rows})) <= 1.0 + 1e-12
            for row in rows if len(rows) > 1 else ():
                assert torch.linalg.vector_norm(whole - without(features, groups, {row})) <= 2.0 + 1e-12


@pytest.mark.parametrize(
    ("noise", "cosines"),
    [
        (0.0, [0.75, 0.25]),
        (0.5, [0.5 + 0.75 * 0.25, 0.5 - 0.75 * 0.25]),  # noise of variance 1/64 in squared differences of 1/16
        (1.0, [0.5, 0.5]),  # as much as the differences
        (9.0, [0.5, 0.5]),
    ],
)
def test_closeness_is_the_root_of_the_mean_cosine_shrunk_by_the_share_of_noise(noise, cosines):
    found = closeness(torch.tensor([3.0, 1.0], dtype=torch.float64), 4, noise, TEXTS)
    torch.testing.assert_close(found, torch.tensor(cosines).sqrt())


def test_closeness_is_between_0_and_1_whatever_the_noise():
    far = torch.tensor([-8.0, 90.0], dtype=torch.float64)
    assert closeness(far, 4, 0.5, TEXTS).tolist() == [0.0, 1.0]
    assert closeness(far, 4, 0.5, sparse.csr_array((3, 2))).tolist() == [0.0, 0.0, 0.0]
    assert closeness(far, 4, 0.5, sparse.csr_array((0, 2))).shape == (0,)


def test_texts_like_a_merchants_own_are_closer_than_others():
    noised = text_sum(bags(["red shoe", "red boot", "shoe"] * 20))
    near, far = closeness(noised, 60, 1.0, bags(["red shoe", "usb hub"])).tolist()
    assert near > 0.5 > far
