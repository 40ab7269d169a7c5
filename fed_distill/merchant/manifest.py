"""``site.toml``: the configuration of a real site, written by the site's staff and read at the site only.

It contains the location and columns of the data, the state folder, and the site's rules. It is never sent, and no
request of the server can change it. Paths are relative to the file's folder.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fed_distill.config import DataConfig, Experiment, Share
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.data.cleaning import unlabeled_rows
from fed_distill.data.examples import UNLABELED, Examples, FederatedData, MerchantData, Task
from fed_distill.data.labeled import LabeledRows, factorize
from fed_distill.data.public_part import PublicPart
from fed_distill.data.splits import PARTS, parts_by_name
from fed_distill.data.table import Table
from fed_distill.data.tasks import label_reader, label_text
from fed_distill.endpoint import library
from fed_distill.errors import ConfigError, DataError
from fed_distill.logs import Style
from fed_distill.merchant.limits import Limits
from fed_distill.merchant.service import Server
from fed_distill.privacy.secret import read_secret

_log = logging.getLogger(__name__)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OwnData(_Table):
    """A site's table of labelled examples.

    Each group of rows is assigned to training, validation or test by a hash of its name, so that an added row moves no
    other row (except a duplicate that it replaces).
    """

    path: Path = Field(description="a .csv, .tsv, .parquet or .jsonl file")
    columns: dict[str, str] = Field(
        {},
        description="names of the columns by role (text, label, pair, merchant, group, domain); without a merchant "
        "column all rows belong to one merchant with the site's name",
    )
    labels: dict[str, str] = Field({}, description="class of each label in the file")
    merchants: tuple[str, ...] = Field(
        (), description="merchants of the file that participate; empty: all with training examples"
    )
    valid_share: Share = Field(0.1, description="expected share of the groups that are held out for validation")
    test_share: Share = Field(0.2, description="expected share of the groups that are held out for the test")
    seed: int = Field(
        0,
        description="seed of this split, chosen by the site: a server that chose it could have every row held out "
        "once, and scored",
    )
    part: str = Field("", description="column with train, valid or test, for rows that are already cleaned and split")


class Observing(_Table):
    """Logs and metrics of a site, for its staff."""

    logs: Style = Field("text", description="text, or json with one object per line, without any data")
    metrics: bool = Field(
        False, description="write counts and budgets for Prometheus to `metrics/` of the state folder"
    )

    @field_validator("metrics")
    @classmethod
    def _has_library(cls, metrics: bool) -> bool:
        if metrics:
            library("observing.metrics")
        return metrics


class Manifest(_Table):
    """A site. Paths are relative to the file's folder."""

    name: Annotated[str, Field(min_length=1)] = Field(description="name of the site")
    server: Server
    data: OwnData
    state: Path = Field(Path("state"), description="folder of the site's state")
    proxy: Path = Field(Path("proxy.json"), description="file with the task and the proxy set")
    secret: Path | None = Field(None, description="file with random bytes that seed the site's noise")
    rehearsal: bool = Field(
        False,
        description="the data are synthetic, so that no secret is needed: noise is drawn from the run's seed, which "
        "the server has, and the run is reproducible",
    )
    trainer: Literal["cohort", "sequential"] | None = Field(
        None, description="as `runtime.trainer`, which it overrides; none: as there"
    )
    limits: Limits = Limits()
    observing: Observing = Observing()
    folder: Annotated[Path, Field(exclude=True)] = Path(".")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``site.toml``; raise ConfigError with the file and the first invalid key."""
        try:
            return cls.model_validate({**read_toml(path, "the site in"), "folder": path.absolute().parent})
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error, cls)}") from error

    @property
    def ledgers(self) -> Path:
        """Folder of its merchants' ledgers of all runs."""
        return self.folder / self.state / "ledgers"

    def read_secret(self) -> str:
        """Return the site's secret, which seeds its noise; empty if a rehearsal has none.

        The site generates it at first use, so that nobody else has it.

        :raises ConfigError: the secret is too short, readable for other users, or missing outside of a rehearsal
        """
        if self.secret is None and self.rehearsal:
            return ""
        if self.secret is None:
            raise ConfigError(
                f"{self.folder / 'site.toml'} has no secret, so that anyone with the run's seed can subtract its "
                'noise: add secret = "noise.key"'
            )
        return read_secret(self.folder / self.secret)

    def public_part(self) -> PublicPart:
        """The task and the proxy set from the operator."""
        return PublicPart.read(self.folder / self.proxy)

    def own(self, experiment: Experiment) -> Experiment:
        """Return ``experiment`` with the site's state folder, ledgers and device, without paths and models of the
        server: texts are not back-translated, and synonyms are the built-in ones.

        :raises ConfigError: the experiment has Byzantine merchants, which a real site rejects
        """
        if experiment.byzantine.fraction:
            raise ConfigError("[byzantine] is for simulations: real sites reject it; remove it from the experiment")
        return experiment.with_changes(
            {
                "runtime.folder": str(self.folder / self.state / "runs"),
                "runtime.device": "auto",
                "runtime.trainer": self.trainer or experiment.runtime.trainer,
                "privacy.ledger": str(self.ledgers),
                "training.augmentation.dictionary": None,
                "training.augmentation.translated": 0.0,
                "training.augmentation.back_translation": [],
            }
        )

    def read_data(self) -> FederatedData:
        """Read the site's own merchants and the proxy set.

        :raises DataError: the data are invalid; the message has the file, and the column, row or merchant
        """
        public = self.public_part()
        merchants = self._given_split(public.task) if self.data.part else self._own_split(public.task)
        unknown = [name for name in self.data.merchants if name not in merchants]
        if unknown:
            raise DataError(f"{self._path} has no rows of merchant {unknown[0]!r}: remove it from data.merchants")
        chosen = self.data.merchants or tuple(sorted(merchants))
        idle = [name for name in chosen if not len(merchants[name].train)]
        if idle and (self.data.merchants or len(idle) == len(chosen)):
            raise DataError(f"{self._path} has no training examples of merchant {idle[0]!r}")
        if idle:
            _log.warning(
                "%s has no training examples of %d merchants, which are excluded: %s", self._path, len(idle), idle
            )
        chosen = tuple(name for name in chosen if name not in idle)
        nobody = public.proxy.take([])
        return FederatedData(
            public.task,
            public=nobody,
            public_valid=nobody,
            proxy=public.proxy,
            merchants={name: merchants[name] for name in chosen},
            valid=nobody,
            test=nobody,
        )

    @property
    def _path(self) -> Path:
        return self.folder / self.data.path

    def _columns(self, task: Task) -> tuple[Table, dict[str, list[Any]]]:
        if not self._path.is_file():
            raise DataError(f"{self._path} is not a file: put the site's table there, or set path in [data]")
        try:
            table = Table(self._path, self.data.columns, self.data.labels)
        except ValueError as error:
            raise ConfigError(f"data.columns of site {self.name}: {error}") from error
        if task.pair and not table.named.pair:
            raise DataError(f"task {task.name} requires two texts: set data.columns.pair to the column of the second")
        table.check_labels(task, "data.labels")
        return table, table.columns_of_file(self.data.part)

    def _owners(self, table: Table, columns: Mapping[str, list[Any]]) -> list[str]:
        if not table.named.merchant:
            return [self.name] * len(columns[table.named.text])
        return [label_text(value) for value in columns[table.named.merchant]]

    def _groups(self, table: Table, columns: Mapping[str, list[Any]]) -> list[str]:
        """Return each row's group: that of the file, otherwise the row's texts."""
        texts = [columns[name] for name in (table.named.text, table.named.pair) if name]
        alone = map(str, zip(*texts, strict=True))
        return [label_text(value) or own for value, own in zip(columns[table.named.group], alone, strict=True)]

    def _own_split(self, task: Task) -> dict[str, MerchantData]:
        """Clean the rows and hold out groups, from this site's data only."""
        table, columns = self._columns(task)
        read_label, seed = label_reader(task), self.data.seed
        config = DataConfig(
            task=task.name, seed=seed, valid_share=self.data.valid_share, test_share=self.data.test_share
        )
        rows = LabeledRows.build(
            task,
            table.texts_of(columns, table.named.text),
            [read_label(value) for value in table.labels_of(columns)],
            config,
            pairs=table.texts_of(columns, table.named.pair) if task.pair else None,
            merchants=self._owners(table, columns),
            groups=self._groups(table, columns) if table.named.group else None,
        )
        if told := unlabeled_rows(rows.account):
            _log.warning("%s: %s", self._path, told)
        parts = parts_by_name([str(name) for name in rows.group_names], config)[rows.groups]
        return {
            name: MerchantData(
                name,
                *(
                    rows.examples(np.flatnonzero((rows.owners == number) & (parts == part)), name, PARTS[part], seed)
                    for part in range(len(PARTS))
                ),
            )
            for number, name in enumerate(rows.names)
        }

    def _given_split(self, task: Task) -> dict[str, MerchantData]:
        """Return the unchanged rows in the parts given by the file."""
        table, columns = self._columns(task)
        read_label = label_reader(task)
        labels = np.asarray([read_label(value) for value in table.labels_of(columns)], dtype=np.int64)
        for wrong in np.flatnonzero(labels == UNLABELED).tolist():
            value = columns[table.named.label][wrong]
            raise DataError(f"{self._path}, row {wrong + 1}: {value!r} is not a class of {task.name}")
        for row, value in enumerate(columns[self.data.part], 1):
            if value not in PARTS:
                raise DataError(f"{self._path}, row {row}: part {value!r} must be one of {', '.join(PARTS)}")
        pairs, group = table.texts_of(columns, table.named.pair) if task.pair else None, table.named.group
        owners = self._owners(table, columns)
        everything = Examples(
            tuple(text or "" for text in table.texts_of(columns, table.named.text)),
            None if pairs is None else tuple(text or "" for text in pairs),
            labels,
            factorize(columns[group] if group else list(range(len(owners)))),
            tuple(owners),
        )
        owned, parts = np.asarray(owners, dtype=object), np.asarray(columns[self.data.part], dtype=object)
        return {
            name: MerchantData(
                name, *(everything.take(np.flatnonzero((owned == name) & (parts == part))) for part in PARTS)
            )
            for name in dict.fromkeys(owners)
        }
