"""The figures of a study's report, with titles and captions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from fed_distill.reporting.charts import write_figure
from fed_distill.reporting.wording import ROW_NAMES
from fed_distill.sweeps.curves import Tradeoff, curves, levels, offers
from fed_distill.sweeps.figures import bytes_figure, curve_figure, learning_figure, pareto_figure
from fed_distill.sweeps.headline_metric import metric_name
from fed_distill.sweeps.learning import Learning

DASHED = {name: ROW_NAMES[name] for name in ("server", "pooled")}
"""Displayed names of the controls that are drawn as levels."""


@dataclass(frozen=True)
class Chart:
    """A figure in the report. name: of its files and section."""

    name: str
    title: str
    caption: str
    svg: Markup


def draw_charts(results: pd.DataFrame, combinations: pd.DataFrame, learning: Learning, folder: Path) -> list[Chart]:
    """Draw every figure for which there are data, and write ``NAME.svg`` and ``NAME.png`` into ``folder``.

    Curves over ε require a finite ε, bytes a finished cell, learning curves a series with two validated rounds.
    """
    metric = metric_name(combinations)
    controls = levels(results, DASHED)
    ends = {level.name: level.value for level in controls}
    offered = offers(combinations)
    drawn = [
        _curves(combinations, folder, "score", ends, "accuracy", f"What privacy costs in {metric}",
            f"{metric} on the test set", "Bands and whiskers are 95 % intervals. Dashed: the students "
            "that the server trains without any merchant, and with everybody's data in one place. The scale does not "
            "begin at zero, so read differences, not heights; what lies far below is given as a number."),
        _curves(combinations, folder, "worst_merchant_accuracy", {}, "worst-merchant",
            "What it costs the merchant served worst", "accuracy at the worst merchant",
            "A mean can hide a merchant that is served badly. Looked for among the merchants with at least 20 test "
            "examples, if most have as many; it need not be the same one on every seed."),
        _curves(combinations, folder, "audit.auc", {"guessing": 0.5}, "attack", "What attackers achieve",
            "AUC of the attack", "How well an attacker tells examples that were used in training from others: 0.5 is "
            "guessing, 1 is certainty."),
        _bytes(offered, folder, ends, metric),
        _learning(learning, folder, metric),
        _pareto(offered, folder, ends, metric),
    ]  # fmt: skip
    return [chart for chart in drawn if chart is not None]


def _curves(
    combinations: pd.DataFrame,
    folder: Path,
    measure: str,
    dashed: Mapping[str, float],
    name: str,
    title: str,
    axis: str,
    caption: str,
) -> Chart | None:
    lines = curves(combinations, measure)
    if not any(math.isfinite(reading.epsilon) for line in lines for reading in line.readings):
        return None
    return Chart(name, title, caption, write_figure(curve_figure(lines, dashed, axis), folder, name, title))


def _bytes(offered: Sequence[Tradeoff], folder: Path, dashed: Mapping[str, float], metric: str) -> Chart | None:
    if not offered:
        return None
    title = f"What {metric} costs in bytes"
    caption = (
        "Bytes of the serialized messages that one merchant sends in all rounds. A larger mark is a larger ε; "
        "series that send the same stand side by side, and a line that leaves the figure leads to values far "
        "below."
    )
    figure = bytes_figure(offered, dashed, f"{metric} on the test set")
    return Chart("bytes", title, caption, write_figure(figure, folder, "bytes", title))


def _learning(learning: Learning, folder: Path, metric: str) -> Chart | None:
    if not any(len(curve.steps) > 1 for curve in learning.curves):
        return None
    title = f"How fast {metric} is learned"
    caption = (
        "A dot for each validated round, a mark at the last one. Dashed: the students that the server trains without "
        "any merchant, and with everybody's data in one place. Validation examples are none of the test set's."
    )
    figure = learning_figure(learning.curves, learning.levels, f"{metric} on validation")
    return Chart("learning", title, caption, write_figure(figure, folder, "learning", title))


def _pareto(offered: Sequence[Tradeoff], folder: Path, dashed: Mapping[str, float], metric: str) -> Chart | None:
    if not any(offer.epsilon is not None and math.isfinite(offer.epsilon) for offer in offered):
        return None
    title = "Which choices are worth considering"
    caption = (
        "Filled: no other choice has as much quality for as little ε and as few bytes (the Pareto front). Hollow: "
        "another one is at least as good in all three. A larger mark is more bytes; the line is the best quality for "
        "each ε."
    )
    figure = pareto_figure(offered, dashed, f"{metric} on the test set")
    return Chart("pareto", title, caption, write_figure(figure, folder, "pareto", title))
