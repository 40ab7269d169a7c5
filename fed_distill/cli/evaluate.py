"""``fed-distill evaluate``: score students on judged examples of one's own, beside the search engine in use.

Slow imports are inside the command.
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fed_distill.data.examples import Task
    from fed_distill.serving.judgements import Judgements
    from fed_distill.serving.judging import Judgment

_QUERY = "query"


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
        str, typer.Option(help="column of a search engine's score of query and title; higher is better")
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=CLASS", help="class of a label that is not called like it; again for others"),
    ] = None,
    encoding: Annotated[str, typer.Option(help="encoding of a file that is in neither UTF-8 nor UTF-16")] = "",
    by_query: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write nDCG@10 of each query to this new CSV file")
    ] = None,
) -> None:
    """Score students on judged examples of your own, such as queries and titles with grades.

    A ranking has nDCG@10 over the queries that have two grades (of equal scores, all orders are equally likely), other
    tasks macro-F1, with 95 % intervals and paired differences to the first row, whose p-values have Holm's correction.
    With the scores of your search engine, higher is better, its own ranking is the first row, and each student is added
    to it too, with the best of several weights: scores of the sum are cross-validated, and the weight shown is the best
    on all queries. Judge queries that nobody trained on.
    """
    from fed_distill.reporting.terminal import print_table
    from fed_distill.serving.judgements import JudgedColumns, read_judgements
    from fed_distill.serving.judging import common_task, judge
    from fed_distill.serving.loading import load_scorer

    if len(set(student)) < len(student):
        raise ConfigError("--student names a folder twice: name each one once")
    scorers = {_name(folder): load_scorer(folder) for folder in student}
    task = common_task(scorers)
    if by_query is not None:
        _check_new(by_query, task)
    columns = JudgedColumns(text_column, pair_column, label_column, score_column, _mapping(label or []))
    longest = min(scorer.max_characters for scorer in scorers.values())
    judgements = read_judgements(table, task, columns, longest, encoding)
    with Console(stderr=True).status(f"scoring {len(judgements.examples):,} examples"):
        found = judge(judgements, scorers)
    console = Console()
    print_table(_lines(found), 1, (), "", console)
    for line in (*_on_data(judgements, found), *_on_weights(found)):
        console.print(escape(line), soft_wrap=True, highlight=False)
    if by_query is not None:
        _write(by_query, found)


def _name(folder: Path) -> str:
    """Return what a student is called in the result, where other rows and columns have names, too."""
    from fed_distill.serving.judging import ENGINE

    return f"./{folder}" if str(folder) in (ENGINE, _QUERY) else str(folder)


def _check_new(path: Path, task: "Task") -> None:
    """Raise ConfigError unless scores by query can be written to a new file."""
    if task.gains is None:
        raise ConfigError(f"--by-query is for tasks that rank, such as relevance, not for {task.name}")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"--by-query {path} exists: name a new file")
    if not path.parent.is_dir():
        raise ConfigError(f"--by-query {path}: there is no folder {path.parent}: make it first")


def _mapping(given: "Sequence[str]") -> "Mapping[str, str]":
    found: dict[str, str] = {}
    for one in given:
        name, equals, of_class = one.rpartition("=")
        if not equals or not name:
            raise ConfigError(f"--label {one}: write LABEL=CLASS, such as E=exact")
        if name in found:
            raise ConfigError(f"--label {one}: {name!r} is mapped to {found[name]} already: map each label once")
        found[name] = of_class
    return found


def _lines(found: "Judgment") -> list[list[str]]:
    """Return a header and a row for each row of the result, with differences to the first row and, beside a search
    engine, to the first student."""
    from dataclasses import asdict

    import numpy as np

    from fed_distill.evaluation.statistics import difference, estimate, holm
    from fed_distill.reporting.headline import compared
    from fed_distill.reporting.wording import METRIC_NAMES, UNKNOWN, number, plus_minus

    samples = [[np.array([row.by_unit], dtype=np.float64)] for row in found.rows]
    references = [0, *([1] if found.reversed is not None and len(found.rows) > 2 else [])]

    def above(reference: int) -> list[str]:
        of = {place: estimate(difference(sample, samples[reference])) for place, sample in enumerate(samples)}
        del of[reference]
        of = {place: one for place, one in of.items() if place >= reference}
        adjusted = holm({place: one.p_value for place, one in of.items() if one.p_value is not None})
        return [
            compared({**asdict(of[place]), "p_adjusted": adjusted.get(place)}) if place in of else UNKNOWN
            for place in range(len(samples))
        ]

    headline = METRIC_NAMES["ndcg@10" if found.queries else "macro_f1"]
    columns = {"": [row.name for row in found.rows]}
    scores = [estimate(sample) for sample in samples]
    columns[headline] = [f"{number(one.value)} {plus_minus(one.half_width)}" for one in scores]
    columns |= {f"above {found.rows[reference].name}": above(reference) for reference in references}
    if any(row.weight is not None for row in found.rows):
        columns["weight"] = [UNKNOWN if row.weight is None else f"{row.weight:g}" for row in found.rows]
    for name in ["mrr@10"] if found.queries else ["accuracy", "auc"]:
        columns[METRIC_NAMES[name]] = [number(row.metrics.get(name)) for row in found.rows]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _on_data(judgements: "Judgements", found: "Judgment") -> list[str]:
    """Return lines on what was counted and left out."""
    from fed_distill.serving.judgements import left_out

    what = "queries with two grades" if found.queries else "groups of equal texts"
    told = [f"{len(judgements.examples):,} examples, {found.units:,} {what}; ± is half of a 95 % interval over them"]
    if found.asked > found.units:
        told.append(f"queries with one grade, or without a gain, which do not count: {found.asked - found.units:,}")
    if dropped := left_out(judgements.account):
        told.append(f"rows left out: {dropped}")
    if judgements.unknown:
        told.append("labels that are no class: " + ", ".join(f"{name!r}" for name in judgements.unknown))
    if judgements.contradicted:
        told.append(f"of the duplicates, {judgements.contradicted:,} have another label than the first, which counts")
    if masked := ", ".join(f"{count:,} {kind}" for kind, count in judgements.account["masked"].items() if count):
        told.append(f"masked in texts, which can make queries equal: {masked}")
    if judgements.unscored:
        told.append(f"rows without a score, which have 0, or the lowest if that is negative: {judgements.unscored:,}")
    own = found.rows[0].metrics.get("ndcg@10")
    if found.reversed is not None and own is not None and found.reversed > own:
        told.append(
            f"warning: in reverse order the scores rank better ({found.reversed:.4f}): higher must be better, so "
            "negate a rank or a distance"
        )
    return told


def _on_weights(found: "Judgment") -> list[str]:
    """Return lines on the sums."""
    from fed_distill.serving.judging import FEWEST_QUERIES, FOLDS

    if found.reversed is None:
        return []
    sums = [(alone, both) for alone, both in pairwise(found.rows) if both.weight is not None]
    if not sums:
        return [f"no weight is chosen: there are {found.units:,} queries, and it takes {FEWEST_QUERIES}"]
    told = [
        "weight: best on all queries, for bm25_weight of student.rank and POST /rank; scores of sums are "
        f"cross-validated ({FOLDS} parts of the queries)"
    ]
    for alone, both in sums:
        if (both.metrics["ndcg@10"] or 0.0) <= (alone.metrics["ndcg@10"] or 0.0):
            told.append(f"{both.name} is not above {alone.name} alone: serve that without the engine's scores")
    return told


def _write(path: Path, found: "Judgment") -> None:
    import pandas as pd

    from fed_distill.reporting.spreadsheets import to_csv
    from fed_distill.storage.files import write_atomic

    write_atomic(path, to_csv(pd.DataFrame({_QUERY: found.queries, **{row.name: row.by_unit for row in found.rows}})))
