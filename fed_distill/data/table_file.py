"""Read columns of a table's file: CSV, TSV, Parquet or JSON lines, with the Hugging Face ``datasets`` library.

The network is not used, and nothing is left in that library's cache.
"""

import csv
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    Features,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from datasets.exceptions import DatasetGenerationError
from datasets.utils import logging as library_log

from fed_distill.data.tasks import label_text
from fed_distill.data.text_format import as_utf8, delimiter_of
from fed_distill.errors import DataError

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
"""Formats with a delimiter, and the delimiter that is tried first."""
_LINES = (".jsonl", ".json")
_EXACT = 2.0**53
"""From this value on, float64 cannot represent every integer."""
_COLUMNS = "data.options.columns, a site under [data.columns]"
_END = "\ue000 end of file \ue000"
"""A line after the last one, of letters for private use: it is within a field if a quote is open."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")
"""Messages of the library for a table without rows: text files, Parquet files."""


def texts_of(path: Path | str, columns: dict[str, list[Any]], name: str) -> list[str | None]:
    """Return one of ``columns`` of ``path`` as texts; raise DataError, naming the row, for a value of another type."""
    texts: list[str | None] = []
    for row, value in enumerate(columns[name], start=1):
        if value is not None and not isinstance(value, (str, int, float)):
            raise DataError(f"{path}, row {row}: column {name!r} holds a {type(value).__name__}, not text")
        texts.append(label_text(value))
    return texts


def read_columns(path: Path, names: Sequence[str], option: str = _COLUMNS, encoding: str = "") -> dict[str, list[Any]]:
    """Return the columns ``names`` of a file as lists; empty names are ignored.

    :param option: option that names the columns, for the message if one is missing
    :param encoding: of a text file that is in neither UTF-8 nor UTF-16
    :raises DataError: the file cannot be read, or has no such column or no rows
    """
    check_file(path)
    wanted = sorted({name for name in names if name})
    # The library writes an Arrow copy; it is deleted at once.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with _quiet():
                table = _open(path, wanted, scratch, option, encoding)
        except (DatasetGenerationError, ValueError, TypeError, OSError) as error:
            reason = str(error.__cause__ or error).strip()
            if any(words in reason for words in _NO_ROWS):
                raise DataError(f"{path} has no rows") from error
            raise DataError(f"cannot read {path}: {reason}") from error
        _check_columns(path, wanted, table.column_names, option)
        columns = {name: list(table[name]) for name in wanted}
        del table
    for name, values in columns.items():
        _check_whole(path, name, values)
    if not columns[wanted[0]]:
        raise DataError(f"{path} has no rows")
    return columns


def check_file(path: Path) -> None:
    """Raise DataError unless ``path`` is a file with content."""
    if not path.is_file():
        raise DataError(f"{path} " + ("is not a file" if path.exists() else "does not exist"))
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and log of the library, whose exceptions contain all that is needed."""
    disabled, verbosity = are_progress_bars_disabled(), library_log.get_verbosity()
    disable_progress_bars()
    library_log.set_verbosity(library_log.CRITICAL)
    try:
        yield
    finally:
        library_log.set_verbosity(verbosity)
        if not disabled:
            enable_progress_bars()


def _open(path: Path, wanted: list[str], scratch: str, option: str, encoding: str) -> Dataset:
    suffix = format_of(path)
    if suffix == ".parquet":
        table = Dataset.from_parquet(_plain_name(path, scratch), cache_dir=scratch, keep_in_memory=True)
    else:
        text = as_utf8(path, Path(scratch), encoding)
        if suffix in _LINES:
            table = Dataset.from_json(_plain_name(text, scratch), cache_dir=scratch, keep_in_memory=True)
        else:
            table = _open_delimited(path, text, wanted, scratch, option)
    if not isinstance(table, Dataset):
        raise DataError(f"{path} contains more than one table")
    return table


def _plain_name(path: Path, scratch: str) -> str:
    """Return the path of a link to a file: the library takes ``sales [2024].csv`` for a pattern that matches another
    file or none."""
    link = Path(scratch) / "table"
    link.symlink_to(path.resolve())
    return str(link)


