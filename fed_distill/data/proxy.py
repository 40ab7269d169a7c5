"""Select the proxy set from a pool of candidates.

Every site builds the same candidates from the experiment, from public texts and seeds only. ``coverage`` is greedy
k-center (Gonzalez 1985, *Clustering to minimize the maximum intercluster distance*; for training data Sener & Savarese
2018, arXiv:1708.00489): the next example is the one farthest from all selected ones, which gives at most twice the
minimum covering radius. ``uncertainty`` is up to the server, which selects the candidates with the highest entropy of
its teacher (uncertainty sampling; Settles 2009, *Active learning literature survey*, section 3.1).
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from fed_distill.config import DataConfig
from fed_distill.data.dataset import DATASETS, IntArray, Source
from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.data.generated import generated
from fed_distill.data.public_catalogue import catalogue_examples
from fed_distill.errors import ConfigError, DataError
from fed_distill.seeds import numpy_stream
from fed_distill.text.hashing import bag_rows

_POOL = 4
"""Number of candidates per example of the proxy set, if there are enough."""
_ROWS = 2**15
_DIMENSIONS = 64


def proxy_source(config: DataConfig) -> Source | None:
    """Return the separate dataset of the proxy set, or None."""
    if config.proxy_dataset is None:
        if config.proxy_options:
            raise ConfigError("data.proxy_options requires data.proxy_dataset: set it or remove the options")
        return None
    if config.proxy_domains:
        raise ConfigError("data.proxy_dataset and data.proxy_domains exclude each other: remove one")
    if config.proxy_from != "public":
        raise ConfigError(
            f"data.proxy_dataset and data.proxy_from = {config.proxy_from!r} exclude each other: remove one"
        )
    dataset = DATASETS.build(config.proxy_dataset, config.proxy_options)
    changes = {"dataset": config.proxy_dataset, "options": config.proxy_options, "partition": "merchant"}
    source: Source = dataset.read(config.model_copy(update=changes))
    return source


def proxy_set(
    source: Source, rows: IntArray, config: DataConfig, other: Source | None, held_out: IntArray
) -> tuple[Examples, IntArray | None]:
    """Select the proxy set: ``config.proxy_size`` examples, or all if there are fewer.

    For ``uncertainty``, all candidates are returned; see `least_sure`.

    :param source: the dataset
    :param rows: its public rows, or with ``proxy_from = "catalogue"`` all merchants' training rows
    :param config: size and selection of the proxy set
    :param other: dataset to select from instead of ``rows``, or None
    :param held_out: rows of validation and test, whose products a catalogue must not contain
    :returns: the examples without labels, and their true classes, int64 ``[proxy]``, or None where none is known
    :raises DataError: there are no examples, or ``other`` has a different number of texts per example
    :raises ConfigError: the source does not say which of its texts are public
    """
    pool_size = config.proxy_size * (1 if config.proxy_choice == "random" else _POOL)
    if config.proxy_from == "catalogue":
        pool = catalogue_examples(source, rows, held_out, config, pool_size)
    elif config.proxy_from == "generated":
        pool = _generated(source, rows, pool_size, config.seed)
    elif other is None:
        pool = source.proxy(rows, pool_size, config.seed)
    elif other.task.pair != source.task.pair:
        raise DataError(
            f"data.proxy_dataset = {config.proxy_dataset!r} gives {'pairs' if other.task.pair else 'single texts'}, "
            f"but task {source.task.name} requires the other: choose another proxy dataset"
        )
    else:
        pool = _foreign(other.proxy(np.arange(len(other.owners)), pool_size, config.seed), source, config)
    if not len(pool):
        where, remedy = _origin(config)
        raise DataError(f"the proxy set is empty, as {where} give no example: {remedy}")
    if config.proxy_choice == "coverage":
        pool = pool.take(np.sort(spread(features(pool, config.seed), min(config.proxy_size, len(pool)))))
    known = (pool.labels != UNLABELED).any() and (other is None or other.task.classes == source.task.classes)
    return pool.unlabeled(), pool.labels if known else None


def shortfall(config: DataConfig, size: int) -> str:
    """Describe a proxy set of ``size`` examples that is smaller than configured; "" if it is complete."""
    if size >= config.proxy_size:
        return ""
    where, remedy = _origin(config)
    return (
        f"{size:,} examples, all that {where} give, and not data.proxy_size = {config.proxy_size:,}; for more, {remedy}"
    )


def features(examples: Examples, seed: int) -> npt.NDArray[np.float32]:
    """Return unit vectors of examples ``[n, dimensions]``.

    Words and n-grams of each text are hashed, weighted by inverse document frequency and projected at random
    (Achlioptas 2003); the vectors of both texts of a pair are concatenated.
    """
    sides = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    return np.concatenate([_projected(side, seed, place) for place, side in enumerate(sides)], axis=1)


def spread(points: npt.NDArray[np.float32], count: int) -> IntArray:
    """Select ``count`` rows of ``points`` by greedy k-center, in order; the first row is the first centre."""
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
    """Select the ``count`` rows of ``probabilities`` with the highest entropy; ties go to the first.

    :param probabilities: class probabilities ``[n, classes]``
    :param count: number of rows
    :returns: bool ``[n]``
    """
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


def _generated(source: Source, rows: IntArray, size: int, seed: int) -> Examples:
    """Generate examples from the texts of ``rows``, with groups that ``source`` does not have."""
    if source.task.of_histories:
        raise ConfigError(
            "data.proxy_from = 'generated' makes queries and titles, no histories of clicks: for task "
            f"{source.task.name}, set it to 'catalogue' or 'public'"
        )
    made = generated(source.proxy(rows, size, seed), size, seed)
    return replace(made, groups=made.groups + int(source.groups.max()) + 1)


def _foreign(examples: Examples, source: Source, config: DataConfig) -> Examples:
    """Rename merchants and groups of another dataset, so that they differ from those of ``source``."""
    return replace(
        examples,
        groups=examples.groups + int(source.groups.max()) + 1,
        merchants=tuple(f"{config.proxy_dataset}: {name}" for name in examples.merchants),
    )


def _origin(config: DataConfig) -> tuple[str, str]:
    """Return a description of the proxy set's source, and how to enlarge it."""
    if config.proxy_dataset is not None:
        return f"the rows of dataset {config.proxy_dataset!r}", "give that more rows under data.proxy_options"
    if config.proxy_from == "catalogue":
        return "the public texts of all merchants' training products", "use data with more products"
    if config.proxy_from == "generated":
        return "the words of the public merchants' training texts", "raise data.public_share"
    if config.proxy_domains:
        return f"the public merchants' rows of {', '.join(config.proxy_domains)}", "raise data.public_share"
    return "the public merchants' training rows", "raise data.public_share"
