"""Searches a second and core, recall and memory of the two engines of an index, on many synthetic products.

Titles are composed: each is a title of the generated marketplace, two of whose words are replaced by words of other
titles. A two-tower's vector of a text is the normalized sum of its words' vectors, so that vectors of a million titles
are sums of rows. Queries are those of the marketplace's merchants. Recall is against exact search in float32. Rates are
per second of CPU time of this process, which has one thread, so that other processes distort them little.

    python experiments/benchmarks/index.py --student runs/quickstart
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fed_distill import load_student
from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.examples import Examples
from fed_distill.models.two_tower import TwoTower
from fed_distill.serving.graph import EXPANSION_SEARCH, NeighbourGraph
from fed_distill.serving.index import CANDIDATES, ProductBlock, ProductIndex
from fed_distill.serving.nearest import Rows, Vectors, nearest, recall
from fed_distill.serving.student import Student

BEST = 10
BATCH = 64
EXPANSIONS = (16, 32, 64, 128, 256)
_REPLACED = 2
_CHUNK = 65536


class Measured(NamedTuple):
    """One way of searching. recall: of the ten nearest among those found. rate: searches in a second of CPU time.
    megabytes: what it holds."""

    name: str
    recall: float
    rate: float
    megabytes: float


def texts(merchants: int, rows: int) -> tuple[list[str], list[str]]:
    """Return distinct queries and titles of generated merchants."""
    data = load(Experiment.model_validate({"data": {"options": {"merchants": merchants, "rows": rows}}}).data)
    examples = Examples.concatenate([data.public, *(merchant.train for merchant in data.merchants.values())])
    return list(dict.fromkeys(examples.texts)), list(dict.fromkeys(examples.pairs or ()))


def composed(student: Student, titles: Sequence[str], count: int, seed: int) -> Vectors:
    """Return the vectors of ``count`` composed titles, float32 ``[count, width]``."""
    model = student.model
    if not isinstance(model, TwoTower):
        raise SystemExit("titles are composed for two-tower students: choose one with --student")
    split = [title.split() for title in titles]
    words = {word: row for row, word in enumerate(dict.fromkeys(word for title in split for word in title))}
    sums = model.bag(model.encode(list(words), None)["text_ids"]).detach().numpy()
    lengths = np.array([len(title) for title in split])
    numbers = np.full((len(split), lengths.max()), len(words))
    for row, title in enumerate(split):
        numbers[row, : len(title)] = [words[word] for word in title]
    table = np.concatenate([sums, np.zeros((1, model.width), dtype=np.float32)])
    draw = np.random.default_rng(seed)
    found = np.empty((count, model.width), dtype=np.float32)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        base = draw.integers(len(split), size=size)
        of_title = numbers[base]
        for _ in range(_REPLACED):
            other = draw.integers(len(split), size=size)
            word = numbers[other, draw.integers(lengths[other])]
            of_title[np.arange(size), draw.integers(lengths[base])] = word
        total = table[of_title].sum(axis=1)
        found[start : start + size] = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-6)
    return found


def timed(search: Callable[[Vectors], Rows], queries: Vectors) -> tuple[list[Rows], float]:
    """Return what ``search`` finds for each query, and searches in a second of CPU time."""
    began = time.process_time()
    found = [search(query) for query in queries]
    return found, len(queries) / (time.process_time() - began)


def measured(student: Student, vectors: Vectors, graph: NeighbourGraph, queries: Vectors) -> list[Measured]:
    """Return a row for each way of searching, exact ones first."""
    began = time.process_time()
    exact = [one.rows for one in nearest(vectors, queries, BEST)]
    together = len(queries) / (time.process_time() - began)
    size = vectors.nbytes / 1e6
    some = queries[:: max(1, len(queries) // 100)]
    found, rate = timed(lambda query: nearest(vectors, query[None], BEST)[0].rows, some)
    rows = [
        Measured("exact, one query at a time", recall(found, exact[:: max(1, len(queries) // 100)]), rate, size),
        Measured(f"exact, {len(queries):,} queries together", 1.0, together, size),
    ]
    held = size + graph.bytes / 1e6
    block = ProductBlock(vectors, np.ones(len(vectors), dtype=np.bool_), _Unnamed(), _Unnamed(), graph)
    for expansion in EXPANSIONS:
        graph.expansion = expansion
        found, rate = timed(lambda query: block.candidates(query, BEST), queries)
        rows.append(Measured(f"usearch, ef = {expansion}", recall(found, exact), rate, held))
    graph.expansion = EXPANSION_SEARCH
    index = ProductIndex(student, block)
    found, rate = timed(
        lambda query: np.array([int(hit.id) for hit in index.search_vector(query, CANDIDATES)]), queries
    )
    rows.append(
        Measured(f"usearch, ef = {EXPANSION_SEARCH}, {CANDIDATES} candidates, head", recall(found, exact), rate, held)
    )
    return rows


def table(rows: Sequence[Measured]) -> str:
    """Return a Markdown table."""
    lines = [f"| search | recall@{BEST} | searches/s and core | MB |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {row.name} | {row.recall:.4f} | {row.rate:,.0f} | {row.megabytes:,.0f} |" for row in rows]
    return "\n".join(lines)


class _Unnamed(Sequence[str]):
    """Ids and titles that are the numbers of rows."""

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, at: object) -> str:
        return str(at)


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True, help="run or folder of a two-tower student")
    parser.add_argument("--products", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    student = load_student(given.student)
    asked, titles = texts(merchants=20, rows=500)
    queries = student.embed(np.random.default_rng(given.seed).permutation(asked)[: given.queries].tolist())
    vectors = composed(student, titles, given.products, given.seed)
    began, cpu = time.perf_counter(), time.process_time()
    graph = NeighbourGraph.build(vectors)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    print(f"{len(vectors):,} products from {len(titles):,} titles, {len(queries):,} queries")
    print(
        f"graph: {len(vectors) / cpu:,.0f} products in a second of CPU time ({cpu:,.0f} s, {wall:,.0f} s of wall clock)"
    )
    print(table(measured(student, vectors, graph, queries)))
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()
