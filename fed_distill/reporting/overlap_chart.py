"""The chart of a campaign's overlap: how probable the treatment was for the treated customers and for the others.

Where one arm has no customer, an effect is extrapolated. Imports are slow: import this module where a report is
written.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fed_distill.errors import CheckpointError
from fed_distill.reporting import charts
from fed_distill.reporting.campaign_effect import EFFECTS
from fed_distill.reporting.wording import percent

Count = Annotated[int, Field(ge=0)]


class PropensityHistogram(BaseModel):
    """Customers of both arms by propensity.

    edges: of the bins, ascending ``[bins + 1]``. treated, control: customers by bin ``[bins]``. clipped: share of the
    customers whose propensity was clipped. effective: effective sizes of the arms, treated first.
    """

    model_config = ConfigDict(extra="forbid")

    edges: list[float]
    treated: list[Count]
    control: list[Count]
    clipped: float
    effective: tuple[float, float]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if not len(self.edges) - 1 == len(self.treated) == len(self.control) or self.edges != sorted(self.edges):
            raise ValueError("edges are not those of the bins")
        if not sum(self.treated) or not sum(self.control):
            raise ValueError("an arm has no customer")
        return self


class _Effect(BaseModel):
    overlap: PropensityHistogram | None = None


def read_overlap(folder: Path) -> PropensityHistogram | None:
    """Return the overlap of a run's ``campaign_effect.json``; None for a run without it, or with one arm only.

    :raises CheckpointError: the file is damaged
    """
    path = folder / EFFECTS
    if not path.exists():
        return None
    try:
        return _Effect.model_validate_json(path.read_text(encoding="utf-8")).overlap
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: restore a copy of it, or delete it and resume the run") from error


def overlap(found: PropensityHistogram | None) -> Markup:
    """Draw the overlap; empty without."""
    if found is None:
        return Markup("")
    draw = partial(overlap_figure, found)
    return charts.responsive(draw, "overlap", "Propensity of the treated customers and of the others")


@charts.styled
def overlap_figure(found: PropensityHistogram) -> Figure:
    """Draw shares of the treated upwards and of the others downwards, by propensity."""
    figure, axes = charts.empty_figure("share of the arm's customers")
    width = min(high - low for low, high in zip(found.edges, found.edges[1:], strict=False))
    arms: Mapping[str, tuple[list[int], int, int]] = {
        "treated": (found.treated, 1, 0),
        "others": (found.control, -1, 1),
    }
    labels = []
    for name, (counts, side, series) in arms.items():
        total, color = sum(counts), charts.Look(series).color
        for low, high, count in zip(found.edges, found.edges[1:], counts, strict=False):
            if not count:
                continue
            (bar,) = axes.bar(
                (low + high) / 2, side * count / total, 0.86 * width, color=color, hatch="" if series == 0 else "///",
                edgecolor=charts.PAPER, linewidth=0.0,
            )  # fmt: skip
            charts.tipped(
                bar, f"{name}, propensity {low:g} to {high:g}: {count:,} of {total:,} ({percent(count / total, 1)})"
            )
        labels.append((side * max(counts) / total / 2, name, color))
    axes.axhline(0.0, color=charts.SOFT, linewidth=0.9)
    axes.set_xlim(found.edges[0], found.edges[-1])
    axes.set_xlabel("propensity: probability of being treated", color=charts.SOFT)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(abs(value))))
    charts.label_right(axes, labels)
    return figure
