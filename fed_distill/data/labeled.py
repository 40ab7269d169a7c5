"""A source of labelled examples: tables, custom datasets and all tasks with one text."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from fed_distill.config import DataConfig
from fed_distill.data.cleaning import clean
from fed_distill.data.dataset import IntArray
from fed_distill.data.examples import UNLABELED, Examples, Ranking, Task, most_queries
from fed_distill.data.partition import assign
from fed_distill.data.public_texts import PublicTexts, Texts, comparable
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.errors import ConfigError, DataError
from fed_distill.seeds import numpy_stream


@dataclass(frozen=True)
class CatalogueFile:
    """Clean public texts of the server's own catalogue; which of them were in one row is not kept.

    texts: first texts such as queries, or None for recommend. pairs: second texts, or None for tasks with one text.
    """

    path: Path | str
    texts: tuple[str, ...] | None
    pairs: tuple[str, ...] | None


@dataclass(frozen=True)
class LabeledRows:
    """Clean labelled rows; implements ``Source``. Create it with `build`.

    ranking_queries: maximum number of queries in the ranking view, for tasks with gains; a query needs candidates of at
    least two grades. domains: domain of each row ``[n]``, or None. group_names: original group keys, by number.
    published: which texts are public, for data.proxy_from = "catalogue": all, those of a catalogue file, or none.
    """

    task: Task
    names: tuple[str, ...]
    owners: IntArray
    groups: IntArray
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: IntArray
    account: Mapping[str, Any] = field(default_factory=dict)
    ranking_queries: int = 2000
    domains: tuple[str, ...] | None = None
    group_names: tuple[Hashable, ...] = ()
    published: bool | CatalogueFile = False

    @classmethod
    def build(
        cls,
        task: Task,
        texts: Sequence[str | None],
        labels: Sequence[int] | IntArray,
        config: DataConfig,
        pairs: Sequence[str | None] | None = None,
        merchants: Sequence[str] | None = None,
        groups: Sequence[Hashable] | None = None,
        titles: int = 1,
        ranking_queries: int = 2000,
        domains: Sequence[str] | None = None,
        public_texts: bool | CatalogueFile = False,
    ) -> Self:
        """Clean the rows and assign merchants.

        :param labels: class indices, or `UNLABELED`
        :param groups: key of each row's group, which is not split between training and test; by default rows with
            the same query (relevance), second text (other tasks with two texts) or text form a group
        :param titles: maximum number of titles in a first text; of histories, ``max_characters`` is of a title
        :param ranking_queries: maximum number of queries in the ranking view
        :param domains: domain of each row, if the data have domains
        :param public_texts: declare that all merchants' texts (for recommend: second texts, as histories are private)
            are public on the marketplace, or give its catalogue file, for data.proxy_from = "catalogue"
        :raises DataError: no row is left, or ``pairs`` does not match the task
        """
        if task.pair != (pairs is not None):
            raise DataError(f"task {task.name} requires {'two texts' if task.pair else 'one text'} per example")
        named = merchants if config.partition == "merchant" else None
        longest = titles * config.max_characters + (titles - 1) * len(HISTORY_SEPARATOR)
        units = groups if task.of_campaigns else None
        cleaned = clean(texts, pairs, [int(label) for label in labels], named, longest, units)
        if not cleaned.rows:
            raise DataError(f"no row is left of {len(texts)}: {_reasons(cleaned.account)}")
        kept = np.asarray(labels, dtype=np.int64)[list(cleaned.rows)]
        names, owners = assign(None if named is None else [named[row] for row in cleaned.rows], kept, config)
        if groups is None:
            keys: Sequence[Hashable] = (
                cleaned.pairs if cleaned.pairs is not None and task.gains is None else cleaned.texts
            )
        else:
            keys = [groups[row] for row in cleaned.rows]
        return cls(
            task,
            names,
            owners,
            factorize(keys),
            cleaned.texts,
            cleaned.pairs,
            kept,
            cleaned.account,
            ranking_queries,
            None if domains is None else tuple(domains[row] for row in cleaned.rows),
            tuple(dict.fromkeys(keys)),
            public_texts,
        )

    def left_out(self, dropped: Mapping[str, int]) -> Self:
        """Return a copy whose account also counts rows that were left out before cleaning, by reason."""
        reasons = {**self.account["dropped"], **dropped}
        read = self.account["rows_read"] + sum(dropped.values())
        return replace(self, account={**self.account, "rows_read": read, "dropped": reasons})

    def examples(self, rows: IntArray, merchant: str, part: str, seed: int) -> Examples:
        """Return the rows unchanged."""
        return Examples(
            texts=tuple(self.texts[row] for row in rows),
            pairs=None if self.pairs is None else tuple(self.pairs[row] for row in rows),
            labels=self.labels[rows],
            groups=self.groups[rows],
            merchants=tuple(self.names[owner] for owner in self.owners[rows]),
        )

    def proxy(self, rows: IntArray, size: int, seed: int) -> Examples:
        """Return public rows; for tasks with pairs, add random pairs if there are too few."""
        rng = numpy_stream(seed, "proxy")
        mixed = rng.permutation(rows)
        lefts = [self.texts[row] for row in mixed]
        rights = lefts if self.pairs is None else [self.pairs[row] for row in mixed]
        left, right = factorize(lefts), factorize(rights)
        first_left, first_right = np.unique(left, return_index=True)[1], np.unique(right, return_index=True)[1]
        keys = distinct(left * len(first_right) + right)
        if size > len(keys) and self.pairs is not None:
            keys = grow_keys(keys, len(first_left), len(first_right), size, rng)
        left_at = first_left[keys[:size] // len(first_right)]
        right_at = first_right[keys[:size] % len(first_right)]
        return replace(
            self.examples(mixed[left_at], "", "train", seed),
            pairs=None if self.pairs is None else tuple(rights[at] for at in right_at),
            labels=self.true_classes(rows, mixed[left_at], None if self.pairs is None else mixed[right_at]),
        )

    def public_texts(self, rows: IntArray, held_out: IntArray) -> PublicTexts:
        """Return the declared texts of ``rows``, or the catalogue file's.

        A text that is in ``held_out`` as well is excluded, except one of two texts that the split does not keep apart,
        such as a product that is judged for several queries. Of a catalogue file, a text is excluded that occurs in
        other rows than ``rows`` (those of held-out merchants and domains too) and not in these, whatever its case and
        punctuation.

        :raises ConfigError: nothing was declared
        """
        if not self.published:
            raise ConfigError(
                "data.proxy_from = 'catalogue': the dataset has not declared its texts public; if anybody can see the "
                "texts of all merchants, set LabeledRows.build(..., public_texts=True), otherwise use "
                "proxy_from = 'public'"
            )
        private_text = self.task.of_histories
        if isinstance(self.published, CatalogueFile):
            other = np.setdiff1d(np.arange(len(self.texts)), rows)
            excluded = self._comparable(other) - self._comparable(rows)
            first, second = (
                None if of is None or given is None else Texts.of_file(given, of, rows, excluded)
                for of, given in ((self.texts, self.published.texts), (self.pairs, self.published.pairs))
            )
            return PublicTexts(None if private_text else first, second, self.published.path)
        if self.pairs is None:
            return PublicTexts(Texts.of_rows(self.texts, rows, {self.texts[row] for row in held_out}), None)
        return PublicTexts(None if private_text else Texts.of_rows(self.texts, rows), Texts.of_rows(self.pairs, rows))

    def _comparable(self, rows: IntArray) -> set[str]:
        """Return all texts of ``rows``, of both columns and of each click in a history, as ``comparable`` texts."""
        columns = [self.texts] if self.pairs is None else [self.texts, self.pairs]
        texts = {column[row] for column in columns for row in rows.tolist()}
        if self.task.of_histories:
            texts = {title for text in texts for title in text.split(HISTORY_SEPARATOR)}
        return {comparable(text) for text in texts}

    def true_classes(self, rows: IntArray, text_rows: IntArray, pair_rows: IntArray | None) -> IntArray:
        """Return the most frequent label in ``rows`` of each text or pair; of several, the first class."""
        keys = factorize(self.texts)
        asked = np.where(text_rows >= 0, keys[text_rows], -1)
        if self.pairs is not None and pair_rows is not None:
            seconds = factorize(self.pairs)
            keys = keys * len(seconds) + seconds
            asked = np.where((asked >= 0) & (pair_rows >= 0), asked * len(seconds) + seconds[pair_rows], -1)
        rows = rows[self.labels[rows] != UNLABELED]
        votes, counts = np.unique(np.stack([keys[rows], self.labels[rows]]), axis=1, return_counts=True)
        best = np.lexsort((votes[1], -counts, votes[0]))
        known, first = np.unique(votes[0][best], return_index=True)
        if not len(known):
            return np.full(len(asked), UNLABELED, dtype=np.int64)
        place = np.searchsorted(known, asked).clip(max=len(known) - 1)
        return np.where(known[place] == asked, votes[1][best][first][place], UNLABELED)

    def ranking(self, rows: IntArray, part: str, seed: int) -> Ranking | None:
        """Return queries (distinct texts) with candidates of at least two grades."""
        if self.task.gains is None or self.pairs is None:
            return None
        by_query: dict[str, dict[str, int]] = {}
        for row in rows.tolist():
            by_query.setdefault(self.texts[row], {}).setdefault(self.pairs[row], row)
        queries = [
            list(found.values())
            for found in by_query.values()
            if len({int(self.labels[row]) for row in found.values()}) > 1
        ]
        if not queries:
            return None
        rng = numpy_stream(seed, "ranking", part)
        chosen = [
            rng.permutation(queries[at])
            for at in rng.permutation(len(queries))[: most_queries(part, self.ranking_queries)]
        ]
        index = np.concatenate(chosen)
        return Ranking(
            self.examples(index, "", part, seed), np.repeat(np.arange(len(chosen)), [len(found) for found in chosen])
        )


def factorize(values: Sequence[Hashable]) -> IntArray:
    """Number distinct values from 0 in order of first occurrence."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), dtype=np.int64, count=len(values))


def grow_keys(keys: IntArray, lefts: int, rights: int, size: int, rng: np.random.Generator) -> IntArray:
    """Extend the distinct ``keys`` by random pairs ``left * rights + right`` up to ``size``, if there are so many."""
    possible = lefts * rights
    size = min(size, possible)
    while len(keys) < size:
        if possible <= 4 * size:
            fresh = rng.permutation(possible)
        else:
            fresh = rng.integers(possible, size=2 * (size - len(keys)))
        keys = distinct(np.concatenate([keys, fresh]))
    return keys[:size]


def distinct(values: IntArray) -> IntArray:
    """Return distinct values in order of first occurrence."""
    _, first = np.unique(values, return_index=True)
    return values[np.sort(first)]


def _reasons(account: Mapping[str, Any]) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in account["dropped"].items() if count)
    return f"dropped {dropped}" if dropped else "the data are empty"
