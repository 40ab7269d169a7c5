"""Combinations of a study by the controls that they are compared with.

Cells whose data, teacher or student differ have controls of their own: a study over tasks has those of each task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fed_distill.sweeps.curves import Row
from fed_distill.sweeps.grid import Study


@dataclass(frozen=True)
class ControlGroup:
    """Combinations with the same controls.

    labels: label by axis in which the combinations do not differ; empty if the group is the whole study. place: axis
    whose column names a control. controls: the results of the controls' cells. rows: the combinations.
    """

    labels: Mapping[str, str]
    place: str
    controls: pd.DataFrame
    rows: Sequence[Row]


def control_groups(study: Study, results: pd.DataFrame, combinations: pd.DataFrame) -> list[ControlGroup]:
    """Return the groups in the study's order.

    It is one group without the controls' results if some combination has controls that no other one has: a line for
    each control would then tell no more than a column does.
    """
    axes, rows = [axis.name for axis in study.axes], combinations.to_dict("records")
    controls = results[results["role"] == "controls"]
    if not controls[["data_seed", "seed"]].duplicated().any():
        return [ControlGroup({}, axes[0], controls, rows)]
    cells = results[results["role"] == "cell"]
    used = {labels: frozenset(group["controls"]) for labels, group in cells.groupby(axes, sort=False)}
    groups: dict[frozenset[Any], list[Row]] = {}
    for row in rows:
        groups.setdefault(used[tuple(row[name] for name in axes)], []).append(row)
    found = []
    for fingerprints, own in groups.items():
        differing = [name for name in axes if len({row[name] for row in own}) > 1]
        if not differing:
            return [ControlGroup({}, axes[0], controls.iloc[:0], rows)]
        labels = {name: str(own[0][name]) for name in axes if name not in differing}
        found.append(ControlGroup(labels, differing[0], controls[controls["fingerprint"].isin(fingerprints)], own))
    return found
