"""The cells of a combination as samples: scores by data seed, training seed and, for the headline metric, test unit."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fed_distill.evaluation.shares import YARDSTICKS, Share, gap_closed
from fed_distill.evaluation.statistics import Estimate, Sample, difference, estimate
from fed_distill.reporting.unit_scores import read_unit_scores
from fed_distill.sweeps.cells import Cell
from fed_distill.sweeps.places import Places

OWN = "score"
"""The column of a cell's own headline score; those of its controls are ``control.NAME``."""


@dataclass(frozen=True)
class UnitTable:
    """Headline scores by test unit: fingerprint of a cell -> column -> scores. A cell is absent if it has none."""

    cells: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @classmethod
    def read(cls, cells: Sequence[Cell], places: Places, controls: Sequence[str]) -> "UnitTable":
        """Read the scores of all finished cells; a control ``fedavg`` is the federation of the cell of controls.

        :raises CheckpointError: a file is damaged
        """
        files: dict[str, dict[tuple[str, str], Sequence[float]]] = {}
        for name in {one for cell in cells for one in (cell.fingerprint, cell.controls) if one is not None}:
            if places.is_finished(name):
                files[name] = {(row.kind, row.name): row.scores for row in read_unit_scores(places.run(name))}
        found = {}
        for cell in cells:
            own = next(
                (scores for (kind, _), scores in files.get(cell.fingerprint, {}).items() if kind == "federation"), None
            )
            beside = files.get(cell.controls or cell.fingerprint, {})
            columns = {} if own is None else {OWN: own}
            for control in controls:
                scores = beside.get(("federation" if control == "fedavg" else "control", control))
                if scores is not None:
                    columns[f"control.{control}"] = scores
            found[cell.fingerprint] = columns
        return cls(found)

    def of(self, row: Mapping[Hashable, Any], column: str) -> Sequence[float] | None:
        """Return the scores of a cell; None if they are not known."""
        return self.cells.get(str(row["fingerprint"]), {}).get(column)


NO_UNITS = UnitTable()
"""Of a study whose cells have no scores by unit."""


def sample_of(rows: pd.DataFrame, column: str, units: UnitTable | None = None) -> Sample | None:
    """Return the values of finished cells as a sample, by data seed and in order of training seeds.

    :param rows: cells of one combination
    :param column: a column of the results
    :param units: scores by unit, used if all cells have them; None for a column of another metric than the headline
    :returns: None if a value is missing, because a mean over some cells would be biased
    """
    if rows.empty or rows[column].isna().any():
        return None
    found = []
    for _, group in rows.groupby("data_seed", dropna=False, sort=True):
        ordered = group.sort_values("seed").to_dict("records")
        by_unit = [None if units is None else units.of(row, column) for row in ordered]
        known = [scores for scores in by_unit if scores is not None]
        if len(known) == len(ordered) and len({len(scores) for scores in known}) == 1:
            found.append(np.array(known, dtype=np.float64))
        else:
            found.append(np.array([[row[column]] for row in ordered], dtype=np.float64))
    if len({part.shape[1] > 1 for part in found}) > 1:  # some cells are of a version without scores by unit
        found = [part.mean(axis=1, keepdims=True) for part in found]
    return found


def shared_of(rows: pd.DataFrame) -> float:
    """Return what the data seeds of cells share (``statistics.estimate``)."""
    return float(rows["test_to_train"].max())


def above(rows: pd.DataFrame, reference: str, units: UnitTable) -> Estimate | None:
    """Estimate the paired difference of the headline score to a control's; None if one is missing."""
    ours, theirs = _same(sample_of(rows, OWN, units), sample_of(rows, f"control.{reference}", units))
    return None if ours is None or theirs is None else estimate(difference(ours, theirs), shared_of(rows))


def gain_estimate(rows: pd.DataFrame, units: UnitTable) -> Estimate | None:
    """Estimate the paired difference of the headline score to that of each cell's baseline; None without one.

    It is paired by test unit only where both were tested on the same data: axes may change those.
    """
    if rows.empty or rows["gain"].isna().any():
        return None
    of_baseline = rows.assign(**{"fingerprint": rows["baseline"], OWN: rows[OWN] - rows["gain"]})  # its own score
    shared = units if rows["same_test_data"].all() else None
    ours, theirs = _same(sample_of(rows, OWN, shared), sample_of(of_baseline, OWN, shared))
    return None if ours is None or theirs is None else estimate(difference(ours, theirs), shared_of(rows))


def control_above(
    results: pd.DataFrame, control: str, reference: str, units: UnitTable | None, of: str = "control"
) -> Estimate | None:
    """Estimate the paired difference of two controls; None if one is missing for a seed, or they are the same.

    :param units: scores by test unit; None for another ``of`` than ``control``
    :param of: see ``curves.levels``
    """
    rows = results[results["role"] == "controls"]
    columns = [f"{of}.{control}", f"{of}.{reference}"]
    if control == reference or rows.empty or rows[columns].isna().any(axis=None):
        return None
    ours, theirs = _same(*(sample_of(rows, column, units) for column in columns))
    return None if ours is None or theirs is None else estimate(difference(ours, theirs), shared_of(rows))


def gap_of(rows: pd.DataFrame, prefix: str, own: str, units: UnitTable | None) -> Share:
    """Return the gap closed by a combination. prefix: ``control`` or ``control_auc``, for the column ``own``."""
    samples = [sample_of(rows, column, units) for column in (own, *(f"{prefix}.{name}" for name in YARDSTICKS))]
    student, *controls = _same(*samples)
    return gap_closed(student, dict(zip(YARDSTICKS, controls, strict=True)), shared_of(rows))


def _same(*samples: Sample | None) -> Sequence[Sample | None]:
    """Return samples of equal shapes: where one has no scores by unit, the means over units of all."""
    shapes = {tuple(part.shape for part in sample) for sample in samples if sample is not None}
    if len(shapes) <= 1:
        return samples
    return [None if one is None else [part.mean(axis=1, keepdims=True) for part in one] for one in samples]
