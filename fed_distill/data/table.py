"""A user's table: CSV, TSV, Parquet or JSON lines, read with the Hugging Face ``datasets`` library.

The network is not used, and nothing is left in that library's cache.
"""

import codecs
import csv
import sys
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

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
from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.cleaning import clean
from fed_distill.data.dataset import Source
from fed_distill.data.examples import UNLABELED, Task
from fed_distill.data.labeled import CatalogueFile, LabeledRows
from fed_distill.data.tasks import (
    MATCHING,
    RECOMMEND,
    RELEVANCE,
    SENTIMENT,
    category_task,
    choose_task,
    label_reader,
    label_text,
)
from fed_distill.data.text_format import as_utf8, delimiter_of
from fed_distill.errors import ConfigError, DataError

_FIXED = {task.name: task for task in (RELEVANCE, RECOMMEND, MATCHING, SENTIMENT)}
_OF_LABELS = ("category", "faq")
"""Tasks with one text whose classes are the labels in the file."""
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
"""Formats with a delimiter, and the delimiter that is tried first."""
_LINES = (".jsonl", ".json")
_TEXT_ROLES = ["text", "pair"]
_EXACT = 2.0**53
"""From this value on, float64 cannot represent every integer."""
_COLUMNS = "data.options.columns, a site under [data.columns]"
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")
"""Messages of the library for a table without rows: text files, Parquet files."""


@dataclass(frozen=True)
class Columns:
    """Column names in the file; ``text`` and ``label`` are required, an empty name means that the column is absent.

    text: query, history, title, review or question. pair: the product or second title, for relevance, recommend and
    matching. label: a class by name or by index. merchant: owner of the row; if absent, set data.partition. group: rows
    that are not split between training and test, such as those of one product; by default rows with the same query
    (relevance), second text (recommend, matching) or text. domain: such as a category, for data.test_domain and
    data.proxy_domains.
    """

    text: str = "text"
    label: str = "label"
    pair: str = ""
    merchant: str = ""
    group: str = ""
    domain: str = ""


@dataclass(frozen=True)
class Table:
    """A file of labelled texts or pairs, for every task: ``relevance``, ``recommend`` and ``matching`` of pairs,
    ``sentiment``, ``category`` and ``faq`` of texts, the last two with the file's labels as classes.

    path: a .csv, .tsv, .txt, .parquet, .jsonl or .json (one object per line) file; all but .parquet may be compressed
    (.csv.gz), and columns may be separated by comma, semicolon, tab or vertical bar. encoding: of a file that is in
    neither UTF-8 nor UTF-16, such as windows-1252. columns: column names by role, see `Columns`. labels: class name of
    each label in the file; rows with other labels are dropped. ranking_queries: maximum number of queries in the ranking
    view. For data.proxy_from = "catalogue", one of: public_columns: roles (``text``, ``pair``) whose texts are public
    for all merchants; catalogue: a file of public texts, in one of the formats above, with catalogue_columns as the
    names of its columns by role (``text``, ``pair``), by default those in columns. A cell may be empty, and a query and
    a title in one row need not belong together. For recommend, only ``pair`` is public.
    """

    path: Path
    columns: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ranking_queries: Annotated[int, Field(ge=1)] = 2000
    catalogue: Path | None = None
    catalogue_columns: dict[str, str] = field(default_factory=dict)
    public_columns: tuple[Literal["text", "pair"], ...] = ()
    encoding: str = ""

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError as error:
            raise ValueError(
                f"encoding {self.encoding!r} is unknown: use a name such as windows-1252 or latin-1"
            ) from error
        for option, roles in (("columns", [role.name for role in fields(Columns)]), ("catalogue_columns", _TEXT_ROLES)):
            unknown = sorted(set(getattr(self, option)) - set(roles))
            if unknown:
                raise ValueError(f"{option} has no {unknown[0]!r}; it has: {', '.join(roles)}")
        if self.catalogue is not None and self.public_columns:
            raise ValueError("catalogue and public_columns both say which texts are public: remove one")
        if self.catalogue is None and self.catalogue_columns:
            raise ValueError("catalogue_columns requires catalogue: set it or remove the columns")

    @property
    def named(self) -> Columns:
        """Return the column name of each role, defaults included."""
        return Columns(**self.columns)

    def read(self, config: DataConfig) -> Source:
        """Read and clean the rows; raise DataError, naming the file and the problem."""
        choose_task(config.task, "table", (*_FIXED, *_OF_LABELS))
        paired = config.task in _FIXED and _FIXED[config.task].pair
        if paired and not self.named.pair:
            raise DataError(
                f"task {config.task} requires two texts: set data.options.columns.pair to the column of the second"
            )
        columns = self.columns_of_file()
        raw = self.labels_of(columns)
        task = _task(config.task, raw, self.path)
        self.check_labels(task)
        read_label = label_reader(task)
        labels = [read_label(value) for value in raw]
        if raw and all(label == UNLABELED for label in labels):
            common = ", ".join(repr(name) for name, _ in Counter(map(str, raw)).most_common(8))
            raise DataError(
                f"{self.path}: no label in column {self.named.label!r} is a class of {task.name}; they are {common}, "
                f"first in row 1; {task.name} has: {', '.join(task.classes)}. Map them "
                f'with labels, such as {{ "{raw[0]}" = "{task.classes[0]}" }}, beside columns'
            )
        merchants = self.named.merchant
        groups: list[Hashable] | None = None
        if self.named.group:
            # A row without a group key forms its own group.
            groups = [label_text(value) or row for row, value in enumerate(columns[self.named.group])]
        return LabeledRows.build(
            task,
            texts=self.texts_of(columns, self.named.text),
            labels=labels,
            config=config,
            pairs=self.texts_of(columns, self.named.pair) if paired else None,
            merchants=[label_text(value) for value in columns[merchants]] if merchants else None,
            groups=groups,
            ranking_queries=self.ranking_queries,
            domains=[label_text(value) for value in columns[self.named.domain]] if self.named.domain else None,
            public_texts=self._public(task, config) if config.proxy_from == "catalogue" else False,
        )

    def _public(self, task: Task, config: DataConfig) -> CatalogueFile | bool:
        """Read the catalogue file, or return True if the public columns suffice for ``task``.

        :raises ConfigError: neither is given, or a role is missing or too many
        """
        required = ["pair"] if task == RECOMMEND else _TEXT_ROLES if task.pair else ["text"]
        if self.catalogue is None:
            if set(self.public_columns) == set(required):
                return True
            given = f"public_columns = {list(self.public_columns)}" if self.public_columns else "neither is given"
            histories = ", as histories are private" if task == RECOMMEND else ""
            raise ConfigError(
                f"data.proxy_from = 'catalogue' requires public texts for {task.name}, but {given}: set "
                f"data.options.public_columns = {required}{histories}, if anybody can see these texts of all "
                "merchants, or data.options.catalogue to a file of the server's own with the marketplace's public texts"
            )
        if config.proxy_domains:
            raise ConfigError("data.proxy_domains: a catalogue file has no domains; remove them, or use public_columns")
        named = {role: self.catalogue_columns.get(role, getattr(self.named, role)) for role in required}
        columns = read_columns(
            self.catalogue, list(named.values()), "data.options.catalogue_columns", self.encoding
        )
        found: dict[str, tuple[str, ...]] = {}
        for role, name in named.items():
            texts = texts_of(self.catalogue, columns, name)
            found[role] = clean(texts, None, None, None, config.max_characters).texts
            if not found[role]:
                raise DataError(
                    f"{self.catalogue}: column {name!r} has no text of at most {config.max_characters} "
                    "characters (data.max_characters)"
                )
        return CatalogueFile(self.catalogue, found.get("text"), found.get("pair"))

    def columns_of_file(self, *more: str) -> dict[str, list[Any]]:
        """Return the columns with a role, and ``more``, as lists; raise DataError, naming the file and the problem."""
        return read_columns(self.path, [*asdict(self.named).values(), *more], encoding=self.encoding)

    def labels_of(self, columns: dict[str, list[Any]]) -> list[Any]:
        """Return the label column, mapped by ``labels``."""
        return [self.labels.get(label_text(value), value) for value in columns[self.named.label]]

    def check_labels(self, task: Task) -> None:
        """Raise DataError if ``labels`` maps to an unknown class."""
        for label, meaning in self.labels.items():
            if meaning not in task.classes:
                classes = ", ".join(task.classes)
                raise DataError(f"labels: {label!r} of {self.path} maps to {meaning!r}; {task.name} has: {classes}")

    def texts_of(self, columns: dict[str, list[Any]], name: str) -> list[str | None]:
        """Return one of ``columns`` as texts; raise DataError, naming the row, for a value of another type."""
        return texts_of(self.path, columns, name)


