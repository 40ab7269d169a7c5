"""``fed-distill index``: embed a catalogue, and measure what a search in it misses."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fed_distill.serving.index import ProductIndex
    from fed_distill.serving.scorer import Scorer

_SAMPLE = 200
"""Titles that are searched for, to measure recall."""
_FULL = 20_000_000
"""Most evaluations of the head to measure the recall of the first stage; fewer titles are searched for otherwise."""
_BEST = 10
_THREADS = 256
"""Most threads: usearch has memory for each one."""


class SearchEngine(StrEnum):
    """Engines on the command line."""

    EXACT = "exact"
    USEARCH = "usearch"


def index(
    catalogue: Annotated[
        Path,
        typer.Argument(metavar="CATALOGUE", help="a .csv, .tsv, .parquet, .jsonl or .json file", show_default=False),
    ],
    student: Annotated[
        Path,
        typer.Option(help="folder of a run, of its student or of an export: two-tower or static", show_default=False),
    ],
    to: Annotated[Path, typer.Option(help="folder of the index, which is replaced atomically", show_default=False)],
    engine: Annotated[
        SearchEngine, typer.Option(help="exact, or approximate and faster from about 100,000 products")
    ] = SearchEngine.EXACT,
    id_column: Annotated[str, typer.Option(help="column of unique ids")] = "id",
    title_column: Annotated[str, typer.Option(help="column of titles")] = "title",
    encoding: Annotated[str, typer.Option(help="encoding of a file that is in neither UTF-8 nor UTF-16")] = "",
    threads: Annotated[int, typer.Option(min=1, max=_THREADS, help="threads that build the graph of usearch")] = 1,
    variant: Annotated[str | None, typer.Option(help="variant of an export; default: float32")] = None,
) -> None:
    """Embed the titles of a catalogue, so that they can be searched.

    Rows whose title is empty or longer than the student's training data are skipped and counted; a missing or repeated
    id is an error. Titles without any feature, such as punctuation, are kept and counted: no search finds them. An
    interrupted command leaves the former index, and starts anew when it is repeated.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fed_distill.serving.index import ProductIndex
    from fed_distill.serving.index_files import check_folder, save_index
    from fed_distill.serving.loading import load_scorer
    from fed_distill.serving.products_file import read_products

    check_folder(to)
    model = load_scorer(student, variant)
    file = read_products(catalogue, id_column, title_column, model.max_characters, encoding)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    began = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        stages = ["embed", *(["graph"] if engine is SearchEngine.USEARCH else [])]
        tasks = {stage: bars.add_task(stage, total=len(file.products)) for stage in stages}
        built = ProductIndex.build(
            model,
            file.products,
            engine.value,
            threads,
            lambda stage, count: bars.advance(tasks[stage], count),
        )
    seconds = time.perf_counter() - began
    size = save_index(built, to, model.digest)
    lines = [f"{len(built):,} products, {len(built) / seconds:,.0f} a second, {size:,} bytes in {to}"]
    if file.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(file.skipped.items()))
        lines.append(f"skipped titles: {reasons}; first: {'; '.join(file.first_skipped)}")
    empty = int((~built.snapshot()[0].vectors.any(axis=1)).sum())
    if empty:
        lines.append(f"titles without a word that the student reads, which no search finds: {empty:,}")
    sys.stdout.write("\n".join([*lines, *_recalls(built, model)]) + "\n")


def _recalls(built: "ProductIndex", model: "Scorer") -> list[str]:
    """Return lines on the recall of searches for titles of the catalogue."""
    import numpy as np

    from fed_distill.serving.index import CANDIDATES
    from fed_distill.serving.recall import first_stage_recall, graph_recall

    products = built.snapshot()[0]
    searchable = np.flatnonzero(products.vectors.any(axis=1))
    if not len(searchable):
        return ["recall: not measured, as no title can be found"]
    places = np.unique(np.linspace(0, len(searchable) - 1, _SAMPLE).astype(np.int64))
    queries = products.vectors[searchable[places]]
    lines = []
    if built.engine == "usearch":
        found = graph_recall(products, queries, _BEST, CANDIDATES)
        lines.append(f"recall@{_BEST} of usearch against exact vectors: {found:.3f} ({len(queries)} titles)")
    few = queries[:: max(1, -(-len(queries) * len(products.vectors) // _FULL))]
    found = first_stage_recall(products, model, few, _BEST, CANDIDATES)
    lines.append(
        f"recall@{_BEST} of {CANDIDATES} candidates against scoring every product: {found:.3f} ({len(few)} titles)"
    )
    return lines
