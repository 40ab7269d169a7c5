"""Search in a catalogue of products: nearest vectors first, then the student's head.

A query and a title have vectors of their own in two-tower and static students, so that titles are embedded once. A
search takes the products whose vectors have the largest inner product with the query's, and the head, which is the
trained score, ranks these candidates by expected gain. This module requires NumPy and no torch.

Products can be added, replaced and deleted while other threads search. A search works on a snapshot, an immutable
object that a change replaces as a whole, and takes no lock; changes exclude one another. With n products, of which d
were added since the index was built, loaded or compacted: a search of the engine ``exact`` costs O(n) and of
``usearch`` about O(log n + d); a change of m products embeds them and costs O(m), plus copies of a mask of one byte for
each product, and amortized copies of the d vectors.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from fed_distill.errors import DataError
from fed_distill.serving.graph import NeighbourGraph, require_usearch
from fed_distill.serving.nearest import Mask, Nearest, Rows, Vectors, candidates, ranked

Engine = Literal["exact", "usearch"]
CANDIDATES = 100
"""Products that the head scores."""
_CHUNK = 8192
"""Titles that are embedded at once while an index is built."""


class Product(NamedTuple):
    """A product of a catalogue: a unique id, and the title that is searched."""

    id: str
    title: str


class Hit(NamedTuple):
    """A product that was found. similarity: inner product of the unit vectors. score: the head's expected gain."""

    id: str
    title: str
    similarity: float
    score: float


class VectorStudent(Protocol):
    """A student with a vector for each text: ``Student`` of a two-tower or static model, or an exported one."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors of length 1, or 0 for a text without any feature, float32 ``[n, width]``."""

    def score_vectors(self, query_vector: Vectors, title_vectors: Vectors) -> npt.NDArray[np.float64]:
        """Return the expected gain of each title, float64 ``[n]``, by the vectors of query ``[width]`` and titles
        ``[n, width]``."""


