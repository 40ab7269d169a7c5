"""The log of a study's trials: one JSON line for each finished trial, in a file that is only appended to.

It holds every trial that was ever run in the study's folder, with its settings and score, so that a row that was tried
more often than others cannot be hidden: ``check_equal`` refuses it.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fed_distill.errors import CheckpointError
from fed_distill.storage.files import space_for, strict_json, write_atomic

TRIALS = "trials.jsonl"


class Row(NamedTuple):
    """What is tuned. kind: ``row`` of the axis, or ``control``; name: its label."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"control {self.name}" if self.kind == "control" else self.name


@dataclass(frozen=True)
class Logged:
    """A finished trial.

    kind, name: its row. trial: its number, from 0, the file's settings. settings: values by key. metric: the objective.
    score: on validation examples; None if training diverged, which `reason` says. seconds: duration of the run. cell:
    fingerprint of its run.
    """

    kind: str
    name: str
    trial: int
    settings: Mapping[str, Any]
    metric: str
    score: float | None
    reason: str
    seconds: float | None
    cell: str

    def __post_init__(self) -> None:
        known = self.score is None or (isinstance(self.score, int | float) and math.isfinite(self.score))
        if not known or not isinstance(self.trial, int):
            raise ValueError("score and trial must be numbers")

    @property
    def row(self) -> Row:
        """The row that was tried."""
        return Row(self.kind, self.name)


class TrialLog:
    """The log in the folder of a study; one process at a time writes it (``places.locked``)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRIALS

    def read(self) -> list[Logged]:
        """Return all trials without a torn last line; raise CheckpointError if another line is damaged."""
        found = []
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                found.append(Logged(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"{self.path}, line {number} is not a trial: restore a copy of it") from error
        return found

    def append(self, trial: Logged) -> None:
        """Append a trial and flush it to disk."""
        line = strict_json(asdict(trial), TRIALS) + "\n"
        with space_for(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def drop_torn_line(self) -> None:
        """Remove an incomplete last line, which a killed process left."""
        whole = "".join(f"{line}\n" for line in self._whole_lines())
        if self.path.exists() and self.path.read_text(encoding="utf-8", errors="replace") != whole:
            write_atomic(self.path, whole)

    def _whole_lines(self) -> list[str]:
        if not self.path.exists():
            return []
        return self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def check_equal(planned: Mapping[Row, Sequence[str]], log: TrialLog) -> None:
    """Raise CheckpointError unless each row has exactly its planned trials, once each and scored alike.

    :param planned: fingerprints of the trials of each row
    :param log: the trials that were run
    """
    ran: dict[Row, set[str]] = {row: set() for row in planned}
    metrics: set[str] = set()
    for trial in log.read():
        if trial.row not in ran:
            continue
        if trial.cell in ran[trial.row]:
            raise CheckpointError(f"{log.path} has trial {trial.trial} of {trial.row} twice: restore a copy of it")
        ran[trial.row].add(trial.cell)
        metrics |= {trial.metric} if trial.score is not None else set()
    if len(metrics) > 1:
        raise CheckpointError(
            f"{log.path} has scores of {' and of '.join(sorted(metrics))}, which cannot be compared: use one "
            "tuning.objective, or another --out"
        )
    for row, cells in planned.items():
        more = len(ran[row] - set(cells))
        if more:
            raise CheckpointError(
                f"{log.path} has {more} trial{'s' if more > 1 else ''} of {row} with other settings than the file's "
                "[tuning] table draws, so that its rows were not tried equally often: use another --out"
            )
    counts = {row: len(ran[row] & set(cells)) for row, cells in planned.items()}
    short = [
        f"{row} has {counts[row]} of {len(cells)} trials" for row, cells in planned.items() if counts[row] < len(cells)
    ]
    if short:
        raise CheckpointError(
            f"{log.path}: {', '.join(short)}; rows are compared after equally many trials: continue the study without "
            "--report-only"
        )
