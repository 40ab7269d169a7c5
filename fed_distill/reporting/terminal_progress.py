"""Terminal progress of a run: live lines with rich, or plain lines without a terminal.

Plain lines are limited: start and quarters of a stage, one per minute in between, and at most twenty rounds of a
federation.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

from fed_distill.config import Experiment
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.wording import METRIC_NAMES

ROUND_LINES = 20
"""Maximum number of plain lines for the rounds of one federation."""
PATIENCE = 60.0
"""Seconds after which a stage gets a plain line, even if no further quarter is finished."""


class ProgressBars(Callback):
    """Shows stage, round, merchants, loss, validation metric and remaining time."""

    def __init__(self, console: Console | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._said = now, now()
        self._console = console or Console(stderr=True)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._total: int | None = None
        self._done = 0

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Print the experiment and its folder."""
        methods = ", ".join(federation.title for federation in experiment.federations())
        data = experiment.data
        self._print(f"run {experiment.name}: {data.task} on {data.dataset}, {methods}; folder {folder}")
        if self._console.is_terminal:
            self._bars = Bars(
                SpinnerColumn(finished_text="✓"),
                TextColumn("{task.description}", table_column=whole()),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}", table_column=whole()),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=self._console,
            )
            self._bars.start()

    def on_stage(self, title: str, total: int | None) -> None:
        """Finish the previous stage and begin this one."""
        self._finish_task()
        self._title, self._total, self._done = title, total, 0
        if self._bars is not None:
            self._task = self._bars.add_task(escape(title), total=total, facts="")
        else:
            self._print(title)

    def on_step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Advance the stage; print plain lines at its quarters and after ``PATIENCE`` seconds."""
        shown = dict(metrics)
        steps = shown.pop("steps", None)
        if self._total is None and steps is not None:
            self._total = int(steps)
        facts = " · ".join(f"{METRIC_NAMES.get(name, name)} {value:.4g}" for name, value in shown.items())
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=self._total, facts=escape(facts))
        elif self._total is not None and (
            _quarter(done, self._total) > _quarter(self._done, self._total) or self._now() - self._said >= PATIENCE
        ):
            self._print(f"{self._title}: {done} of {self._total}" + (f" · {facts}" if facts else ""))
        self._done = done

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Show the round's loss and validation metrics; with many rounds, print every n-th as a plain line."""
        done, total = int(record["round"]), int(record["rounds"])
        self._total = total
        facts = round_facts(record)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, facts=escape(facts))
        elif done == total or done % math.ceil(total / ROUND_LINES) == 0:
            self._print(f"{self._title}: round {done} of {total} · {facts}")
        self._done = done

    def on_message(self, text: str) -> None:
        """Print above the live line."""
        self._print(text)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Finish the last stage."""
        self._finish_task()
        self.close()

    def close(self) -> None:
        """Restore the terminal and its cursor."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _finish_task(self) -> None:
        if self._bars is not None and self._task is not None:
            reached = self._total if self._total is not None else max(1, self._done)
            self._bars.update(self._task, total=reached, completed=reached)
            self._task = None

    def _print(self, text: str) -> None:
        self._said = self._now()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def whole() -> Column:
    """Return a column of live lines whose text goes on in the next line of a narrow terminal, instead of being cut:
    two labels that begin alike stay apart."""
    return Column(overflow="fold", no_wrap=False)


def round_facts(record: Mapping[str, Any]) -> str:
    """Format a round in one line: merchants, rejected ones, training loss and known validation metrics."""
    facts = [f"{record['merchants']} merchants"]
    if record.get("rejected"):
        facts.append(f"{record['rejected']} rejected")
    if record.get("train_loss") is not None:
        facts.append(f"loss {record['train_loss']:.4f}")
    valid = record.get("valid", {})
    metric = next((name for name in ("ndcg@10", "qini", "macro_f1", "accuracy") if valid.get(name) is not None), None)
    if metric is not None:
        facts.append(f"validation {METRIC_NAMES[metric]} {valid[metric]:.4f}")
    return " · ".join(facts)


def _quarter(done: int, total: int) -> int:
    return 4 * done // max(1, total)
