"""Draw the proxy set from the marketplace's public catalogue (``data.proxy_from = "catalogue"``).

Threat model. On a marketplace anybody can see what each merchant offers: the titles of the products. Queries must be
such as may be published, and not single customers' own. Private is what merchants and customers did: grades, clicks
and orders, and which product an offer is. So the catalogue is the texts of *all* merchants' training products, and the
proxy set reveals the merchants' assortment, which is public already. Never in it: a label, grade or product code, the
rows that join a query with a title, and the products of validation and test. Where titles are not public, for example
before a launch or with negotiated offers, do not use it.

Of a catalogue *file*, texts are left out that the table has outside the training rows of all participants: those of
validation, test, a test domain and cold-start merchants. With merchants elsewhere the server has its own rows only, and
texts that are held out at sites can be in the proxy set.

A proxy set of single texts is the distinct texts. A pair is made of a query and a title, from their letters alone:

- **Lexical neighbours**: the titles with the largest cosine to the query, over hashed words and character n-grams
  weighted by inverse document frequency (Salton and Buckley 1988). Near ranks are drawn more often than far ones, so
  that true matches, near misses and easier candidates all occur; candidates of a lexical retriever are the usual hard
  negatives (Karpukhin et al. 2020, arXiv:2004.04906, section 3.2).
- **Random pairs**: each title once before any is used twice, so that all words of the catalogue occur.

Every query that is drawn has several candidates, as ranking losses require. Histories of clicks are private: they are
imitated by a title, its neighbours and random titles.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from fed_distill.config import DataConfig
from fed_distill.data.dataset import IntArray, Source
from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.data.labeled import distinct, grow_keys
from fed_distill.data.public_texts import HasPublicTexts, Texts
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.errors import ConfigError
from fed_distill.seeds import numpy_stream
from fed_distill.text.hashing import bag_rows

_ROWS = 2**18
_BATCH = 128
"""Queries whose similarities to all titles are in memory at once."""
_FREQUENT = 0.1
"""Features in more than this share of the titles, and in more than `_FEW` titles, have little weight and the largest
cost: they are left out."""
_FEW = 1000
_RANKS = 64
"""Neighbours among which candidates are drawn, unless more candidates of a query are required."""
_FALL = 1.5
"""A rank r is drawn with a density of r^-1.5. On PriceRunner, a quarter of the pairs is then exact and a third each
is a substitute and irrelevant, close to a proxy set of the public merchants, whose pairs are drawn by their grades."""
_CANDIDATES = 4
"""Candidates of each drawn query, unless the size requires more."""
_CLICKS = 4
"""Titles in a history."""
_ROUNDS = 20
"""Attempts to find enough distinct histories."""


def catalogue_examples(source: Source, rows: IntArray, held_out: IntArray, config: DataConfig, size: int) -> Examples:
    """Make at most ``size`` distinct examples of public texts; labels are the true classes, where known.

    :param source: the dataset
    :param rows: training rows of all merchants
    :param held_out: rows of validation and test
    :param config: the seed and the share of lexical neighbours
    :param size: maximum number of examples
    :raises ConfigError: the dataset does not say which texts are public, or remote merchants require a catalogue file
    """
    if not isinstance(source, HasPublicTexts):
        raise ConfigError(
            f"data.proxy_from = 'catalogue': dataset {config.dataset!r} does not say which of its texts are public; "
            "implement `public_texts` and `true_classes` (data/public_texts.py), or use proxy_from = 'public'"
        )
    public = source.public_texts(rows, held_out)
    if config.clients == "elsewhere" and public.file is None:
        raise ConfigError(
            "data.proxy_from = 'catalogue' with data.clients = 'elsewhere' requires the server's own catalogue file, "
            "as the merchants' products are at their sites: use dataset = 'table' with data.options.catalogue"
        )
    rng = numpy_stream(config.seed, "catalogue")
    if public.texts is None:
        if public.pairs is None:
            raise ValueError("a source without public first texts must have public second texts")
        return _of_histories(source, public.pairs, *_histories(public.pairs.values, size, config, rng))
    if public.pairs is None:
        left, right = rng.permutation(len(public.texts.values))[:size], None
    else:
        left, right = _pairs(public.texts.values, public.pairs.values, size, config, rng)
    return _examples(source, rows, public.texts, public.pairs, left, right)


def _pairs(
    queries: tuple[str, ...], titles: tuple[str, ...], size: int, config: DataConfig, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Draw ``size`` distinct pairs, or all if there are fewer: positions in ``queries`` and in ``titles``."""
    size = min(size, len(queries) * len(titles))
    if not size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    candidates = min(max(_CANDIDATES, -(-size // len(queries))), len(titles))
    asked = rng.permutation(len(queries))[: -(-size // candidates)]
    ranks = min(len(titles), max(_RANKS, 2 * candidates))
    ranked = neighbours(tuple(queries[at] for at in asked), titles, ranks)
    near = np.take_along_axis(ranked, _drawn_ranks(len(asked), ranks, candidates, rng), axis=1)
    count = np.floor(config.proxy_neighbours * candidates + rng.random(len(asked)))
    random = np.arange(candidates) >= count[:, None]
    near[random] = _each_in_turn(len(titles), int(random.sum()), rng)
    keys = distinct((np.arange(len(asked))[:, None] * len(titles) + near).ravel())
    keys = rng.permutation(grow_keys(keys, len(asked), len(titles), size, rng))
    return asked[keys // len(titles)], keys % len(titles)


def _drawn_ranks(queries: int, ranks: int, count: int, rng: np.random.Generator) -> IntArray:
    """Draw ``count`` of the ranks 0, 1, ... without replacement with weights (1 + rank)^-1.5, ``[queries, count]``.

    The largest of log weights plus Gumbel noise are such a draw (Efraimidis and Spirakis 2006).
    """
    noisy = rng.gumbel(size=(queries, ranks)) - _FALL * np.log(np.arange(1, ranks + 1))
    return np.argsort(-noisy, axis=1, kind="stable")[:, :count]


def _each_in_turn(population: int, count: int, rng: np.random.Generator) -> IntArray:
    """Draw ``count`` of ``0 .. population-1`` at random, each once before any is drawn again."""
    rounds = [rng.permutation(population) for _ in range(-(-count // population))]
    return np.concatenate([np.zeros(0, dtype=np.int64), *rounds])[:count]


def _histories(
    titles: tuple[str, ...], size: int, config: DataConfig, rng: np.random.Generator
) -> tuple[list[str], IntArray]:
    """Imitate ``size`` distinct examples of clicks: histories, and positions of the candidates in ``titles``.

    A history is a title, two of its neighbours and a random title, in random order. Its candidates are neighbours of
    the same title, with the probability ``proxy_neighbours``, or random titles.
    """
    found: dict[tuple[str, int], None] = {}
    for _ in range(_ROUNDS if titles else 0):
        missing = size - len(found)
        if missing <= 0:
            break
        anchors = _each_in_turn(len(titles), -(-missing // _CANDIDATES), rng)
        ranks = min(len(titles) - 1, _RANKS)
        ranked = _others(neighbours(tuple(titles[at] for at in anchors), titles, ranks + 1), anchors)
        drawn = np.take_along_axis(ranked, _drawn_ranks(len(anchors), ranks, min(2 + _CANDIDATES, ranks), rng), axis=1)
        clicks = np.concatenate(
            [anchors[:, None], drawn[:, :2], rng.integers(len(titles), size=(len(anchors), _CLICKS))], axis=1
        )[:, :_CLICKS]
        clicks = rng.permuted(clicks, axis=1)
        shown = rng.integers(len(titles), size=(len(anchors), _CANDIDATES))
        near = drawn[:, 2:]
        replaced = rng.random(near.shape) < config.proxy_neighbours
        shown[:, : near.shape[1]][replaced] = near[replaced]
        for history, candidates in zip(clicks.tolist(), shown.tolist(), strict=True):
            text = HISTORY_SEPARATOR.join(titles[at] for at in history)
            found.update(dict.fromkeys((text, candidate) for candidate in candidates))
    listed = list(found)
    keys = [listed[at] for at in rng.permutation(min(size, len(listed)))] if listed else []
    return [text for text, _ in keys], np.fromiter((at for _, at in keys), dtype=np.int64, count=len(keys))


def _others(ranked: IntArray, anchors: IntArray) -> IntArray:
    """Remove from each row of ``ranked``, ``[n, ranks + 1]``, its anchor, or the last if that is not there."""
    removed = ranked == anchors[:, None]
    removed[~removed.any(axis=1), -1] = True
    others: IntArray = ranked[~removed].reshape(len(ranked), ranked.shape[1] - 1)
    return others


def _examples(
    source: HasPublicTexts, rows: IntArray, texts: Texts, pairs: Texts | None, left: IntArray, right: IntArray | None
) -> Examples:
    text_rows = texts.rows[left]
    pair_rows = None if pairs is None or right is None else pairs.rows[right]
    return Examples(
        texts=tuple(texts.values[at] for at in left.tolist()),
        pairs=None if pairs is None or right is None else tuple(pairs.values[at] for at in right.tolist()),
        labels=source.true_classes(rows, text_rows, pair_rows),
        groups=_groups(source, text_rows, left),
        merchants=_merchants(source, text_rows if pair_rows is None else pair_rows),
    )


def _of_histories(source: Source, titles: Texts, histories: list[str], shown: IntArray) -> Examples:
    """Return the examples; nobody knows whether an imitated customer would click."""
    return Examples(
        texts=tuple(histories),
        pairs=tuple(titles.values[at] for at in shown.tolist()),
        labels=np.full(len(shown), UNLABELED, dtype=np.int64),
        groups=_groups(source, titles.rows[shown], shown),
        merchants=_merchants(source, titles.rows[shown]),
    )


def _groups(source: Source, rows: IntArray, numbers: IntArray) -> IntArray:
    """Return the group of each row; a text of no row forms a group of its own."""
    new = int(source.groups.max(initial=-1)) + 1 + numbers
    return np.where(rows >= 0, source.groups[rows], new) if len(source.groups) else new


def _merchants(source: Source, rows: IntArray) -> tuple[str, ...]:
    return tuple("" if row < 0 else source.names[source.owners[row]] for row in rows.tolist())


def neighbours(queries: tuple[str, ...], titles: tuple[str, ...], count: int) -> IntArray:
    """Return the titles that are most similar to each query, int64 ``[queries, count]``, nearest first.

    The similarity is the cosine of TF-IDF vectors of hashed words and character n-grams; ties are in order of the
    titles. Memory is bounded by a batch of queries.
    """
    count = min(count, len(titles))
    counts = _counts(titles)
    frequency = np.bincount(counts.indices, minlength=_ROWS)
    weights = np.log((1 + len(titles)) / (1 + frequency)) + 1.0
    weights[frequency > max(_FEW, _FREQUENT * len(titles))] = 0.0
    by_title = _unit(counts, weights).T.tocsr()
    found = np.zeros((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), _BATCH):
        batch = _unit(_counts(queries[start : start + _BATCH]), weights)
        similarity = (batch @ by_title).toarray()
        # Ties must not depend on the selection algorithm: an earlier title counts as slightly more similar.
        similarity -= np.arange(len(titles), dtype=np.float64) * 1e-12
        top = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similarity, top, axis=1), axis=1, kind="stable")
        found[start : start + _BATCH] = np.take_along_axis(top, order, axis=1)
    return found


def _counts(texts: tuple[str, ...]) -> csr_matrix:
    hashed = bag_rows(texts, _ROWS)
    used = hashed > 0
    counts = csr_matrix(
        (np.ones(int(used.sum())), hashed[used], np.append(0, np.cumsum(used.sum(axis=1)))), shape=(len(texts), _ROWS)
    )
    counts.sum_duplicates()
    return counts


def _unit(counts: csr_matrix, weights: npt.NDArray[np.float64]) -> csr_matrix:
    weighted = counts.copy()
    weighted.data = (1.0 + np.log(weighted.data)) * weights[weighted.indices]
    weighted.eliminate_zeros()
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    weighted.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(weighted.indptr))
    return weighted
