"""Data frames in memory as tables: Parquet files named by content, which other processes and resumed runs read."""

import hashlib
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from fed_distill.config import DataConfig, Experiment
from fed_distill.errors import ConfigError, DataError
from fed_distill.storage.files import make_folder, write_atomic

FOLDER = "tables"
"""Folder of the cache that has the files."""
_HASHED = re.compile(r"[0-9a-f]{64}\.parquet")


@runtime_checkable
class DataFrame(Protocol):
    """A data frame of pandas, polars, DuckDB or Arrow: whatever has Arrow's PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as a capsule with an ``ArrowArrayStream``."""


def with_table(experiment: Experiment, frame: DataFrame, cache: Path) -> Experiment:
    """Return an experiment that reads ``frame``, as a file in ``cache``, in place of a file of the user.

    :raises ConfigError: it has another dataset or a path, or ``frame`` is no data frame
    :raises DataError: the frame has no rows, columns of one name, or values that Parquet cannot store
    """
    if experiment.data.dataset != "table":
        raise ConfigError(
            f"a data frame was given, but data.dataset is {experiment.data.dataset!r}: set it to 'table', and name the "
            "frame's columns in data.options.columns"
        )
    if "path" in experiment.data.options:
        raise ConfigError("both a data frame and data.options.path were given: remove one")
    return experiment.with_changes({"data.options": {**experiment.data.options, "path": str(write(frame, cache))}})


def dataset_name(config: DataConfig) -> str:
    """Return the name of a dataset for readers: of a table that of its file, and ``table`` of a data frame, whose file
    is named by its content."""
    path = Path(str(config.options.get("path", "")))
    if config.dataset != "table" or not path.name or (path.parent.name == FOLDER and _HASHED.fullmatch(path.name)):
        return config.dataset
    return path.name


def write(frame: DataFrame, cache: Path) -> Path:
    """Write a data frame as Parquet, readable by the user only, and return the file's path; equal frames share one.

    :raises ConfigError, DataError: as ``with_table``
    """
    if not isinstance(frame, DataFrame):
        raise ConfigError(
            f"the table must be a data frame of pandas, polars or Arrow, not {type(frame).__name__}: convert it, for "
            "example by pandas.DataFrame(rows)"
        )
    try:
        table = _plain(pa.table(frame))
        content = pa.BufferOutputStream()
        pq.write_table(table, content)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"the data frame cannot be stored: {error}") from error
    if not table.num_rows:
        raise DataError("the data frame has no rows")
    names = table.column_names
    if double := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"the data frame has {names.count(double)} columns {double!r}: rename all but one")
    stored = content.getvalue().to_pybytes()
    path = cache.absolute() / FOLDER / f"{hashlib.sha256(stored).hexdigest()}.parquet"
    if not path.is_file():
        make_folder(path.parent)
        write_atomic(path, stored, private=True)
    return path


def _plain(table: pa.Table) -> pa.Table:
    """Return a table in one piece, with texts and categories as plain strings and without a library's own metadata."""
    columns: list[Any] = []
    for column in table.columns:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            kind = pa.string()
        columns.append(column if column.type == kind else column.cast(kind))
    return pa.table(columns, names=table.column_names).combine_chunks()
