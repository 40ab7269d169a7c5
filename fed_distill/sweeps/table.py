"""The combinations of a study as a text table, for the terminal, a README and the report."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from fed_distill.config import CONTROLS
from fed_distill.reporting.differences import REFERENCES
from fed_distill.reporting.headline import probability
from fed_distill.reporting.wording import ROW_NAMES, UNKNOWN, duration, number, percent, signed, size
from fed_distill.sweeps.axes import GAIN
from fed_distill.sweeps.collect import WHITE_BOX
from fed_distill.sweeps.control_groups import ControlGroup, control_groups
from fed_distill.sweeps.curves import Row, epsilon_of, levels
from fed_distill.sweeps.findings import epsilon_text
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.headline_metric import metric_name, metric_names
from fed_distill.sweeps.samples import NO_UNITS, UnitTable, control_above


def summary_cells(
    study: Study, results: pd.DataFrame, combinations: pd.DataFrame, units: UnitTable = NO_UNITS
) -> list[list[str]]:
    """Return the header, then a line per control and combination; ± is the half-width of the 95 % interval, and p of a
    paired difference to a control is adjusted by Holm's correction (``collect.combinations_table``).

    Controls are lines above the combinations that are compared with them (``control_groups``). If each combination has
    controls of its own, the server's student is a column instead. Columns without any value are omitted.
    """
    axes, groups = [axis.name for axis in study.axes], control_groups(study, results, combinations)
    header = [*axes, "metric", "cells", "ε", "δ", metric_name(combinations), "AUC"]
    header += [ROW_NAMES["server"], f"{ROW_NAMES['server']}: AUC"]
    header += [title for name in REFERENCES for title in (f"above {name}", f"p ({name})")]
    header += [f"{GAIN}{study.baseline[1] if study.baseline else ''}", "p (gain)", "in AUC"]
    header += ["with BM25", "with BM25 above server"]
    header += ["worst merchant", "worst tenth", "own students", "above global"]
    header += ["cold start", "cold start above server"]
    header += ["retention", "gap closed", "attack AUC", "ε at least (text)", *WHITE_BOX, "sent", "in all", "time"]
    several = len(metric_names(combinations)) > 1
    lines: list[dict[str, str]] = []
    for group in groups:
        levels_shown = _control_lines(group, header, units)
        own = [_combination_line(row, axes, header, not levels_shown) for row in group.rows]
        metric = metric_name(pd.DataFrame(group.rows)) if several else ""
        lines += [{**line, "metric": metric} for line in (*levels_shown, *own)]
    table = [[line.get(title, UNKNOWN) for title in header] for line in lines]
    kept = [place for place, title in enumerate(header) if title in axes or _has_values(table, place)]
    return [[line[place] for place in kept] for line in [header, *table]]


def _control_lines(group: ControlGroup, header: Sequence[str], units: UnitTable) -> list[dict[str, str]]:
    """Return the cells of each measured control's line by title; those of axes and of numbers of cells are empty.

    What ``student`` is above ``server`` is what a teacher adds, with a minus.
    """
    names: dict[str, str] = {name: ROW_NAMES[name] for name in CONTROLS}
    keys = {shown: name for name, shown in names.items()}
    aucs, colds, sums = (
        {level.name: _with_interval(level.value, level.half_width) for level in levels(group.controls, names, of)}
        for of in ("control_auc", "control_cold", "control_with_bm25")
    )
    empty = header[: header.index("δ") + 1]
    score = header[len(empty)]

    def above(name: str, reference: str, units: UnitTable | None = units, of: str = "control") -> str:
        found = control_above(group.controls, keys[name], reference, units, of)
        return UNKNOWN if found is None else _with_interval(found.value, found.half_width, signed)

    return [
        {
            **dict.fromkeys(empty, ""),
            **group.labels,
            group.place: level.name,
            score: _with_interval(level.value, level.half_width),
            "AUC": aucs.get(level.name, UNKNOWN),
            "cold start": colds.get(level.name, UNKNOWN),
            "cold start above server": above(level.name, "server", None, "control_cold"),
            "with BM25": sums.get(level.name, UNKNOWN),
            "with BM25 above server": above(level.name, "server", None, "control_with_bm25"),
            **{f"above {reference}": above(level.name, reference) for reference in REFERENCES},
        }
        for level in levels(group.controls, names, units=units)
    ]


def _combination_line(row: Row, axes: Sequence[str], header: Sequence[str], with_server: bool) -> dict[str, str]:
    """Return the cells of a combination's line by title. with_server: if no line has the server."""
    epsilon = epsilon_of(row)
    gain, score = header[header.index("p (gain)") - 1], header[header.index("δ") + 1]
    server = {ROW_NAMES["server"]: "control.server", f"{ROW_NAMES['server']}: AUC": "control_auc.server"}
    return {
        **{name: "∞" if row[name] == "inf" else str(row[name]) for name in axes},
        "cells": f"{row['seeds']} of {row['of']}",
        "ε": UNKNOWN if epsilon is None else epsilon_text(epsilon),
        "δ": UNKNOWN if math.isnan(row["privacy.delta"]) else f"{row['privacy.delta']:.1e}",
        score: _of(row, "score"),
        "AUC": _of(row, "auc"),
        **({title: _of(row, name) for title, name in server.items()} if with_server else {}),
        **{f"above {name}": _of(row, f"above_{name}", signed) for name in REFERENCES},
        **{f"p ({name})": _p_value(row[f"above_{name}_p"]) for name in REFERENCES},
        gain: _of(row, "gain", signed),
        "p (gain)": _p_value(row["gain_p"]),
        "in AUC": _of(row, "gain_auc", signed),
        "with BM25": _of(row, "with_bm25"),
        "with BM25 above server": _of(row, "with_bm25_above_server", signed),
        "worst merchant": number(_known(row["worst_merchant_accuracy"]), 3),
        "worst tenth": number(_known(row["worst_tenth"]), 3),
        "own students": _of(row, "own_students"),
        "above global": _of(row, "own_above_global", signed),
        "cold start": _of(row, "cold"),
        "cold start above server": _of(row, "cold_above_server", signed),
        "retention": percent(_known(row["retention"]), 1),
        "gap closed": percent(_known(row["gap_closed"])),
        "attack AUC": number(_known(row["audit.auc"]), 3),
        "ε at least (text)": number(_known(row["audit.epsilon_lower_bound"]), 2),
        **{title: number(_known(row[name]), 2) for title, name in WHITE_BOX.items()},
        "sent": size(_known(row["sent_bytes"])),
        "in all": size(_known(row["total_bytes"])),
        "time": duration(_known(row["seconds"])),
    }


def _of(row: Row, name: str, written: Callable[[float], str] = number) -> str:
    return _with_interval(row[name], row[f"{name}_interval"], written)


def markdown(lines: Sequence[Sequence[str]], axes: int) -> str:
    """Return ``summary_cells`` as a Markdown table; the first ``axes`` columns are names."""
    rule = ["---"] * axes + ["---:"] * (len(lines[0]) - axes)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [escaped[0], rule, *escaped[1:]])


def _has_values(lines: Sequence[Sequence[str]], place: int) -> bool:
    return any(line[place] not in ("", UNKNOWN, "∞") for line in lines)


def _p_value(value: float) -> str:
    return UNKNOWN if math.isnan(value) else probability(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _with_interval(value: float, half: float | None, written: Callable[[float], str] = number) -> str:
    return (
        UNKNOWN
        if math.isnan(value)
        else written(value) + ("" if half is None or math.isnan(half) else f" ± {number(half)}")
    )
