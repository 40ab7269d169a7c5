"""The dimensions of a search space: numbers of a range, named values, or factors of what is set.

A tuning file and the ``[tuning]`` table of a study have the same dimensions. A tuning gives them to Optuna's sampler
(``suggest``), which learns from results; a study draws them at random (``drawn``), so that all rows try equally much.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StrictFloat, StrictInt, Tag, model_validator

from fed_distill.config.renamed import check_renamed
from fed_distill.seeds import numpy_stream
from fed_distill.sweeps.axes import OF_THE_STUDY, Axis, Choice, SweepTable, label_of
from fed_distill.sweeps.variation import Factor

if TYPE_CHECKING:
    from optuna import Trial

Metric = Literal["accuracy", "macro_f1", "auc", "ndcg@10", "mrr@10", "recall@20", "qini"]
Number = StrictInt | StrictFloat


class Range(SweepTable):
    """Numbers from ``low`` to ``high`` inclusive: integers if both ends are."""

    key: str = Field(description="key of the experiment, as training.merchants.learning_rate")
    name: str = Field("", description="name in tables and figures; default: the key's last part")
    low: Number = Field(description="smallest number")
    high: Number = Field(description="largest number")
    log: bool = Field(False, description="draw the logarithm evenly, for what spans orders of magnitude")
    step: Number | None = Field(None, description="distance of the numbers drawn, from `low` on; none for any number")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, table: Any) -> Any:
        return _with_name(table)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        prefix = f"search {self.name!r}"
        if not self.low < self.high:
            raise ValueError(f"{prefix}: low = {self.low:g} must be below high = {self.high:g}")
        _check_searchable(self.key, self.name)
        if self.log and self.low <= 0:
            raise ValueError(f"{prefix}: log requires low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError(f"{prefix}: log and step exclude each other: remove one")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"{prefix}: step must be above 0, not {self.step:g}")
        if self.whole and isinstance(self.step, float):
            raise ValueError(f"{prefix}: a range of integers requires an integer step, not {self.step:g}")
        if self.step is not None and not _divides(self.step, self.high - self.low):
            raise ValueError(
                f"{prefix}: steps of {self.step:g} do not lead from low = {self.low:g} to high = {self.high:g}"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether it is a range of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: "Trial") -> float:
        """Return the number that a trial uses."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def chosen(self, value: Any) -> Choice:
        """Return a result of ``suggest`` as a labelled change."""
        return Choice(label_of(value), {self.key: value})

    def at(self, share: float) -> Choice:
        """Return the choice at ``share`` (in [0, 1)) of the range; an even draw of the share gives an even draw of the
        numbers, or of their logarithms."""
        if self.step is not None:
            numbers = round((self.high - self.low) / self.step) + 1
            return self.chosen(self.low + self.step * math.floor(share * numbers))
        if self.log:
            more = 0.5 if self.whole else 0.0  # so that the ends are as likely as other numbers of an even draw
            low, high = math.log(self.low - more), math.log(self.high + more)
            value = math.exp(low + share * (high - low))
            return self.chosen(min(max(round(value), self.low), self.high) if self.whole else value)
        if self.whole:
            return self.chosen(self.low + math.floor(share * (self.high - self.low + 1)))
        return self.chosen(self.low + share * (self.high - self.low))

    def ends(self) -> tuple[Choice, ...]:
        """Return the first and the last number."""
        return self.chosen(self.low), self.chosen(self.high)


class Values(Axis):
    """Unordered values, or named tables that change several keys, like those of a study's axis."""

    def suggest(self, trial: "Trial") -> str:
        """Return the label of the value that a trial uses."""
        return trial.suggest_categorical(self.name, [choice.label for choice in self.choices])

    def chosen(self, value: Any) -> Choice:
        """Return a result of ``suggest`` as a labelled change."""
        return next(choice for choice in self.choices if choice.label == value)

    def at(self, share: float) -> Choice:
        """Return the choice at ``share`` (in [0, 1)) of the values."""
        return self.choices[math.floor(share * len(self.values))]

    def ends(self) -> tuple[Choice, ...]:
        """Return all values, since each may be invalid."""
        return tuple(self.choices)