@dataclass(frozen=True)
class ProductBlock:
    """Products in order: vectors float32 ``[n, width]``, alive bool ``[n]`` (False: deleted), ids and titles of at
    least ``n`` rows, graph of the vectors, if any."""

    vectors: Vectors
    alive: Mask
    ids: Sequence[str]
    titles: Sequence[str]
    graph: NeighbourGraph | None = None

    def candidates(self, query: Vectors, k: int) -> Rows:
        """Return rows that include the ``k`` nearest, or about these with a graph, ascending."""
        if self.graph is not None:
            return self.graph.candidates(query, k, self._mask)
        return candidates(self.vectors, query[None], k, self._mask)[0]

    @cached_property
    def _mask(self) -> Mask | None:
        return None if self.alive.all() else self.alive

    def of_alive(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield those of its ``ids`` or ``titles`` whose product is not deleted."""
        return compress(texts, self.alive.tolist())

    def product(self, row: int) -> Product:
        """Return the product in a row."""
        return Product(self.ids[row], self.titles[row])


class ProductIndex:
    """Products of a catalogue with their vectors; ``build`` makes one, ``index_files`` writes and reads it.

    >>> index = ProductIndex.build(student, [Product("17", "Anker 555 USB-C Hub")])  # doctest: +SKIP
    >>> index.search("usb c hub", 10)  # doctest: +SKIP
    [Hit(id='17', title='Anker 555 USB-C Hub', similarity=0.81, score=0.93)]
    """

    def __init__(self, student: VectorStudent, base: ProductBlock) -> None:
        """Use ``build`` or ``index_files.load_index``. base: products of distinct ids."""
        self._student = student
        self._engine: Engine = "exact" if base.graph is None else "usearch"
        self._writing = threading.RLock()
        self._rows: dict[str, int] | None = None
        """Row of each product that is not deleted, over both blocks; built at the first change."""
        self._start(base)

    @classmethod
    def build(
        cls,
        student: VectorStudent,
        products: Sequence[Product],
        engine: Engine = "exact",
        threads: int = 1,
        progress: Callable[[str, int], None] | None = None,
    ) -> Self:
        """Embed ``products`` and return their index.

        :param threads: threads that build the graph of ``usearch``
        :param progress: called with a stage, "embed" or "graph", and the number of products it has advanced by
        :raises DataError: two products have one id, a title is empty or too long, or the student has no vectors or no
            expected gain
        :raises ConfigError: usearch is not installed
        """
        _check_distinct(products)
        if engine == "usearch":
            require_usearch()
        width = student.embed([]).shape[1]
        student.score_vectors(np.zeros(width, np.float32), np.zeros((0, width), np.float32))  # raises without a score
        vectors = np.empty((len(products), width), dtype=np.float32)
        for start in range(0, len(products), _CHUNK):
            titles = [product.title for product in products[start : start + _CHUNK]]
            vectors[start : start + len(titles)] = student.embed(titles)
            if progress is not None:
                progress("embed", len(titles))
        graph = None
        if engine == "usearch":
            graph = NeighbourGraph.build(
                vectors, threads, None if progress is None else lambda count: progress("graph", count)
            )
        ids, titles = [product.id for product in products], [product.title for product in products]
        return cls(student, ProductBlock(vectors, np.ones(len(products), dtype=np.bool_), ids, titles, graph))

    def __len__(self) -> int:
        """Return the number of products."""
        return sum(int(block.alive.sum()) for block in self._snapshot)

    def __contains__(self, id: object) -> bool:
        with self._writing:
            return id in self._lookup()

    @property
    def engine(self) -> Engine:
        """How the nearest vectors are found: ``exact`` or ``usearch``."""
        return self._engine

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """Return the vectors of products, float32 ``[n, width]``; raise DataError if an id is not in the index."""
        with self._writing:
            rows = np.array([self._known(id) for id in ids], dtype=np.int64)
            return _vectors(self._snapshot, rows)

    def search(self, query: str, k: int = 10, candidates: int = CANDIDATES) -> list[Hit]:
        """Return the best ``k`` products for ``query`` by expected gain, best first.

        Of equal scores the more similar product is first, then the one that was added first. A query without any
        feature, such as one of punctuation, finds nothing.

        :param candidates: number of nearest products that the head scores; at least ``k`` are
        :raises DataError: the query is empty or too long, or ``k`` is not positive
        """
        return self.search_vector(self._student.embed([query])[0], k, candidates)

    def search_vector(self, query: Vectors, k: int = 10, candidates: int = CANDIDATES) -> list[Hit]:
        """Do as ``search`` for the vector of a query, ``[width]``."""
        if k < 1:
            raise DataError(f"k is {k}, and a search returns at least one product: set k to 1 or more")
        snapshot = self._snapshot
        found = nearest_rows(snapshot, query, max(k, candidates))
        if not len(found.rows):
            return []
        scores = self._student.score_vectors(query, _vectors(snapshot, found.rows))
        best = np.argsort(-scores, kind="stable")[:k]
        return [
            Hit(*_product(snapshot, int(found.rows[at])), float(found.similarities[at]), float(scores[at]))
            for at in best
        ]

    def snapshot(self) -> tuple[ProductBlock, ...]:
        """Return what a search would work on now, which no later change alters."""
        return self._snapshot

    def add(self, products: Sequence[Product]) -> None:
        """Add products; either all or, on an error, none.

        :raises DataError: an id is in the index already or occurs twice, or a title is empty or too long
        """
        self._put(products, new=True)

    def replace(self, products: Sequence[Product]) -> None:
        """Replace the titles of products, either all or none; each one then counts as added last.

        :raises DataError: an id is not in the index or occurs twice, or a title is empty or too long
        """
        self._put(products, new=False)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete products, either all or none; raise DataError if an id is not in the index."""
        unique = list(dict.fromkeys(ids))
        with self._writing:
            snapshot = _without(self._snapshot, [self._known(id) for id in unique])
            for id in unique:
                del self._lookup()[id]
            self._publish(snapshot)

    def compact(self, threads: int = 1) -> ProductBlock:
        """Remove deleted rows and, with ``usearch``, build the graph of all products anew; return all products.

        The engine ``exact`` does so by itself when more than half of its rows are deleted. With ``usearch`` it takes as
        long as building the index: call it in a thread when many products have been added or deleted. Searches go on
        meanwhile; changes wait.
        """
        with self._writing:
            base, added = self._snapshot
            if base.alive.all() and not len(added.vectors):
                return base
            vectors = np.concatenate([block.vectors[block.alive] for block in self._snapshot])
            graph = NeighbourGraph.build(vectors, threads) if self.engine == "usearch" else None
            ids = [id for block in self._snapshot for id in block.of_alive(block.ids)]
            titles = [title for block in self._snapshot for title in block.of_alive(block.titles)]
            compacted = ProductBlock(vectors, np.ones(len(vectors), dtype=np.bool_), ids, titles, graph)
            self._start(compacted)
            return compacted

    def _start(self, base: ProductBlock) -> None:
        """Make ``base`` the only products. Rows after it are appended to ``_buffer`` and two lists; a snapshot has
        their first rows, which do not change."""
        self._buffer = np.empty((0, base.vectors.shape[1]), dtype=np.float32)
        added = ProductBlock(self._buffer, np.empty(0, dtype=np.bool_), [], [])
        self._ids: list[str] = []
        self._titles: list[str] = []
        self._rows = None
        self._snapshot: tuple[ProductBlock, ProductBlock] = (base, replace(added, ids=self._ids, titles=self._titles))

    def _put(self, products: Sequence[Product], new: bool) -> None:
        if not products:
            return
        _check_distinct(products)
        vectors = self._student.embed([product.title for product in products])
        with self._writing:
            if new:
                present = [product.id for product in products if product.id in self._lookup()]
                if present:
                    raise DataError(f"product {present[0]!r} is in the index already: replace it")
                before = self._snapshot
            else:
                before = _without(self._snapshot, [self._known(product.id) for product in products])
            base, added = before
            first = len(added.vectors)
            alive = np.append(added.alive, np.ones(len(products), dtype=np.bool_))
            self._reserve(first + len(products))
            self._buffer[first : first + len(products)] = vectors
            self._ids.extend(product.id for product in products)
            self._titles.extend(product.title for product in products)
            grown = replace(added, vectors=self._buffer[: first + len(products)], alive=alive)
            for row, product in enumerate(products, start=len(base.vectors) + first):
                self._lookup()[product.id] = row
            self._publish((base, grown))

    def _reserve(self, rows: int) -> None:
        """Copy the vectors to a larger buffer if ``rows`` do not fit; snapshots keep the former one."""
        if rows > len(self._buffer):
            larger = np.empty((max(rows, 2 * len(self._buffer)), self._buffer.shape[1]), dtype=np.float32)
            used = len(self._snapshot[1].vectors)
            larger[:used] = self._buffer[:used]
            self._buffer = larger

    def _publish(self, snapshot: tuple[ProductBlock, ProductBlock]) -> None:
        self._snapshot = snapshot
        rows = sum(len(block.vectors) for block in snapshot)
        if self.engine == "exact" and 2 * len(self) < rows:
            self.compact()

    def _lookup(self) -> dict[str, int]:
        if self._rows is None:
            ids = chain.from_iterable(block.of_alive(block.ids) for block in self._snapshot)
            rows = np.flatnonzero(np.concatenate([block.alive for block in self._snapshot]))
            self._rows = dict(zip(ids, rows.tolist(), strict=True))
        return self._rows

    def _known(self, id: str) -> int:
        row = self._lookup().get(id)
        if row is None:
            raise DataError(f"there is no product {id!r} in the index: add it")
        return row


def nearest_rows(blocks: Sequence[ProductBlock], query: Vectors, k: int) -> Nearest:
    """Return the ``k`` nearest rows, counted over all blocks; none for a zero vector."""
    rows, vectors, first = [], [], 0
    for block in blocks if query.any() else ():
        found = block.candidates(query, k)
        rows.append(first + found)
        vectors.append(block.vectors[found])
        first += len(block.vectors)
    if not rows:
        return Nearest(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64))
    return ranked(np.concatenate(vectors), np.concatenate(rows), query, k)


