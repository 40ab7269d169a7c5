"""A table of somebody's labels: for each text or pair the probabilities of the classes, or the name of one class.

Such tables hold what a large language model or annotators said. Texts are normalized like those of every dataset, so
that they match the examples of an experiment: white space is collapsed and personal data is masked.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import UNLABELED, Examples, Task
from fed_distill.data.table_file import read_columns, texts_of
from fed_distill.data.tasks import label_reader, label_text
from fed_distill.errors import ConfigError, DataError
from fed_distill.storage.files import write_atomic
from fed_distill.text.cleaning import collapse, mask

ROLES = ("text", "pair", "label")
"""Roles of columns. Without a column for ``label``, each class has a column of its probabilities."""

_SUM_TOLERANCE = 1e-3
_SAME = 1e-6
_SETTINGS = "teacher.options.columns, those of probabilities by class under teacher.options.labels"

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelTable:
    """rows: position of each text or pair. probabilities: those of the classes ``[rows, classes]``; rows sum to 1."""

    rows: Mapping[tuple[str, str], int]
    probabilities: FloatArray

    def positions(self, texts: Sequence[str], pairs: Sequence[str] | None) -> npt.NDArray[np.int64]:
        """Return the row of each of ``n`` examples, int64 ``[n]``; -1 where the table has none."""
        seconds = [""] * len(texts) if pairs is None else pairs
        found = (self.rows.get(_key(text, pair), -1) for text, pair in zip(texts, seconds, strict=True))
        return np.fromiter(found, dtype=np.int64, count=len(texts))


def read_labels(
    path: Path, task: Task, columns: Mapping[str, str], labels: Mapping[str, str], confidence: float | None
) -> LabelTable:
    """Read and check a table of labels.

    :param path: a .csv, .tsv, .parquet, .jsonl or .json (one object per line) file
    :param columns: column names by role, see `ROLES`; by default ``text`` and ``pair``
    :param labels: class of a name in the file: of a label, or of a column of probabilities
    :param confidence: probability of a class that is named; the rest is spread evenly over the others. None: 1
    :raises ConfigError: an option is invalid
    :raises DataError: the file is missing or unreadable, or a row is invalid; the message has its number, from 1
    """
    _check_options(task, columns, labels, confidence)
    text = columns.get("text", "text")
    pair = columns.get("pair", "pair") if task.pair else ""
    texts = [text, *([pair] if pair else [])]
    if "label" in columns:
        table = read_columns(path, [*texts, columns["label"]], _SETTINGS)
        probabilities = _from_names(path, table[columns["label"]], task, labels, confidence)
    else:
        column_of = {name: name for name in task.classes} | {name: column for column, name in labels.items()}
        wanted = [column_of[name] for name in task.classes]
        shared = [name for name in wanted if wanted.count(name) > 1]
        if shared:
            raise ConfigError(
                f"teacher.options.labels: column {shared[0]!r} has the probabilities of two classes: name another "
                "column for the class that is called so"
            )
        table = read_columns(path, [*texts, *wanted], _SETTINGS)
        probabilities = _from_numbers(path, [table[name] for name in wanted], wanted)
    return _indexed(path, [table[name] for name in texts], texts, probabilities)


def write_texts(path: Path, examples: Examples) -> None:
    """Write the texts of examples as a CSV file that `read_labels` reads with its default columns, once it has labels.

    :param path: a file that is replaced
    :param examples: ``n`` examples; the columns are ``text`` and, for pairs, ``pair``
    :raises ConfigError: ``path`` does not end in .csv
    :raises CheckpointError: the disk is full
    """
    if path.suffix != ".csv":
        raise ConfigError(f"{path}: texts are written as .csv: give the file that ending")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["text"] if examples.pairs is None else ["text", "pair"])
    rows.writerows(zip(examples.texts, *([] if examples.pairs is None else [examples.pairs]), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue())


def _check_options(task: Task, columns: Mapping[str, str], labels: Mapping[str, str], confidence: float | None) -> None:
    known = ROLES if task.pair else ("text", "label")
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ConfigError(f"columns has no {unknown[0]!r}; task {task.name} has: {', '.join(known)}")
    for name, meaning in labels.items():
        if meaning not in task.classes:
            raise ConfigError(
                f"teacher.options.labels: {name!r} maps to {meaning!r}; {task.name} has: {', '.join(task.classes)}"
            )
    if "label" not in columns:
        if confidence is not None:
            raise ConfigError(
                "confidence is for named classes, and this file has probabilities: remove it, or name "
                "the column of classes with columns.label"
            )
        twice = [name for name in labels.values() if list(labels.values()).count(name) > 1]
        if twice:
            raise ConfigError(
                f"teacher.options.labels: {twice[0]!r} has more than one column of probabilities: keep one"
            )
    elif confidence is not None and not 1 / len(task.classes) < confidence <= 1:
        raise ConfigError(
            f"confidence = {confidence} must be above {1 / len(task.classes):.4g}, an even share of "
            f"{len(task.classes)} classes, and at most 1"
        )


def _from_names(
    path: Path, values: Sequence[Any], task: Task, labels: Mapping[str, str], confidence: float | None
) -> FloatArray:
    """Return probabilities of the named classes."""
    read, sure = label_reader(task), 1.0 if confidence is None else confidence
    found = np.full((len(values), len(task.classes)), (1.0 - sure) / (len(task.classes) - 1))
    for row, value in enumerate(values):
        label = read(labels.get(label_text(value), value))
        if label == UNLABELED:
            raise DataError(
                f"{path}, row {row + 1}: {label_text(value)!r} is no class; {task.name} has: "
                f"{', '.join(task.classes)}. Map it with teacher.options.labels, or remove the row"
            )
        found[row, label] = sure
    return found


def _from_numbers(path: Path, values: Sequence[Sequence[Any]], names: Sequence[str]) -> FloatArray:
    """Return probabilities in columns, whose rows are normalized exactly."""
    found = np.zeros((len(values[0]), len(names)))
    for column, name in enumerate(names):
        for row, value in enumerate(values[column]):
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = np.nan
            if not 0.0 <= number <= 1.0 + _SUM_TOLERANCE:
                raise DataError(f"{path}, row {row + 1}: column {name!r} holds {value!r}, not a probability")
            found[row, column] = number
    sums = found.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1.0) > _SUM_TOLERANCE)
    if len(wrong):
        more = f", as in {len(wrong) - 1:,} other rows," if len(wrong) > 1 else ""
        raise DataError(
            f"{path}, row {wrong[0] + 1}: the probabilities of {', '.join(names)}{more} sum to {sums[wrong[0]]:.4g}, "
            "not 1: normalize them"
        )
    normalized: FloatArray = found / sums[:, None]
    return normalized


def _indexed(
    path: Path, columns: Sequence[Sequence[Any]], names: Sequence[str], probabilities: FloatArray
) -> LabelTable:
    """Return the table without duplicates, which must agree."""
    rows: dict[tuple[str, str], int] = {}
    texts = [texts_of(path, {name: list(column)}, name) for name, column in zip(names, columns, strict=True)]
    for row in range(len(probabilities)):
        parts = [column[row] or "" for column in texts]
        if not all(parts):
            raise DataError(f"{path}, row {row + 1}: column {names[parts.index('')]!r} is empty: remove the row")
        first = rows.setdefault(_key(parts[0], parts[1] if len(parts) > 1 else ""), row)
        if np.abs(probabilities[first] - probabilities[row]).max() > _SAME:
            raise DataError(
                f"{path}, row {row + 1} has the text of row {first + 1} and another label: keep one row for each "
                "text or pair, for example with the mean of their probabilities"
            )
    return LabelTable(rows, probabilities)


def _key(text: str, pair: str) -> tuple[str, str]:
    return mask(collapse(text)), mask(collapse(pair))