class Factors(SweepTable):
    """Factors of the experiment's own value of a key, so that one space fits rows with different settings."""

    key: str = Field(description="key of the experiment whose value is multiplied, as training.merchants.learning_rate")
    name: str = Field("", description="name in tables and figures; default: the key's last part")
    factors: list[Annotated[Number, Field(gt=0)]] = Field(
        min_length=1, description="what the value is multiplied by; an integer is rounded, to at least 1"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, table: Any) -> Any:
        return _with_name(table)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        _check_searchable(self.key, self.name)
        if len(set(self.factors)) < len(self.factors):
            raise ValueError(f"search {self.name!r}: a factor is listed twice: remove it")
        labels = [choice.label for choice in self.choices]
        if double := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"search {self.name!r}: two factors are {double} in three digits: remove one")
        return self

    @property
    def choices(self) -> list[Choice]:
        """The factors as labelled changes."""
        return [Choice(f"× {factor:.3g}", {self.key: Factor(float(factor))}) for factor in self.factors]

    def suggest(self, trial: "Trial") -> str:
        """Return the label of the factor that a trial uses."""
        return trial.suggest_categorical(self.name, [choice.label for choice in self.choices])

    def chosen(self, value: Any) -> Choice:
        """Return a result of ``suggest`` as a labelled change."""
        return next(choice for choice in self.choices if choice.label == value)

    def at(self, share: float) -> Choice:
        """Return the choice at ``share`` (in [0, 1)) of the factors."""
        return self.choices[math.floor(share * len(self.factors))]

    def ends(self) -> tuple[Choice, ...]:
        """Return all factors, since each may be invalid."""
        return tuple(self.choices)


def _form(table: Any) -> str:
    for form, kind in (("values", Values), ("factors", Factors)):
        if form in table if isinstance(table, Mapping) else isinstance(table, kind):
            return form
    return "range"


AnyDimension = Range | Values | Factors
Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Values, Tag("values")] | Annotated[Factors, Tag("factors")],
    Discriminator(_form),
]


def keys_of(dimension: AnyDimension) -> set[str]:
    """Return the keys of the experiment that a dimension may change."""
    return {key for choice in dimension.ends() for key in choice.changes}


def check_distinct(search: Sequence[AnyDimension]) -> None:
    """Raise ValueError if two dimensions have one name or change one key."""
    names = [dimension.name for dimension in search]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two searches have the name {twice[0]!r}: give one of them another `name`")
    keys = [key for dimension in search for key in sorted(keys_of(dimension))]
    again = [key for key in keys if keys.count(key) > 1]
    if again:
        raise ValueError(f"{again[0]} is searched twice: remove one of the searches")


def drawn(search: Sequence[AnyDimension], seed: int, number: int) -> dict[str, Choice]:
    """Draw the choices of trial ``number`` at random (Bergstra and Bengio 2012), by name of the dimension.

    They depend on nothing but their arguments: more trials keep the first ones, and two rows with equal dimensions draw
    equal choices.
    """
    return {one.name: one.at(numpy_stream(seed, "trial", one.name, number).random()) for one in search}


def _with_name(table: Any) -> Any:
    if isinstance(table, Mapping) and not table.get("name") and isinstance(table.get("key"), str):
        return {**table, "name": table["key"].rpartition(".")[2]}
    return table


def _check_searchable(key: str, name: str) -> None:
    check_renamed({key: None})
    if key in OF_THE_STUDY or key.startswith("runtime."):
        raise ValueError(f"search {name!r}: {key} cannot be searched: set it in the file or in its base")


def _divides(step: float, whole: float) -> bool:
    steps = whole / step
    return steps >= 0.5 and abs(steps - round(steps)) < 1e-9 * steps
