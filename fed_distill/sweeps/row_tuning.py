"""The ``[tuning]`` table of a study: equally many trials for every row of an axis and for every tuned control.

A comparison in which one method was tuned longer than another measures the effort, not the method. The number of trials
is therefore one for all rows, the first trial has the file's own settings, and the others are drawn at random from one
space, in which a row may have further keys that only its method has.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import LARGEST
from fed_distill.sweeps.axes import SweepTable
from fed_distill.sweeps.dimensions import Dimension, Metric, check_distinct, keys_of

TunedControl = Literal["server", "fedavg", "pooled"]
TUNED_CONTROLS: tuple[TunedControl, ...] = ("server", "fedavg", "pooled")
"""Controls that rows are compared with, in the order in which they are tuned: rows start from the first one's
student."""


class RowTuning(SweepTable):
    """Tune every row with the same number of trials, scored on validation examples; its cells use the best settings."""

    axis: str = Field(description="the axis whose values are tuned; of other axes, trials have the first value")
    trials: Annotated[int, Field(ge=2)] = Field(
        description="trials of each row and of each tuned control; the first one has the file's own settings"
    )
    search: list[Dimension] = Field(
        default_factory=list, description="the keys that are searched in every row; empty if all `rows` have their own"
    )
    rows: dict[str, list[Dimension]] = Field(
        default_factory=dict, description="label of a row -> further keys, which only its method has"
    )
    controls: dict[TunedControl, list[Dimension]] = Field(
        default_factory=dict,
        description="control -> its keys; required for those of server, fedavg and pooled that the base lists. The "
        "best settings of the server hold in all cells, because they start from its student",
    )
    seed: Annotated[int, Field(ge=0, le=LARGEST)] | None = Field(
        None, description="training seed of the trials, and seed of their draws; none: the first after the cells' seeds"
    )
    data_seed: Annotated[int, Field(ge=0, le=LARGEST)] | None = Field(
        None, description="data.seed of the trials; none: the first after those of the cells"
    )
    objective: Metric | None = Field(
        None, description="the metric to maximize, on validation examples; by default the task's headline metric"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct(self.search)
        for own in self.rows.values():
            check_distinct([*self.search, *own])
        for own in self.controls.values():
            check_distinct(own)
        empty = [name for name, own in [*self.rows.items(), *self.controls.items()] if not own]
        if empty:
            raise ValueError(f"{empty[0]!r} has an empty space: list its keys, or remove it")
        return self

    def space(self, kind: str, name: str) -> list[Dimension]:
        """Return the space of a ``row`` or a ``control``."""
        if kind == "control":
            return next(own for control, own in self.controls.items() if control == name)
        return [*self.search, *self.rows.get(name, ())]

    def keys(self, kind: str, name: str) -> list[str]:
        """Return all keys in the space of a ``row`` or a ``control``, sorted."""
        return sorted({key for dimension in self.space(kind, name) for key in keys_of(dimension)})
