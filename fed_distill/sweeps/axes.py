"""The axes of a study: values of one key, or named tables that change several keys."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fed_distill.config import UNPROTECTED
from fed_distill.config.keys import is_table
from fed_distill.config.renamed import check_renamed
from fed_distill.sweeps.variation import EPSILON, NOISE

OF_THE_STUDY = ("name", "seed", "repeats", "controls", "compare")
"""Keys of an experiment that no axis may change, in addition to those of ``[runtime]``: they are set by the study or
the base."""
COLUMNS = (
    "role", "seed", "data_seed", "test_to_train", "fingerprint", "controls", "status", "reason", "score", "accuracy",
    "macro_f1", "auc",
    "ndcg@10", "mrr@10", "recall@20", "qini", "covers", "merchant_accuracy", "worst_merchant",
    "worst_merchant_accuracy", "retention", "gap_closed", "gap_closed_auc", "worst_tenth", "own_students",
    "own_above_global", "cold", "cold_above_server", "with_bm25", "with_bm25_above_server",
    "above_server", "above_server_p", "above_fedavg",
    "above_fedavg_p", "baseline", "same_test_data", "gain", "gain_p", "gain_auc", "downlink_bytes", "uplink_bytes",
    "sent_bytes", "total_bytes", "seconds", "series", "seeds", "of",
)  # fmt: skip
"""Columns without a dot in the tables of results, in addition to the axes."""

SHOWN = (
    "metric", "cells", "AUC", "macro-F1", "Qini", "server alone", "above server", "above fedavg", "in AUC",
    "worst merchant", "worst tenth", "own students", "above global", "cold start", "cold start above server",
    "with BM25", "with BM25 above server",
    "gap closed", "attack AUC", "sent", "in all", "time",
)  # fmt: skip
"""Further columns of the text table (``table.summary_cells``) whose titles an axis could have, beside ``GAIN``."""
GAIN = "gain over "
"""Beginning of the title of the column of gains; the baseline's label follows."""


@dataclass(frozen=True)
class Choice:
    """One value of an axis: its label in tables and figures, and the keys of the experiment that it changes."""

    label: str
    changes: Mapping[str, Any]

    @property
    def unit(self) -> str | None:
        """Privacy unit that it selects, if any; an infinite ε means no privacy."""
        return UNPROTECTED if self.changes.get(EPSILON) == math.inf else self.changes.get("privacy.unit")


class SweepTable(BaseModel):
    """A table of a study or tuning file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, validate_by_name=True)


class Axis(SweepTable):
    """One dimension of the grid."""

    name: str = Field(
        "", pattern=r"^[A-Za-z0-9 _-]*$", description="name in tables and figures; default: the key's last part"
    )
    key: str | None = Field(None, description="key of the experiment that plain values are for, as privacy.epsilon")
    values: list[Any] = Field(
        min_length=1, description='numbers or texts for `key`, or tables { label = "...", "some.key" = ..., ... }'
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, tables: Any) -> Any:
        if isinstance(tables, Mapping) and not tables.get("name"):
            key = tables.get("key")
            if not isinstance(key, str):
                raise ValueError("an axis requires a `name`, or a `key` to be named after")
            return {**tables, "name": key.rpartition(".")[2]}
        return tables

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.name in (*COLUMNS, *SHOWN) or self.name.startswith(GAIN) or self.name.endswith("_interval"):
            raise ValueError(f"axis {self.name!r}: the results have a column of this name: choose another name")
        labels = [choice.label for choice in self.choices]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"axis {self.name!r}: two values have the label {twice[0]!r}: rename one")
        for key in (key for choice in self.choices for key in choice.changes):
            check_renamed({key: None})
            if key in OF_THE_STUDY or key.startswith("runtime."):
                raise ValueError(f"axis {self.name!r}: {key} cannot be varied: set it in the study or in its base")
        return self

    def may_change(self, key: str | None) -> bool:
        """Whether one of its values changes this key of the experiment."""
        return any(key in choice.changes for choice in self.choices)

    @property
    def choices(self) -> list[Choice]:
        """The values as labelled changes."""
        return [self._choice(value) for value in self.values]

    @property
    def is_budget(self) -> bool:
        """Whether it varies the privacy budget, and nothing but what is chosen for a budget: other settings of privacy,
        and the number of rounds."""
        keys = {key for choice in self.choices for key in choice.changes}
        units = {choice.unit for choice in self.choices} - {None, UNPROTECTED}
        others = {key for key in keys if not key.startswith("privacy.")} - {"federation.rounds"}
        return bool(keys & {EPSILON, NOISE}) and not others and len(units) <= 1

    def _choice(self, value: Any) -> Choice:
        if isinstance(value, Mapping):
            changes = dict(value)
            label = changes.pop("label", None)
            if not isinstance(label, str) or not label:
                raise ValueError(f'axis {self.name!r}: a table among the values requires a label = "..."')
            return Choice(label, dotted_keys(changes))
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(
                f"axis {self.name!r}: {value!r} is neither a number nor a text: use a table with a label, "
                f'{{ label = "...", "{self.key or "some.key"}" = ... }}'
            )
        if self.key is None:
            raise ValueError(f"axis {self.name!r}: {value!r} requires the axis to have a `key`: add it")
        return Choice(label_of(value), {self.key: value})


def label_of(value: bool | int | float | str) -> str:
    """Return the label of a plain value: ``8`` for 8 and 8.0, ``inf`` for infinity."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def dotted_keys(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of an experiment as dotted keys; a table of options is a value."""
    dotted: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and is_table(key):
            dotted.update(dotted_keys({f"{key}.{name}": child for name, child in value.items()}))
        else:
            dotted[key] = value
    return dotted
