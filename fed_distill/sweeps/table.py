"""The combinations of a study as a text table, for the terminal, a README and the report."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from fed_distill.config import CONTROLS
from fed_distill.reporting.differences import REFERENCES
from fed_distill.reporting.headline import probability
from fed_distill.reporting.wording import METRIC_NAMES, ROW_NAMES, UNKNOWN, duration, number, percent, signed, size
from fed_distill.sweeps.collect import WHITE_BOX
from fed_distill.sweeps.curves import epsilon_of, levels
from fed_distill.sweeps.findings import epsilon_text
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.samples import NO_QUERIES, QueryTable, control_above


def summary_cells(
    study: Study, results: pd.DataFrame, combinations: pd.DataFrame, queries: QueryTable = NO_QUERIES
) -> list[list[str]]:
    """Return the header, then a line per control and combination; ± is the half-width of the 95 % interval, and p of a
    paired difference to a control is adjusted by Holm's correction (``collect.combinations_table``).

    A control that differs between cells of one seed, such as the server's student, is a column instead of a line.
    Columns without any value are omitted.
    """
    metric = next((str(name) for name in combinations["run.headline"] if isinstance(name, str)), "score")
    axes = [axis.name for axis in study.axes]
    header = [*axes, "cells", "ε", "δ", METRIC_NAMES.get(metric, metric), "AUC"]
    header += [ROW_NAMES["server"], f"{ROW_NAMES['server']}: AUC"]
    header += [title for name in REFERENCES for title in (f"above {name}", f"p ({name})")]
    header += [f"gain over {study.baseline[1] if study.baseline else ''}", "in AUC", "worst merchant", "worst tenth"]
    header += ["cold start", "cold start above server"]
    header += ["retention", "gap closed", "attack AUC", "ε at least (text)", *WHITE_BOX, "sent", "in all", "time"]
    names: dict[str, str] = {name: ROW_NAMES[name] for name in CONTROLS}
    aucs, colds = (
        {level.name: _with_interval(level.value, level.half_width) for level in levels(results, names, of)}
        for of in ("control_auc", "control_cold")
    )
    after = len(header) - header.index("cold start") - 1
    keys = {shown: name for name, shown in names.items()}
    lines = [
        [
            level.name,
            *[""] * (len(axes) + 2),
            _with_interval(level.value, level.half_width),
            aucs.get(level.name, UNKNOWN),
            UNKNOWN,
            UNKNOWN,
            *(
                text
                for reference in REFERENCES
                for text in (_control_above(results, keys[level.name], reference, queries), UNKNOWN)
            ),
            *[UNKNOWN] * (len(header) - len(axes) - 8 - 2 * len(REFERENCES) - after),
            colds.get(level.name, UNKNOWN),
            *[UNKNOWN] * after,
        ]
        for level in levels(results, names, queries=queries)
    ]
    shared = bool(lines)
    for row in combinations.to_dict("records"):
        epsilon = epsilon_of(row)
        lines.append(
            [
                *("∞" if row[name] == "inf" else str(row[name]) for name in axes),
                f"{row['seeds']} of {row['of']}",
                UNKNOWN if epsilon is None else epsilon_text(epsilon),
                UNKNOWN if math.isnan(row["privacy.delta"]) else f"{row['privacy.delta']:.1e}",
                _with_interval(row["score"], row["score_interval"]),
                _with_interval(row["auc"], row["auc_interval"]),
                *(
                    UNKNOWN if shared else _with_interval(row[f"{name}.server"], row[f"{name}.server_interval"])
                    for name in ("control", "control_auc")
                ),
                *(
                    text
                    for name in REFERENCES
                    for text in (
                        _with_interval(row[f"above_{name}"], row[f"above_{name}_interval"], signed),
                        UNKNOWN if math.isnan(row[f"above_{name}_p"]) else probability(row[f"above_{name}_p"]),
                    )
                ),
                _with_interval(row["gain"], row["gain_interval"], signed),
                _with_interval(row["gain_auc"], row["gain_auc_interval"], signed),
                number(_known(row["worst_merchant_accuracy"]), 3),
                number(_known(row["worst_tenth"]), 3),
                _with_interval(row["cold"], row["cold_interval"]),
                _with_interval(row["cold_above_server"], row["cold_above_server_interval"], signed),
                percent(_known(row["retention"]), 1),
                percent(_known(row["gap_closed"])),
                number(_known(row["audit.auc"]), 3),
                number(_known(row["audit.epsilon_lower_bound"]), 2),
                *(number(_known(row[name]), 2) for name in WHITE_BOX.values()),
                size(_known(row["sent_bytes"])),
                size(_known(row["total_bytes"])),
                duration(_known(row["seconds"])),
            ]
        )
    kept = [place for place, title in enumerate(header) if title in axes or _has_values(lines, place)]
    return [[line[place] for place in kept] for line in [header, *lines]]


def _control_above(results: pd.DataFrame, control: str, reference: str, queries: QueryTable) -> str:
    """Return a control's paired difference to another one; that of ``student`` to ``server`` is what a teacher adds,
    with a minus."""
    found = control_above(results, control, reference, queries)
    return UNKNOWN if found is None else _with_interval(found.value, found.half_width, signed)


def markdown(lines: Sequence[Sequence[str]], axes: int) -> str:
    """Return ``summary_cells`` as a Markdown table; the first ``axes`` columns are names."""
    rule = ["---"] * axes + ["---:"] * (len(lines[0]) - axes)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [escaped[0], rule, *escaped[1:]])


def _has_values(lines: Sequence[Sequence[str]], place: int) -> bool:
    return any(line[place] not in ("", UNKNOWN, "∞") for line in lines)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _with_interval(value: float, half: float | None, written: Callable[[float], str] = number) -> str:
    return (
        UNKNOWN
        if math.isnan(value)
        else written(value) + ("" if half is None or math.isnan(half) else f" ± {number(half)}")
    )
