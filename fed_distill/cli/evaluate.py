"""``fed-distill evaluate``: score students on judged examples of one's own, beside the search engine in use.

Slow imports are inside the command.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fed_distill.serving.judging import Judgment

Column = Annotated[str, typer.Option(help="column of the first text: query, title, review or question")]


def evaluate(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="a .csv, .tsv, .parquet, .jsonl or .json file", show_default=False)
    ],
    student: Annotated[
        list[Path],
        typer.Option(help="folder of a run, of its student or of an export; again for others", show_default=False),
    ],
    text_column: Annotated[str, typer.Option(help="column of the query, or of the only text")] = "text",
    pair_column: Annotated[str, typer.Option(help="column of the title, for tasks of two texts")] = "pair",
    label_column: Annotated[str, typer.Option(help="column of the grade or other label")] = "label",
    score_column: Annotated[
        str, typer.Option(help="column of a search engine's score of query and title; an empty cell is 0")
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=CLASS", help="class of a label that is not called like it; again for others"),
    ] = None,
    encoding: Annotated[str, typer.Option(help="encoding of a file that is in neither UTF-8 nor UTF-16")] = "",
    by_query: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write nDCG@10 of each query to this CSV file")
    ] = None,
) -> None:
    """Score students on judged examples of your own, such as queries and titles with grades.

    A ranking has nDCG@10 over the queries that have two grades, other tasks macro-F1, with 95 % intervals and paired
    differences to the first row. With the scores of your search engine, its own ranking is the first row, and each
    student is added to it too, with the best of several weights: scores of the sum are cross-validated, and the weight
    shown, the best on all queries, is the one to serve (bm25_weight). Judge queries that nobody trained on.
    """
    from fed_distill.reporting.terminal import print_table
    from fed_distill.serving.judgements import JudgedColumns, left_out, read_judgements
    from fed_distill.serving.judging import common_task, judge
    from fed_distill.serving.loading import load_scorer

    if len(set(student)) < len(student):
        raise ConfigError("--student names a folder twice: name each one once")
    scorers = {str(folder): load_scorer(folder) for folder in student}
    task = common_task(scorers)
    if by_query is not None and task.gains is None:
        raise ConfigError(f"--by-query is for tasks that rank, such as relevance, not for {task.name}")
    if by_query is not None and by_query.is_dir():
        raise ConfigError(f"--by-query {by_query} is a folder: name a file")
    columns = JudgedColumns(text_column, pair_column, label_column, score_column, _mapping(label or []))
    longest = min(scorer.max_characters for scorer in scorers.values())
    judgements = read_judgements(table, task, columns, longest, encoding)
    found, console = judge(judgements, scorers), Console()
    print_table(_lines(found), 1, (), "", console)
    what = "queries with two grades" if task.gains is not None else "groups of equal texts"
    told = [f"{len(judgements.examples):,} examples, {found.units:,} {what}; ± is half of a 95 % interval over them"]
    if dropped := left_out(judgements.account):
        told.append(f"rows left out: {dropped}")
    if judgements.unscored:
        told.append(f"rows without a score, which count as 0: {judgements.unscored:,}")
    told += _on_weights(found, bool(score_column))
    for line in told:
        console.print(escape(line), soft_wrap=True, highlight=False)
    if by_query is not None:
        _write(by_query, found)


def _mapping(given: "Sequence[str]") -> "Mapping[str, str]":
    found: dict[str, str] = {}
    for one in given:
        name, equals, of_class = one.rpartition("=")
        if not equals or not name:
            raise ConfigError(f"--label {one}: write LABEL=CLASS, such as E=exact")
        found[name] = of_class
    return found


def _lines(found: "Judgment") -> list[list[str]]:
    """Return a header and a row for each row of the result."""
    from dataclasses import asdict

    import numpy as np

    from fed_distill.evaluation.statistics import difference, estimate, holm
    from fed_distill.reporting.headline import compared
    from fed_distill.reporting.wording import METRIC_NAMES, UNKNOWN, number, plus_minus

    samples = [[np.array([row.by_unit], dtype=np.float64)] for row in found.rows]
    scores = [estimate(sample) for sample in samples]
    above = {place: estimate(difference(samples[place], samples[0])) for place in range(1, len(samples))}
    adjusted = holm({place: one.p_value for place, one in above.items() if one.p_value is not None})
    headline = "ndcg@10" if found.queries else "macro_f1"
    others = ["mrr@10"] if found.queries else ["accuracy", "auc"]
    weighted = any(row.weight is not None for row in found.rows)
    titles = [METRIC_NAMES[name] for name in (headline, *others)]
    lines = [["", titles[0], f"above {found.rows[0].name}", *(["weight"] if weighted else []), *titles[1:]]]
    for place, (row, score) in enumerate(zip(found.rows, scores, strict=True)):
        change = compared({**asdict(above[place]), "p_adjusted": adjusted.get(place)}) if place else UNKNOWN
        weight = UNKNOWN if row.weight is None else f"{row.weight:g}"
        lines.append(
            [
                row.name,
                f"{number(score.value)} {plus_minus(score.half_width)}",
                change,
                *([weight] if weighted else []),
                *(number(row.metrics.get(name)) for name in others),
            ]
        )
    return lines


def _on_weights(found: "Judgment", scored: bool) -> list[str]:
    from fed_distill.serving.judging import FEWEST_QUERIES, FOLDS

    if not scored:
        return []
    if found.units < FEWEST_QUERIES:
        return [f"no weight is chosen on fewer than {FEWEST_QUERIES} queries"]
    return [
        "weight: best on all queries, for bm25_weight of student.rank and POST /rank; scores of sums are "
        f"cross-validated ({FOLDS} parts of the queries)"
    ]


def _write(path: Path, found: "Judgment") -> None:
    import pandas as pd

    from fed_distill.reporting.spreadsheets import to_csv
    from fed_distill.storage.files import write_atomic

    write_atomic(path, to_csv(pd.DataFrame({"query": found.queries, **{row.name: row.by_unit for row in found.rows}})))