def _without(blocks: tuple[ProductBlock, ProductBlock], rows: Sequence[int]) -> tuple[ProductBlock, ProductBlock]:
    """Return the blocks with ``rows``, counted over both, marked as deleted."""
    base, added = blocks
    masks = base.alive.copy(), added.alive.copy()
    for row in rows:
        if row < len(base.vectors):
            masks[0][row] = False
        else:
            masks[1][row - len(base.vectors)] = False
    return replace(base, alive=masks[0]), replace(added, alive=masks[1])


def _vectors(blocks: tuple[ProductBlock, ProductBlock], rows: Rows) -> Vectors:
    base, added = blocks
    first = len(base.vectors)
    found = np.empty((len(rows), base.vectors.shape[1]), dtype=np.float32)
    in_base = rows < first
    found[in_base] = base.vectors[rows[in_base]]
    found[~in_base] = added.vectors[rows[~in_base] - first]
    return found


def _product(blocks: tuple[ProductBlock, ProductBlock], row: int) -> Product:
    base, added = blocks
    return base.product(row) if row < len(base.vectors) else added.product(row - len(base.vectors))


def _check_distinct(products: Sequence[Product]) -> None:
    twice = [id for id, count in Counter(product.id for product in products).items() if count > 1]
    if twice:
        raise DataError(f"product {twice[0]!r} occurs twice: give each product an id of its own")
