"""A source of offers: a title, a query for it, and codes of product, kind and family, each nested in the next.

The codes determine the grade of a (query, title) pair: same product is exact, same kind a substitute, same family a
complement, anything else irrelevant. For matching only "same product" counts, so most negatives are near misses. Pairs
are made after the split and only of a merchant's own offers, because merchants do not share their catalogues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fed_distill.config import DataConfig
from fed_distill.data.cleaning import clean
from fed_distill.data.dataset import IntArray
from fed_distill.data.examples import Examples, Ranking, Task, most_queries
from fed_distill.data.labeled import distinct, factorize, grow_keys
from fed_distill.data.partition import assign
from fed_distill.data.public_texts import PublicTexts, Texts
from fed_distill.data.tasks import MATCHING, RELEVANCE
from fed_distill.errors import DataError
from fed_distill.seeds import numpy_stream

EXACT, SUBSTITUTE, COMPLEMENT, IRRELEVANT = range(4)
_INSTEAD = np.array([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 1, 0], [3, 2, 1, 0]])
"""Grades to try, in order, if no partner has the wanted grade ``[wanted, attempt]``."""
_PROXY_MIX = (0.3, 0.3, 0.2, 0.2)
_EXACT_CANDIDATES = 10


@dataclass(frozen=True)
class PairOptions:
    """Options for making pairs and rankings of offers.

    pairs_per_row: pairs per offer: exact, substitute, then complement or irrelevant with odds that depend on the
    merchant. max_pairs: maximum number of pairs per merchant and part of the split. ranking_queries,
    ranking_candidates: size of the ranking view. grade_skew: from 0 (this fixed pattern) to 1 (shares of the grades
    vary widely between merchants).
    """

    pairs_per_row: int = 3
    max_pairs: int = 900
    ranking_queries: int = 2000
    ranking_candidates: int = 50
    grade_skew: float = 0.0


@dataclass(frozen=True)
class Catalogue:
    """Clean offers of all merchants; implements ``Source`` for relevance and matching. Create it with `build`.

    products, kinds, families: int64 ``[n]``, each nested in the next. groups: products that are split as a whole.
    titles, queries: texts of each offer. task: the classes of relevance are the grades, those of matching whether
    query and title are of the same product. domains: domain of each offer, or None.
    """

    names: tuple[str, ...]
    owners: IntArray
    groups: IntArray
    titles: tuple[str, ...]
    queries: tuple[str, ...]
    products: IntArray
    kinds: IntArray
    families: IntArray
    options: PairOptions = PairOptions()
    account: Mapping[str, Any] = field(default_factory=dict)
    task: Task = RELEVANCE
    domains: tuple[str, ...] | None = None

    @classmethod
    def build(
        cls,
        titles: Sequence[str],
        queries: Sequence[str],
        merchants: Sequence[str],
        products: Sequence[int] | IntArray,
        kinds: Sequence[int] | IntArray,
        families: Sequence[int] | IntArray,
        config: DataConfig,
        options: PairOptions,
        task: Task = RELEVANCE,
        domains: Sequence[str] | None = None,
    ) -> Self:
        """Clean the offers and assign merchants; a partitioner skews the families.

        :raises DataError: no offer is left after cleaning
        """
        named = merchants if config.partition == "merchant" else None
        cleaned = clean(titles, queries, None, named, config.max_characters)
        if not cleaned.rows or cleaned.pairs is None:
            raise DataError(f"no offer is left of {len(titles)} after cleaning: {cleaned.account['dropped']}")
        rows = np.asarray(cleaned.rows, dtype=np.int64)
        family = np.asarray(families, dtype=np.int64)[rows]
        names, owners = assign(None if named is None else [named[row] for row in cleaned.rows], family, config)
        product = np.asarray(products, dtype=np.int64)[rows]
        kind = np.asarray(kinds, dtype=np.int64)[rows]
        return cls(
            names,
            owners,
            product,
            cleaned.texts,
            cleaned.pairs,
            product,
            kind,
            family,
            options,
            cleaned.account,
            task,
            None if domains is None else tuple(domains[row] for row in cleaned.rows),
        )

    def grades(self, query_rows: IntArray, title_rows: IntArray) -> IntArray:
        """Return the grade of each pair of one offer's query and another's title, ``[pairs]``."""
        return np.where(
            self.products[query_rows] == self.products[title_rows],
            EXACT,
            np.where(
                self.kinds[query_rows] == self.kinds[title_rows],
                SUBSTITUTE,
                np.where(self.families[query_rows] == self.families[title_rows], COMPLEMENT, IRRELEVANT),
            ),
        )

    def labels(self, query_rows: IntArray, title_rows: IntArray) -> IntArray:
        """Return the class of each pair: its grade, or for matching whether both offers are of one product."""
        grades = self.grades(query_rows, title_rows)
        return (grades == EXACT).astype(np.int64) if self.task == MATCHING else grades

    def examples(self, rows: IntArray, merchant: str, part: str, seed: int) -> Examples:
        """Make at most ``max_pairs`` distinct graded pairs of the merchant's own queries and titles."""
        rng = numpy_stream(seed, "pairs", merchant, part)
        slots = self.options.pairs_per_row
        wanted = self._wanted(len(rows), merchant, seed, rng)
        query_rows = rows[self._partners(rows, wanted, rng)].ravel()
        title_rows = np.repeat(rows, slots)
        texts = [
            (self.queries[q], self.titles[t]) for q, t in zip(query_rows.tolist(), title_rows.tolist(), strict=True)
        ]
        keep = np.unique(factorize(texts), return_index=True)[1]
        if len(keep) > self.options.max_pairs:
            keep = rng.choice(keep, self.options.max_pairs, replace=False)
        keep.sort()
        return self._pairs(query_rows[keep], title_rows[keep], [merchant] * len(keep))

    def proxy(self, rows: IntArray, size: int, seed: int) -> Examples:
        """Make distinct pairs of public queries and titles, of all grades and across public merchants."""
        rng = numpy_stream(seed, "proxy")
        queries, titles = factorize([self.queries[row] for row in rows]), factorize([self.titles[row] for row in rows])
        lefts, rights = int(queries.max(initial=-1)) + 1, int(titles.max(initial=-1)) + 1
        size = min(size, lefts * rights)
        here = np.arange(len(rows))
        keys = np.zeros(0, dtype=np.int64)
        while len(keys) < size:
            wanted = rng.choice(4, size=(len(rows), 1), p=_PROXY_MIX)
            partners = self._partners(rows, wanted, rng, others=len(keys) > 0)[:, 0]
            shuffled = rng.permutation(here)
            found = distinct(np.concatenate([keys, (queries[partners] * rights + titles)[shuffled]]))
            if len(found) - len(keys) <= len(rows) // 100:
                found = grow_keys(found, lefts, rights, size, rng)
            keys = found[:size]
        first_query = np.unique(queries, return_index=True)[1]
        first_title = np.unique(titles, return_index=True)[1]
        query_rows, title_rows = rows[first_query[keys // rights]], rows[first_title[keys % rights]]
        return self._pairs(query_rows, title_rows, [self.names[owner] for owner in self.owners[title_rows]])

    def public_texts(self, rows: IntArray, held_out: IntArray) -> PublicTexts:
        """Return the queries and titles of ``rows`` that no offer of ``held_out`` has."""
        queries, titles = (Texts.of_rows(of, rows, {of[row] for row in held_out}) for of in (self.queries, self.titles))
        return PublicTexts(queries, titles)

    def true_classes(self, rows: IntArray, text_rows: IntArray, pair_rows: IntArray | None) -> IntArray:
        """Return the class of each pair of one offer's query and another's title."""
        if pair_rows is None:
            raise ValueError(f"task {self.task.name} has two texts")
        return self.labels(text_rows, pair_rows)

    def ranking(self, rows: IntArray, part: str, seed: int) -> Ranking | None:
        """Make the ranking view: queries for products with at least two offers, with candidates of all merchants.

        A query has at most 10 exact offers and about as many substitutes; complements and irrelevant offers fill up to
        ``ranking_candidates``. The titles of a query are distinct. None for matching, which is measured by macro-F1.
        """
        if self.task.gains is None:
            return None
        rng = numpy_stream(seed, "ranking", part)
        order = rows[np.lexsort((self.products[rows], self.kinds[rows], self.families[rows]))]
        blocks = [_blocks(codes[order]) for codes in (self.products, self.kinds, self.families)]
        starts = np.unique(blocks[0][0])
        stops = np.unique(blocks[0][1])
        several = [
            (start, stop)
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
            if len({self.titles[row] for row in order[start:stop]}) > 1
        ]
        query_rows: list[int] = []
        found: list[IntArray] = []
        for choice in rng.permutation(len(several))[: most_queries(part, self.options.ranking_queries)]:
            start, stop = several[choice]
            query_rows.append(int(order[rng.integers(start, stop)]))
            edges = [(int(begin[start]), int(end[start])) for begin, end in blocks]
            found.append(self._candidates(order, edges, rng))
        if not query_rows:
            return None
        lengths = [len(candidates) for candidates in found]
        title_rows = np.concatenate(found)
        examples = self._pairs(
            np.repeat(query_rows, lengths), title_rows, [self.names[owner] for owner in self.owners[title_rows]]
        )
        return Ranking(examples, np.repeat(np.arange(len(query_rows)), lengths))

    def _candidates(self, order: IntArray, edges: list[tuple[int, int]], rng: np.random.Generator) -> IntArray:
        """Return the shuffled candidates of one query.

        :param order: rows sorted by family, kind and product
        :param edges: first and last position in ``order`` of its product, kind and family
        """
        total = self.options.ranking_candidates
        chosen: dict[str, int] = {}
        inner = (0, 0)
        for grade, outer in enumerate([*edges, (0, len(order))]):
            left = total - len(chosen)
            quota = (min(_EXACT_CANDIDATES, left), left // 2, left // 2, left)[grade]
            pool = (
                np.concatenate([np.arange(outer[0], inner[0]), np.arange(inner[1], outer[1])])
                if grade
                else np.arange(*outer)
            )
            # Four times the quota, because equal titles are dropped.
            pool = rng.choice(pool, min(len(pool), 4 * quota), replace=False)
            for row in order[pool].tolist():
                if quota == 0:
                    break
                if self.titles[row] not in chosen:
                    chosen[self.titles[row]] = row
                    quota -= 1
            inner = outer
        return rng.permutation(np.fromiter(chosen.values(), dtype=np.int64))

    def _wanted(self, count: int, merchant: str, seed: int, rng: np.random.Generator) -> IntArray:
        """Draw the wanted grades ``[rows, slots]``; the odds are per merchant and equal in all parts of the split."""
        own = numpy_stream(seed, "grades", merchant)
        complement = own.uniform(0.2, 0.8)
        skewed = own.dirichlet([2.0, 2.0, 1.0, 1.0])
        wanted = np.full((count, self.options.pairs_per_row), EXACT, dtype=np.int64)
        wanted[:, 1:2] = SUBSTITUTE
        rest = wanted[:, 2:]
        # For matching, an irrelevant product would be too easy a negative.
        rest[:] = np.where((rng.random(rest.shape) < complement) | (self.task == MATCHING), COMPLEMENT, IRRELEVANT)
        if self.options.grade_skew:
            drawn = rng.choice(4, size=wanted.shape, p=skewed)
            wanted = np.where(rng.random(wanted.shape) < self.options.grade_skew, drawn, wanted)
        return wanted

    def _partners(self, rows: IntArray, wanted: IntArray, rng: np.random.Generator, others: bool = False) -> IntArray:
        """Return positions in ``rows`` of partners whose queries have the ``wanted`` grades for each offer's title.

        If no offer has the grade, the nearest one is used. An exact partner is the offer itself.

        :param rows: offers to pair ``[rows]``
        :param wanted: grades ``[rows, slots]``
        :param others: as exact partner, prefer another offer of the product
        :returns: positions ``[rows, slots]``
        """
        codes = (self.products[rows], self.kinds[rows], self.families[rows])
        order = np.lexsort(codes)
        place = np.arange(len(rows))
        # Begin and end in ``order`` of: the offer itself, its product, kind, family, all offers.
        edges = [(place, place + 1), *(_blocks(code[order]) for code in codes), (0 * place, 0 * place + len(rows))]
        starts, stops = (np.stack([edge[side] for edge in edges]) for side in (0, 1))
        lengths = stops - starts
        room = np.diff(lengths, axis=0)
        sorted_wanted = wanted[order]
        grade = np.full(sorted_wanted.shape, -1, dtype=np.int64)
        for attempt in range(4):
            candidate = _INSTEAD[sorted_wanted, attempt]
            there = (candidate == EXACT) | (room[candidate, place[:, None]] > 0)
            grade = np.where((grade < 0) & there, candidate, grade)
        at = (grade, place[:, None])
        pick = starts[1:][at] + (rng.random(grade.shape) * room[at]).astype(np.int64)
        pick += np.where(pick >= starts[:-1][at], lengths[:-1][at], 0)
        alone = (grade == EXACT) & ((room[at] == 0) | (not others))
        partners = np.empty(grade.shape, dtype=np.int64)
        partners[order] = order[np.where(alone, place[:, None], pick)]
        return partners

    def _pairs(self, query_rows: IntArray, title_rows: IntArray, merchants: Sequence[str]) -> Examples:
        return Examples(
            texts=tuple(self.queries[row] for row in query_rows.tolist()),
            pairs=tuple(self.titles[row] for row in title_rows.tolist()),
            labels=self.labels(query_rows, title_rows),
            groups=self.groups[query_rows],
            merchants=tuple(merchants),
        )


def _blocks(codes: npt.NDArray[np.int64]) -> tuple[IntArray, IntArray]:
    """Return begin and end of each element's run, for ``codes`` in which equal values are adjacent."""
    begins = np.ones(len(codes), dtype=bool)
    begins[1:] = codes[1:] != codes[:-1]
    starts = np.flatnonzero(begins)
    stops = np.append(starts, len(codes))[1:]
    return np.repeat(starts, stops - starts), np.repeat(stops, stops - starts)
