"""Robust means of soft labels: what a minority sends moves the plain mean far, and these hardly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fed_distill.aggregation.robust_means import filtered_mean, median, renormalized, trimmed_mean


def honest(merchants, proxy=40, classes=4, seed=0, spread=0.3):
    """Merchants that agree on each example up to noise in their logits: ``[merchants, proxy, classes]``."""
    draw = torch.Generator().manual_seed(seed)
    common = 2.0 * torch.randn(proxy, classes, generator=draw)
    return (common + spread * torch.randn(merchants, proxy, classes, generator=draw)).softmax(dim=-1)


def with_byzantine(stacked, byzantine):
    """The first ``byzantine`` merchants say the least probable class is the most probable one, and so on."""
    return torch.cat([stacked[:byzantine].flip(-1), stacked[byzantine:]])


def distance(one, other):
    """Mean total variation over the proxy examples."""
    return float((one - other).abs().sum(dim=-1).mean() / 2)


def test_the_trimmed_mean_is_scipys():
    stacked = honest(11).double()
    for share in (0.0, 0.1, 0.3, 0.45):
        np.testing.assert_allclose(trimmed_mean(stacked, share).numpy(), trim_mean(stacked.numpy(), share, axis=0))


@pytest.mark.parametrize("merchants", [1, 2, 5, 8])
def test_the_median_is_numpys(merchants):
    stacked = honest(merchants).double()
    np.testing.assert_allclose(median(stacked).numpy(), np.median(stacked.numpy(), axis=0), atol=1e-12)


def test_a_share_of_merchants_is_counted_as_it_is_written():
    """0.29 * 100 is 28.999... in floating point."""
    stacked = torch.zeros(100, 1, 1)
    stacked[71:] = 1.0
    assert float(trimmed_mean(stacked, 0.29)) == 0.0


def filtered_slowly(values, drops, excess=2.0):
    """One example ``[merchants, classes]``, merchant by merchant, with numpy's singular vectors."""
    kept = list(range(len(values)))
    for _ in range(drops):
        some = values[kept]
        _, sizes, directions = np.linalg.svd(some - some.mean(axis=0))
        along = (values - some.mean(axis=0)) @ directions[0]
        deviation = np.median(np.abs(along - np.median(along)))
        if sizes[0] ** 2 / len(kept) <= excess * (1.4826 * deviation) ** 2:
            break
        kept.remove(max(kept, key=lambda place: abs(along[place])))
    return values[kept].mean(axis=0)


def test_the_filter_is_its_slow_twin_example_by_example():
    stacked = with_byzantine(honest(12), 3).double()
    expected = [filtered_slowly(stacked[:, place].numpy(), 4) for place in range(stacked.shape[1])]
    np.testing.assert_allclose(filtered_mean(stacked, 0.34).numpy(), np.stack(expected), atol=1e-12)


def test_examples_are_filtered_each_on_its_own_however_many_there_are():
    stacked = with_byzantine(honest(10, proxy=1100), 3)
    alone = torch.cat([filtered_mean(stacked[:, place : place + 1], 0.3) for place in (0, 511, 512, 1099)])
    torch.testing.assert_close(filtered_mean(stacked, 0.3)[[0, 511, 512, 1099]], alone)


def test_a_byzantine_merchant_about_few_examples_is_left_out_of_these_alone():
    """What an example-wise filter is for: everywhere else the merchant counts."""
    stacked = honest(10)
    tampered = stacked.clone()
    tampered[0, 0] = stacked[0, 0].flip(-1)
    found = filtered_mean(tampered, 0.1)
    torch.testing.assert_close(found[0], stacked[1:, 0].mean(dim=0))
    torch.testing.assert_close(found[1:], filtered_mean(stacked, 0.1)[1:])


@pytest.mark.parametrize("robust", [filtered_mean, trimmed_mean, lambda stacked, share: median(stacked)])
def test_thirty_per_cent_of_byzantine_merchants_move_the_mean_far_and_a_robust_mean_little(robust):
    stacked = honest(20)
    clean, deviating = stacked.mean(dim=0), with_byzantine(stacked, 6)
    assert distance(deviating.mean(dim=0), clean) > 0.15
    assert distance(renormalized(robust(deviating, 0.3)), clean) < 0.05


@pytest.mark.parametrize("robust", [filtered_mean, trimmed_mean])
def test_without_an_expected_byzantine_merchant_it_is_the_mean(robust):
    stacked = honest(7)
    torch.testing.assert_close(robust(stacked, 0.0), stacked.mean(dim=0))


def test_merchants_that_say_the_same_are_all_kept():
    same = honest(1).expand(6, -1, -1)
    torch.testing.assert_close(filtered_mean(same, 0.4), same[0])


@given(st.permutations(range(9)))
def test_the_order_of_merchants_does_not_matter(order):
    stacked = with_byzantine(honest(9, proxy=5), 2).double()
    for robust in (filtered_mean, trimmed_mean):
        torch.testing.assert_close(robust(stacked[list(order)], 0.25), robust(stacked, 0.25))


def test_rows_are_scaled_to_probabilities_and_uniform_where_nothing_is_shared():
    scaled = renormalized(torch.tensor([[0.2, 0.1, 0.1], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(scaled, torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]))
