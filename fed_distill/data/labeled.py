"""A source of labelled examples: tables, custom datasets and all tasks with one text."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from fed_distill.config import DataConfig
from fed_distill.data.cleaning import clean
from fed_distill.data.dataset import IntArray
from fed_distill.data.examples import Examples, Ranking, Task
from fed_distill.data.partition import assign
from fed_distill.errors import DataError
from fed_distill.seeds import numpy_stream


@dataclass(frozen=True)
class LabeledRows:
    """Clean labelled rows; implements ``Source``. Create it with `build`.

    ranking_queries: maximum number of queries in the ranking view, for tasks with gains; a query needs candidates of at
    least two grades. domains: domain of each row ``[n]``, or None. group_names: original group keys, by number.
    """

    task: Task
    names: tuple[str, ...]
    owners: IntArray
    groups: IntArray
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: IntArray
    account: Mapping[str, Any] = field(default_factory=dict)
    ranking_queries: int = 400
    domains: tuple[str, ...] | None = None
    group_names: tuple[Hashable, ...] = ()

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
        ranking_queries: int = 400,
        domains: Sequence[str] | None = None,
    ) -> Self:
        """Clean the rows and assign merchants.

        :param labels: class indices, or `UNLABELED`
        :param groups: key of each row's group, which is not split between training and test; by default rows with
            the same query (relevance), second text (other tasks with two texts) or text form a group
        :param ranking_queries: maximum number of queries in the ranking view
        :param domains: domain of each row, if the data have domains
        :raises DataError: no row is left, or ``pairs`` does not match the task
        """
        if task.pair != (pairs is not None):
            raise DataError(f"task {task.name} requires {'two texts' if task.pair else 'one text'} per example")
        named = merchants if config.partition == "merchant" else None
        cleaned = clean(texts, pairs, [int(label) for label in labels], named, config.max_characters)
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
        )

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
        """Return public rows without labels; for tasks with pairs, add random pairs if there are too few."""
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
        examples = self.examples(mixed[left_at], "", "train", seed).unlabeled()
        return replace(examples, pairs=None if self.pairs is None else tuple(rights[at] for at in right_at))

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
        chosen = [rng.permutation(queries[at]) for at in rng.permutation(len(queries))[: self.ranking_queries]]
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
