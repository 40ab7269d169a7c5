"""Assign rows to merchants: by the merchant column, or by a partitioner of flwr-datasets.

Dirichlet partitions skew the labels (Hsu et al. 2019, arXiv:1909.06335), shards give each merchant two runs of equal
labels (McMahan et al. 2017, section 3), and sizes give equal label shares and unequal sizes.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fed_distill.config import DataConfig
from fed_distill.data.dataset import IntArray
from fed_distill.errors import ConfigError, DataError
from fed_distill.seeds import derive, numpy_stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

SHARDS_PER_MERCHANT = 2


def assign(
    merchants: Sequence[str] | None, labels: Sequence[int] | IntArray, config: DataConfig
) -> tuple[tuple[str, ...], IntArray]:
    """Assign each row to a merchant.

    :param merchants: merchant of each row, or None
    :param labels: class indices that a partitioner skews ``[rows]``
    :param config: names the partitioner
    :returns: merchant names in natural order, and the merchant index of each row ``[rows]``; without names, all rows
        are the server's if the clients are elsewhere
    :raises DataError: ``config.partition`` is ``merchant`` and ``merchants`` is None, though the clients are here
    """
    if config.partition != "merchant":
        return _partition(np.asarray(labels, dtype=np.int64), config)
    if merchants is None and config.clients == "elsewhere":
        return ("server",), np.zeros(len(labels), dtype=np.int64)
    if merchants is None:
        raise DataError(
            "the data have no merchant column: name it in the dataset's options, "
            "or set data.partition to dirichlet, shard or size"
        )
    names = tuple(sorted(set(merchants), key=natural))
    index = {name: position for position, name in enumerate(names)}
    return names, np.fromiter((index[name] for name in merchants), dtype=np.int64, count=len(merchants))


def natural(name: str) -> tuple[Any, ...]:
    """Return a sort key that places ``merchant-2`` before ``merchant-10``."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)), name


def _partition(labels: IntArray, config: DataConfig) -> tuple[tuple[str, ...], IntArray]:
    if len(labels) < config.partitions * SHARDS_PER_MERCHANT:
        raise ConfigError(f"data.partitions = {config.partitions} exceeds the number of rows, {len(labels)}; lower it")
    from datasets import Dataset  # slow to import, and most data have a merchant column

    partitioner = _partitioner(config, derive(config.seed, "partition") % 2**31)
    shuffled = numpy_stream(config.seed, "partition").permutation(len(labels))
    partitioner.dataset = Dataset.from_dict({"label": labels[shuffled], "row": shuffled})
    owners = np.full(len(labels), -1, dtype=np.int64)
    try:
        for part in range(config.partitions):
            owners[np.asarray(partitioner.load_partition(part)["row"], dtype=np.int64)] = part
    except ValueError as error:
        raise ConfigError(
            f"data.partition = {config.partition!r} cannot divide {len(labels)} rows into {config.partitions} parts: "
            f"{error}. Lower data.partitions or raise data.concentration"
        ) from error
    left_over = np.flatnonzero(owners < 0)  # shards have equal sizes, so some rows are left
    owners[left_over] = np.arange(len(left_over)) % config.partitions
    return tuple(f"merchant-{part + 1}" for part in range(config.partitions)), owners


def _partitioner(config: DataConfig, seed: int) -> "Partitioner":
    from flwr_datasets.partitioner import DirichletPartitioner, LinearPartitioner, ShardPartitioner

    if config.partition == "dirichlet":
        return DirichletPartitioner(
            num_partitions=config.partitions,
            partition_by="label",
            alpha=config.concentration,
            min_partition_size=0,
            seed=seed,
        )
    if config.partition == "shard":
        return ShardPartitioner(
            num_partitions=config.partitions,
            partition_by="label",
            num_shards_per_partition=SHARDS_PER_MERCHANT,
            seed=seed,
        )
    return LinearPartitioner(num_partitions=config.partitions)
