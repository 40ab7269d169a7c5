"""A user's table, as a dataset for every task."""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.cleaning import clean
from fed_distill.data.dataset import Source
from fed_distill.data.examples import UNLABELED, Task
from fed_distill.data.hub_file import HubFile, local_file
from fed_distill.data.labeled import CatalogueFile, LabeledRows
from fed_distill.data.table_file import read_columns, texts_of
from fed_distill.data.tasks import (
    FIXED,
    RECOMMEND,
    category_task,
    choose_task,
    label_reader,
    label_text,
)
from fed_distill.data.text_format import check_encoding
from fed_distill.errors import ConfigError, DataError

LOG = logging.getLogger("fed_distill.data")

_OF_LABELS = ("category", "faq")
"""Tasks with one text whose classes are the labels in the file."""
_TEXT_ROLES = ["text", "pair"]
SHOWN_LABELS = 8
"""Number of unknown labels that are named, the most frequent."""


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
    (.csv.gz), and columns may be separated by comma, semicolon, tab or vertical bar. It may be in a data set on the
    Hugging Face hub: hf://datasets/OWNER/NAME@REVISION/FILE, or the newest one without @REVISION; so may catalogue.
    encoding: of a file
    that is in neither UTF-8 nor UTF-16, such as windows-1252. columns: column names by role, see `Columns`. labels:
    class name of each label in the file; rows with other labels are dropped. ranking_queries: maximum number of queries
    in the ranking view. For data.proxy_from = "catalogue", one of: public_columns: roles (``text``, ``pair``) whose
    texts are public for all merchants; catalogue: a file of public texts, in one of the formats above, with
    catalogue_columns as the names of its columns by role (``text``, ``pair``), by default those in columns. A cell may
    be empty, and a query and a title in one row need not belong together. For recommend, only ``pair`` is public.
    """

    path: Path | HubFile
    columns: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ranking_queries: Annotated[int, Field(ge=1)] = 2000
    catalogue: Path | HubFile | None = None
    catalogue_columns: dict[str, str] = field(default_factory=dict)
    public_columns: tuple[Literal["text", "pair"], ...] = ()
    encoding: str = ""

    def __post_init__(self) -> None:
        try:
            check_encoding(self.encoding or "utf-8")
        except DataError as error:
            raise ValueError(str(error)) from error
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
        choose_task(config.task, "table", (*FIXED, *_OF_LABELS))
        paired = config.task in FIXED and FIXED[config.task].pair
        if paired and not self.named.pair:
            raise DataError(
                f"task {config.task} requires two texts: set data.options.columns.pair to the column of the second"
            )
        self._check_files(config)
        columns = self.columns_of_file()
        raw = self.labels_of(columns)
        self._check_labels_occur(columns)
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
        rows = LabeledRows.build(
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
        return self._with_unknown_labels(rows, raw)

    def _check_labels_occur(self, columns: dict[str, list[Any]]) -> None:
        """Warn of keys of ``labels`` that no row has: such as those with a typing error."""
        present = {label_text(value) for value in columns[self.named.label]}
        if unknown := [label for label in self.labels if label not in present]:
            LOG.warning("%s: no row has the label %s of data.options.labels", self.path, ", ".join(map(repr, unknown)))

    def _check_files(self, config: DataConfig) -> None:
        """Raise DataError, naming the key and where a relative path leads, if a file is missing."""
        catalogue = self.catalogue if config.proxy_from == "catalogue" else None
        for key, path in (("path", self.path), ("catalogue", catalogue)):
            if isinstance(path, Path) and not path.exists():
                relative = "" if path.is_absolute() else f" in {Path.cwd()}, where the command was started"
                raise DataError(f"data.options.{key}: {path} does not exist{relative}: correct the path")

    def _with_unknown_labels(self, rows: LabeledRows, raw: Sequence[Any]) -> LabeledRows:
        """Count the most frequent labels that are no class, whose rows were dropped, in the account of ``rows``."""
        read_label = label_reader(rows.task)
        unknown = Counter(label_text(value) for value in raw if read_label(value) == UNLABELED)
        if not unknown:
            return rows
        shown = dict(unknown.most_common(SHOWN_LABELS))
        return replace(rows, account={**rows.account, "unknown_labels": shown})

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
        with local_file(self.catalogue) as path:
            columns = read_columns(path, list(named.values()), "data.options.catalogue_columns", self.encoding)
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
        with local_file(self.path) as path:
            return read_columns(path, [*asdict(self.named).values(), *more], encoding=self.encoding)

    def labels_of(self, columns: dict[str, list[Any]]) -> list[Any]:
        """Return the label column, mapped by ``labels``."""
        return [self.labels.get(label_text(value), value) for value in columns[self.named.label]]

    def check_labels(self, task: Task, key: str = "data.options.labels") -> None:
        """Raise DataError, naming ``key``, if ``labels`` maps to an unknown class."""
        for label, meaning in self.labels.items():
            if meaning not in task.classes:
                classes = ", ".join(task.classes)
                raise DataError(f"{key}: {label!r} of {self.path} maps to {meaning!r}; {task.name} has: {classes}")

    def texts_of(self, columns: dict[str, list[Any]], name: str) -> list[str | None]:
        """Return one of ``columns`` as texts; raise DataError, naming the row, for a value of another type."""
        return texts_of(self.path, columns, name)


def _task(name: str, labels: list[Any], path: Path | str) -> Task:
    if name in FIXED:
        return FIXED[name]
    try:
        return category_task(labels, name)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
