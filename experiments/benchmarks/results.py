"""What an attempt measured, as a JSON line, and the table of a whole run.

A number in the table is the median over attempts of the median over an attempt's timed rounds; beside merchants/s
stands the slowest and the fastest attempt. Attempts that other processes disturbed count only where there is no other.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.benchmarks.contenders import CONTENDERS

DISTURBED = 0.1
"""Cores used by others from which on an attempt is only shown where there is no better one."""

OK, FAILED, NOT_INSTALLED = "ok", "failed", "not installed"


@dataclass(frozen=True)
class Attempt:
    """One contender's process.

    workload: fields of ``Workload``. steps: optimizer steps in a round. step_flops: of one step. status: ``OK``,
    ``FAILED`` or ``NOT_INSTALLED``; detail says why, or what to install. round_seconds: of the timed rounds.
    startup_seconds: from starting the process to its first timed round, less a round and compiling. peak_bytes: of
    GPU memory on a GPU, else resident memory of the process tree. ceiling: matrix-product operations per second.
    loss_before, loss_after: mean loss of the global student before the first and after the last round. others: cores
    that other processes used in the timed rounds. settings, machine: how and where it ran.
    """

    contender: str
    workload: dict[str, Any]
    steps: int
    status: str
    detail: str = ""
    step_flops: int | None = None
    round_seconds: tuple[float, ...] = ()
    startup_seconds: float | None = None
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    ceiling: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    others: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    started: str = ""

    @property
    def disturbed(self) -> bool:
        """Whether other processes used more than ``DISTURBED`` cores in the timed rounds."""
        return self.others is not None and self.others > DISTURBED

    @property
    def seconds(self) -> float:
        """Seconds of a round."""
        return statistics.median(self.round_seconds)

    @property
    def merchants_per_second(self) -> float:
        """Merchants trained and merged in a second."""
        return float(self.workload["merchants"] / self.seconds)

    @property
    def share(self) -> float | None:
        """Share of the ceiling that the counted matrix products reach."""
        if self.ceiling is None or self.step_flops is None:
            return None
        return self.step_flops * self.steps / self.seconds / self.ceiling


def append(path: Path, attempt: Attempt) -> None:
    """Add a line to a file of results."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(attempt)) + "\n")


def read(path: Path) -> list[Attempt]:
    """All lines of a file of results."""
    attempts = [Attempt(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return [replace(attempt, round_seconds=tuple(attempt.round_seconds)) for attempt in attempts]


def table(attempts: Sequence[Attempt]) -> str:
    """The attempts at one workload as a Markdown table, a row for each contender, in the contenders' order."""
    titles = {contender.name: contender.title for contender in CONTENDERS}
    by_name = {name: [each for each in attempts if each.contender == name] for name in titles}
    baseline = [each for each in by_name[CONTENDERS[0].name] if each.status == OK]
    baseline = [each for each in baseline if not each.disturbed] or baseline
    plain = _median(baseline, lambda each: each.seconds)
    rows = [_row(titles[name], tried, plain) for name, tried in by_name.items() if tried]
    return "\n".join("| " + " | ".join(row) + " |" for row in [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1), *rows])


HEADER = [
    "contender",
    "merchants/s (range)",
    "steps/s",
    "examples/s",
    "× plain loop",
    "peak memory",
    "of ceiling",
    "start-up",
    "compile",
    "loss",
    "others' cores",
]


def _row(title: str, tried: Sequence[Attempt], plain: float | None) -> list[str]:
    done = [each for each in tried if each.status == OK]
    if not done:
        return [title, f"{tried[0].status}: {tried[0].detail}", *[""] * (len(HEADER) - 2)]
    done = [each for each in done if not each.disturbed] or done
    rates = [each.merchants_per_second for each in done]
    seconds = _median(done, lambda each: each.seconds)
    assert seconds is not None
    workload = done[0].workload
    failed = sum(each.status == FAILED for each in tried)
    return [
        title + (f" ({failed} of {len(tried)} failed)" if failed else ""),
        f"{_figure(statistics.median(rates))} ({_figure(min(rates))}–{_figure(max(rates))})",
        _figure(done[0].steps / seconds),
        _figure(workload["merchants"] * workload["texts"] / seconds),
        "" if plain is None else f"{plain / seconds:.2f}",
        _show(_median(done, lambda each: each.peak_bytes), lambda value: f"{value / 2**20:,.0f} MiB"),
        _show(_median(done, lambda each: each.share), lambda value: f"{100 * value:.2g} %"),
        _show(_median(done, lambda each: each.startup_seconds), lambda value: f"{value:.1f} s"),
        _show(_median(done, lambda each: each.compile_seconds), lambda value: f"{value:.1f} s"),
        f"{done[0].loss_before:.4f} → {_median(done, lambda each: each.loss_after):.4f}",
        _show(_median(done, lambda each: each.others), lambda value: f"{value:.2f}"),
    ]


def _median(attempts: Iterable[Attempt], value: Callable[[Attempt], float | None]) -> float | None:
    known = [measured for each in attempts if (measured := value(each)) is not None]
    return statistics.median(known) if known else None


def _show(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