def texts_of(path: Path, columns: dict[str, list[Any]], name: str) -> list[str | None]:
    """Return one of ``columns`` of ``path`` as texts; raise DataError, naming the row, for a value of another type."""
    texts: list[str | None] = []
    for row, value in enumerate(columns[name], start=1):
        if value is not None and not isinstance(value, (str, int, float)):
            raise DataError(f"{path}, row {row}: column {name!r} holds a {type(value).__name__}, not text")
        texts.append(label_text(value))
    return texts


def read_columns(
    path: Path, names: Sequence[str], option: str = _COLUMNS, encoding: str = ""
) -> dict[str, list[Any]]:
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
        table = Dataset.from_parquet(str(path), cache_dir=scratch, keep_in_memory=True)
    else:
        text = as_utf8(path, Path(scratch), encoding)
        if suffix in _LINES:
            table = Dataset.from_json(str(text), cache_dir=scratch, keep_in_memory=True)
        else:
            table = _open_delimited(path, text, wanted, scratch, option)
    if not isinstance(table, Dataset):
        raise DataError(f"{path} contains more than one table")
    return table


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
        if suffix in _SEPARATORS:
            text = as_utf8(path, Path(scratch), encoding)
            return _header(path, text, delimiter_of(text, [], _SEPARATORS[suffix]))
        try:
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
        str(text),
        features=Features({name: Value("string") for name in header}),
        cache_dir=scratch,
        keep_in_memory=True,
        sep=separator,
        keep_default_na=False,
        encoding="utf-8-sig",
    )
    return table


def _header(path: Path, text: Path, separator: str) -> list[str]:
    """Return the column names of a file whose rows have no more fields; pandas would shift longer ones.

    :param path: the file, for messages
    :param text: its content in UTF-8
    :raises DataError: a row has more fields than the header, or a quoted field has no end
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with text.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, delimiter=separator)
            header = next(reader, [])
            for row, fields_of_row in enumerate(reader, start=1):
                if len(fields_of_row) > len(header):
                    raise DataError(
                        f"{path}, row {row} (line {reader.line_num}): {len(fields_of_row)} fields, and the header has "
                        f"{len(header)}: quote texts that contain {separator!r}, or name all columns"
                    )
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


def _task(name: str, labels: list[Any], path: Path) -> Task:
    if name in _FIXED:
        return _FIXED[name]
    try:
        return category_task(labels, name)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
