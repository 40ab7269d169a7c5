"""Judged examples of a search team's own, on which students are scored: texts or pairs with labels, and for queries the
scores of the search engine in use."""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fed_distill.data.cleaning import clean
from fed_distill.data.examples import Examples, Task
from fed_distill.data.labeled import factorize
from fed_distill.data.table import SHOWN_LABELS
from fed_distill.data.table_file import read_columns, texts_of
from fed_distill.data.tasks import label_reader, label_text
from fed_distill.errors import ConfigError, DataError
from fed_distill.text.cleaning import collapse

_OPTIONS = "--text-column, --pair-column, --label-column and --score-column"


@dataclass(frozen=True)
class JudgedColumns:
    """Columns of the file. pair: second text, for tasks of two. score: the search engine's score of the pair, higher is
    better; "" without. labels: class by label of the file, for labels that are not the name of a class."""

    text: str = "text"
    pair: str = "pair"
    label: str = "label"
    score: str = ""
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Judgements:
    """examples: clean rows with class indices; groups are queries, or for tasks without gains equal second texts (of
    one text: equal texts). engine: the search engine's scores ``[n]``, or None. unscored: rows without a score, which
    have 0, or the lowest score if that is negative. contradicted: rows that were left out as duplicates although their
    label is another one. unknown: most frequent labels that are no class, with their numbers of rows. account: see
    ``Cleaned``."""

    examples: Examples
    engine: npt.NDArray[np.float64] | None
    unscored: int
    contradicted: int
    unknown: Mapping[str, int]
    account: Mapping[str, Any]


def read_judgements(path: Path, task: Task, columns: JudgedColumns, longest: int, encoding: str = "") -> Judgements:
    """Read a file of judged examples, cleaned like training data: rows without a usable text or with a label that is no
    class are left out and counted, as is a pair that occurred before.

    :param task: the students' task
    :param longest: most characters of a text that the students accept
    :param encoding: of a text file that is in neither UTF-8 nor UTF-16
    :raises ConfigError: the columns do not suit the task
    :raises DataError: the file or a column cannot be read, no row can be used, or a score is not a finite number
    """
    if columns.score and task.gains is None:
        raise ConfigError(f"--score-column is for tasks that rank, such as relevance, not for {task.name}")
    names = (columns.text, columns.pair if task.pair else "", columns.label, columns.score)
    if not all((columns.text, columns.pair, columns.label)):
        raise ConfigError("--text-column, --pair-column and --label-column must name columns")
    found = read_columns(path, names, _OPTIONS, encoding)
    raw = [label_text(value) for value in found[columns.label]]
    labels = _classes(path, task, raw, columns.labels or {})
    texts = texts_of(path, found, columns.text)
    pairs = texts_of(path, found, columns.pair) if task.pair else None
    cleaned = clean(texts, pairs, labels, None, sys.maxsize if task.of_titles else longest)
    if not cleaned.rows:
        raise DataError(f"{path}: none of its {len(texts):,} rows can be used: {left_out(cleaned.account)}")
    rows = list(cleaned.rows)
    keys = cleaned.texts if task.gains is not None or cleaned.pairs is None else cleaned.pairs
    kept = np.asarray(labels, dtype=np.int64)[rows]
    examples = Examples(cleaned.texts, cleaned.pairs, kept, factorize(keys), ("",) * len(rows))
    contradicted = _contradicted(texts, pairs, labels)
    unknown = dict(
        Counter(name for name, label in zip(raw, labels, strict=True) if label < 0).most_common(SHOWN_LABELS)
    )
    if not columns.score:
        return Judgements(examples, None, 0, contradicted, unknown, cleaned.account)
    scores = [_score(path, row, found[columns.score][row], columns.score) for row in rows]
    lowest = min((score for score in scores if score is not None), default=0.0)
    engine = np.array([min(0.0, lowest) if score is None else score for score in scores], dtype=np.float64)
    return Judgements(examples, engine, scores.count(None), contradicted, unknown, cleaned.account)


def left_out(account: Mapping[str, Any]) -> str:
    """Return how many rows were left out by reason, as words; "" for none."""
    return ", ".join(f"{count:,} {reason}" for reason, count in account["dropped"].items() if count)


def _classes(path: Path, task: Task, raw: list[str], mapping: Mapping[str, str]) -> list[int]:
    read = label_reader(task)
    for label, name in mapping.items():
        if name not in task.classes:
            raise ConfigError(f"--label {label}={name}: {task.name} has no class {name!r}; it has {_named(task)}")
        if label not in raw:
            raise ConfigError(
                f"--label {label}={name}: no row of {path} has the label {label!r}; it has {_frequent(raw)}"
            )
    labels = [task.classes.index(mapping[label]) if label in mapping else read(label) for label in raw]
    if max(labels) < 0:
        raise DataError(
            f"{path}: no label is a class of {task.name}, which has {_named(task)}; the labels are {_frequent(raw)}: "
            "name another --label-column, or map each label by --label LABEL=CLASS"
        )
    return labels


def _contradicted(texts: Sequence[str | None], pairs: Sequence[str | None] | None, labels: Sequence[int]) -> int:
    """Return the number of rows whose texts occurred before, with another class."""
    first: dict[tuple[str, ...], int] = {}
    count = 0
    for row, label in enumerate(labels):
        if label >= 0:
            key = tuple(collapse(column[row] or "") for column in (texts, pairs) if column is not None)
            count += first.setdefault(key, label) != label
    return count


def _frequent(raw: Sequence[str]) -> str:
    """Return the most frequent labels as words."""
    common = Counter(raw).most_common(SHOWN_LABELS)
    return ", ".join(f"{label!r} ({count:,})" if label else f"none ({count:,})" for label, count in common)


def _named(task: Task) -> str:
    return ", ".join(task.classes)


def _score(path: Path, row: int, value: Any, column: str) -> float | None:
    """Return a score, or None for an empty cell."""
    if label_text(value) == "":
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{path}, row {row + 1}: column {column!r} holds {value!r}, which is no finite number")
    return score