def format_of(path: Path) -> str:
    """Return the suffix of a table's file, without that of its compression; raise DataError for an unknown one."""
    *_, suffix = [one.lower() for one in path.suffixes if one.lower() != ".gz"] or [""]
    packed = path.suffix.lower() == ".gz"
    if suffix not in (*_SEPARATORS, *_LINES, ".parquet") or (packed and suffix == ".parquet"):
        raise DataError(
            f"{path}: unknown format; use a .csv, .tsv, .txt, .jsonl or .json file, also compressed (.csv.gz), or a "
            ".parquet file"
        )
    return suffix


def column_names(path: Path, encoding: str = "") -> list[str]:
    """Return the names of a file's columns, in its order; parameters and errors are those of ``read_columns``."""
    check_file(path)
    suffix = format_of(path)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if suffix in _SEPARATORS:
                text = as_utf8(path, Path(scratch), encoding)
                return _header(path, text, delimiter_of(text, [], _SEPARATORS[suffix]))
            with _quiet():
                return list(_open(path, [], scratch, "", encoding).column_names)
        except (DatasetGenerationError, ValueError, TypeError, OSError) as error:
            raise DataError(f"cannot read {path}: {str(error.__cause__ or error).strip()}") from error


def _open_delimited(path: Path, text: Path, wanted: list[str], scratch: str, option: str) -> Dataset:
    """Read ``text``, the content of ``path`` in UTF-8."""
    separator = delimiter_of(text, wanted, _SEPARATORS[format_of(path)])
    header = _header(path, text, separator)
    _check_columns(path, wanted, header, option)
    header = [name or f"Unnamed: {place}" for place, name in enumerate(header)]  # names as in pandas
    # Read all columns as text: a merchant named 007 keeps its name, and a product named NA is not missing.
    table: Dataset = Dataset.from_csv(
        _plain_name(text, scratch),
        features=Features({name: Value("string") for name in header}),
        cache_dir=scratch,
        keep_in_memory=True,
        sep=separator,
        keep_default_na=False,
        encoding="utf-8-sig",
    )
    return table


def _header(path: Path, text: Path, separator: str) -> list[str]:
    """Return the column names of a file whose rows have no more fields; pandas would shift longer ones. A blank line is
    neither a row nor the header.

    :param path: the file, for messages
    :param text: its content in UTF-8
    :raises DataError: a row has more fields than the header, or a quoted field has no end
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with text.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(chain(lines, [_END]), delimiter=separator)
            header: list[str] = []
            row, start = -1, 1
            for fields_of_row in reader:
                if fields_of_row == [_END]:
                    break
                if fields_of_row and fields_of_row[-1].endswith(_END):
                    opened = start + sum(len(_LINE_END.findall(field)) for field in fields_of_row[:-1])
                    raise DataError(
                        f"{path}, line {opened}: a quote is opened and never closed: close it, or remove it"
                    )
                if fields_of_row:
                    row += 1
                    header = header or fields_of_row
                if len(fields_of_row) > len(header):
                    raise DataError(
                        f"{path}, row {row} (line {reader.line_num}): {len(fields_of_row)} fields, and the header has "
                        f"{len(header)}: quote texts that contain {separator!r}, or name all columns"
                    )
                start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"cannot read {path}, line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return header


def _check_columns(path: Path, wanted: list[str], there: list[str], option: str) -> None:
    double = [name for name in wanted if there.count(name) > 1]
    if double:
        raise DataError(f"{path} has {there.count(double[0])} columns {double[0]!r}: rename all but one")
    missing = [name for name in wanted if name not in there]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r}; it has: {', '.join(there) or 'none'}. "
            f"Name the columns under {option}"
        )


def _check_whole(path: Path, name: str, values: list[Any]) -> None:
    """Raise DataError if a number is too large to be exact, since two merchants or products would become one."""
    for row, value in enumerate(values, start=1):
        if isinstance(value, float) and abs(value) >= _EXACT:
            raise DataError(
                f"{path}, row {row}: column {name!r} has a number near {value:g} whose last digits are lost: "
                "write the column as text"
            )
