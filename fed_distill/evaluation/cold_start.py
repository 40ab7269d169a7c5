"""Ranking metrics apart for cold and warm products and customers of next-basket.

A product is *cold* if no training example has it in its history or as bought: neither a merchant's nor the server's. Of
cold products the candidates that were bought in training are no answers, and the other way round, so that both kinds
are found among the same products that were not bought. A customer is cold who has no training example at all.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import Examples, FederatedData, Ranking, Task
from fed_distill.data.tasks import HISTORY_SEPARATOR, NEXT_BASKET
from fed_distill.evaluation.metrics import Metrics, ranking

Rows = npt.NDArray[np.int64]
KINDS = ("cold products", "warm products", "cold customers", "warm customers")
MEASURES = ("ndcg@10", "recall@20", "queries")
ENOUGH = 30
"""Minimum number of queries of a kind; metrics of fewer say little and are left out."""


def rows_by_kind(data: FederatedData) -> dict[str, Rows]:
    """Return the rows of the test's ranking view for each of ``KINDS`` with ``ENOUGH`` queries; a kind that is warm
    only where its cold one is there. Empty for other tasks, and without a ranking view."""
    if data.task.name != NEXT_BASKET.name or data.ranking_test is None:
        return {}
    train = [data.public, *(merchant.train for merchant in data.merchants.values())]
    bought, customers = _bought(train, data.task), set(np.concatenate([table.groups for table in train]).tolist())
    examples, queries = data.ranking_test.examples, data.ranking_test.queries
    answer = examples.labels == data.task.positive_index
    known = np.array([title in bought for title in examples.pairs or ()], dtype=np.bool_)
    joined = np.isin(examples.groups, list(customers))
    found: dict[str, Rows] = {}
    for kind, kept in (
        ("cold products", ~answer | ~known),
        ("warm products", ~answer | known),
        ("cold customers", ~joined),
        ("warm customers", joined),
    ):
        asked = np.isin(queries, queries[kept & answer])
        rows = np.flatnonzero(kept & asked)
        cold = kind.replace("warm", "cold")
        if len(np.unique(queries[rows])) >= ENOUGH and (kind == cold or cold in found):
            found[kind] = rows
    return found


def by_kind(scores: npt.NDArray[np.floating], view: Ranking, rows: Mapping[str, Rows], task: Task) -> Metrics:
    """Compute ``MEASURES`` of each kind, with names ``measure of kind``.

    :param scores: of the whole ranking view's candidates ``[n]``
    :param view: the ranking view
    :param rows: of each kind, see ``rows_by_kind``
    :param task: the task
    """
    found: Metrics = {}
    for kind, places in rows.items():
        measured = ranking(scores[places], Ranking(view.examples.take(places), view.queries[places]), task)
        found |= {f"{name} of {kind}": measured[name] for name in MEASURES}
    return found


def as_table(metrics: Mapping[str, float | None]) -> dict[str, dict[str, float | None]]:
    """Return ``MEASURES`` by kind of what ``by_kind`` put into ``metrics``; empty without."""
    return {
        kind: {name: metrics[f"{name} of {kind}"] for name in MEASURES}
        for kind in KINDS
        if f"{MEASURES[0]} of {kind}" in metrics
    }


def _bought(train: Iterable[Examples], task: Task) -> set[str]:
    """Return the titles in the histories of all examples, and those of the bought candidates."""
    return {title for table in train for title in _titles(table, task)}


def _titles(table: Examples, task: Task) -> Iterator[str]:
    for history in set(table.texts):
        yield from history.split(HISTORY_SEPARATOR)
    for title, label in zip(table.pairs or (), table.labels.tolist(), strict=True):
        if label == task.positive_index:
            yield title
