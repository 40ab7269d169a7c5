import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data.partition import assign, natural
from fed_distill.errors import ConfigError, DataError

LABELS = np.repeat([0, 1, 2, 3], 100)


def label_shares(owners: np.ndarray) -> np.ndarray:
    counts = np.stack([np.bincount(LABELS[owners == owner], minlength=4) for owner in range(owners.max() + 1)])
    filled = counts[counts.sum(axis=1) > 0]
    return filled / filled.sum(axis=1, keepdims=True)


def test_merchants_come_in_natural_order() -> None:
    names, owners = assign(["shop-10", "shop-2", "shop-10", "a"], [0, 0, 0, 0], DataConfig())
    assert names == ("a", "shop-2", "shop-10")
    assert owners.tolist() == [2, 1, 2, 0]


def test_names_that_differ_in_zeros_only_have_a_fixed_order() -> None:
    assert sorted(["7", "007", "07"], key=natural) == ["007", "07", "7"]


def test_without_merchants_a_partitioner_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"merchant column.*data.partition"):
        assign(None, [0, 1], DataConfig())


@pytest.mark.parametrize("partition", ["dirichlet", "shard", "size"])
def test_a_partitioner_deals_every_row_the_same_way_for_a_seed(partition: str) -> None:
    config = DataConfig(partition=partition, partitions=7, seed=3)  # type: ignore[arg-type]  # the parameter is a plain str
    names, owners = assign(None, LABELS, config)
    again = assign(None, LABELS, config)[1]
    other = assign(None, LABELS, config.model_copy(update={"seed": 4}))[1]
    assert names == tuple(f"merchant-{number}" for number in range(1, 8))
    assert len(owners) == 400
    assert owners.min() == 0
    assert owners.max() == 6
    assert (owners == again).all()
    assert (owners != other).any()


def test_a_small_concentration_skews_the_labels_more() -> None:
    skew = {
        concentration: label_shares(
            assign(None, LABELS, DataConfig(partition="dirichlet", partitions=8, concentration=concentration))[1]
        )
        .max(axis=1)
        .mean()
        for concentration in (0.1, 100.0)
    }
    assert skew[100.0] < 0.4 < 0.6 < skew[0.1]


def test_a_shard_merchant_has_few_labels() -> None:
    owners = assign(None, LABELS, DataConfig(partition="shard", partitions=10))[1]
    assert np.bincount(owners).tolist() == [40] * 10
    assert (label_shares(owners) > 0).sum(axis=1).max() <= 4
    assert (label_shares(owners) > 0).sum(axis=1).mean() < 3


def test_sizes_grow_linearly_and_labels_stay_mixed() -> None:
    owners = assign(None, LABELS, DataConfig(partition="size", partitions=4))[1]
    sizes = np.bincount(owners)
    assert sizes.sum() == 400
    assert np.allclose(sizes, [40, 80, 120, 160], atol=2)
    assert label_shares(owners).max() < 0.5


def test_too_many_partitions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.partitions = 20"):
        assign(None, LABELS[:30], DataConfig(partition="shard", partitions=20))
