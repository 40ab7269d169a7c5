"""The choice of the proxy set: from which data, and which of the examples that could be in it.

Every site builds the same candidates from the experiment alone, of public texts and seeds. ``coverage`` is greedy
k-center (Gonzalez 1985, *Clustering to minimize the maximum intercluster distance*; for choosing training data Sener &
Savarese 2018, arXiv:1708.00489): the next example is the one farthest from all that were chosen, so that the largest
distance left is at most twice the smallest possible. ``uncertainty`` is left to the server, which asks for those
candidates that its teacher is least sure of (uncertainty sampling by entropy; Settles 2009, *Active learning literature
survey*, section 3.1).
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from fed_distill.config import DataConfig
from fed_distill.data.dataset import DATASETS, IntArray, Source
from fed_distill.data.examples import Examples
from fed_distill.errors import ConfigError, DataError
from fed_distill.seeds import numpy_stream
from fed_distill.text.hashing import bag_rows

_POOL = 4
"""Candidates for each place in the proxy set, where there are as many."""
_ROWS = 2**15
_DIMENSIONS = 64


def proxy_source(config: DataConfig) -> Source | None:
    """The other dataset that the proxy set is drawn from, if there is one."""
    if config.proxy_dataset is None:
        if config.proxy_options:
            raise ConfigError("data.proxy_options are of data.proxy_dataset, which is not given")
        return None
    if config.proxy_domains:
        raise ConfigError("data.proxy_dataset and data.proxy_domains both say where the proxy set is from: give one")
    dataset = DATASETS.build(config.proxy_dataset, config.proxy_options)
    changes = {"dataset": config.proxy_dataset, "options": config.proxy_options, "partition": "merchant"}
    source: Source = dataset.read(config.model_copy(update=changes))
    return source


def proxy_set(source: Source, rows: IntArray, config: DataConfig, other: Source | None) -> Examples:
    """The proxy set of ``config.proxy_size`` examples, or of all that there are if these are fewer, from public
    ``rows`` of ``source`` or from all of ``other``; by ``uncertainty`` all candidates, in which `least_sure` chooses.

    Raises DataError if there are none, or if ``other`` has another number of texts an example.
    """
    pool_size = config.proxy_size * (1 if config.proxy_choice == "random" else _POOL)
    if other is None:
        pool = source.proxy(rows, pool_size, config.seed)
    elif other.task.pair != source.task.pair:
        raise DataError(
            f"data.proxy_dataset = {config.proxy_dataset!r} gives {'pairs' if other.task.pair else 'single texts'}, "
            f"which task {source.task.name} does not read"
        )
    else:
        pool = _foreign(other.proxy(np.arange(len(other.owners)), pool_size, config.seed), source, config)
    if not len(pool):
        where, remedy = _origin(config)
        raise DataError(f"the proxy set is empty, as {where} give no example: {remedy}")
    if config.proxy_choice == "coverage":
        return pool.take(np.sort(spread(features(pool, config.seed), min(config.proxy_size, len(pool)))))
    return pool


def shortfall(config: DataConfig, size: int) -> str:
    """What to tell of a proxy set that has ``size`` examples, as there are no more; empty for one that is full."""
    if size >= config.proxy_size:
        return ""
    where, remedy = _origin(config)
    return (
        f"{size:,} examples, all that {where} give, and not data.proxy_size = {config.proxy_size:,}; for more, {remedy}"
    )


def features(examples: Examples, seed: int) -> npt.NDArray[np.float32]:
    """Unit vectors of examples ``[n, dimensions]``: hashed words and n-grams of each text, weighted by inverse document
    frequency and projected at random (Achlioptas 2003); a pair has those of both texts side by side."""
    sides = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    return np.concatenate([_projected(side, seed, place) for place, side in enumerate(sides)], axis=1)


def spread(points: npt.NDArray[np.float32], count: int) -> IntArray:
    """``count`` rows of ``points`` by greedy k-center, in the order of choosing; the first row is the first centre."""
    chosen = np.zeros(count, dtype=np.int64)
    lengths = np.einsum("nd,nd->n", points, points)
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    for place in range(count):
        centre = 0 if place == 0 else int(np.argmax(nearest))
        chosen[place] = centre
        np.minimum(nearest, lengths + lengths[centre] - 2 * (points @ points[centre]), out=nearest)
        nearest[centre] = -np.inf
    return chosen


def least_sure(probabilities: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.bool_]:
    """Which ``count`` rows of class probabilities ``[n, classes]`` have the highest entropy, bool ``[n]``; of equal
    ones the first."""
    values = probabilities.astype(np.float64)
    entropy = -(values * np.log(np.where(values > 0.0, values, 1.0))).sum(axis=1)
    chosen = np.zeros(len(values), dtype=np.bool_)
    chosen[np.argsort(-entropy, kind="stable")[:count]] = True
    return chosen


def _projected(texts: tuple[str, ...], seed: int, side: int) -> npt.NDArray[np.float32]:
    hashed = bag_rows(texts, _ROWS)
    used = hashed > 0
    counts = csr_matrix(
        (np.ones(int(used.sum()), dtype=np.float32), hashed[used], np.append(0, np.cumsum(used.sum(axis=1)))),
        shape=(len(texts), _ROWS),
    )
    counts.sum_duplicates()
    frequency = np.bincount(counts.indices, minlength=_ROWS)
    weights = np.log((1 + len(texts)) / (1 + frequency)).astype(np.float32) + 1
    signs = numpy_stream(seed, "proxy features", side).choice(
        np.array([-1, 1], dtype=np.float32), size=(_ROWS, _DIMENSIONS)
    )
    vectors: npt.NDArray[np.float32] = counts @ (weights[:, None] * signs)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def _foreign(examples: Examples, source: Source, config: DataConfig) -> Examples:
    """Examples of another dataset, so marked that none is taken for a merchant's or a group's of ``source``."""
    return replace(
        examples,
        groups=examples.groups + int(source.groups.max()) + 1,
        merchants=tuple(f"{config.proxy_dataset}: {name}" for name in examples.merchants),
    )


def _origin(config: DataConfig) -> tuple[str, str]:
    """What the proxy set is drawn from, and what would make it larger."""
    if config.proxy_dataset is not None:
        return f"the rows of dataset {config.proxy_dataset!r}", "give that more rows under data.proxy_options"
    if config.proxy_domains:
        return f"the public merchants' rows of {', '.join(config.proxy_domains)}", "raise data.public_share"
    return "the public merchants' training rows", "raise data.public_share"
