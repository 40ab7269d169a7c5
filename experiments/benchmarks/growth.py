"""How a whole run grows with its merchants: generated ones, a tiny student, one round in process, and what it took.

The student is tiny so that what is left is what a merchant costs whoever trains it: reading, dealing, asking, merging,
counting, reporting. What a real student costs is in ``constants.py``.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.watch import Watch
from fed_distill import Experiment, run
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.store import REPORT, SUMMARY
from fed_distill.storage.parts import CHECKPOINT, RunPart

METHOD = "fedavg-kd"
ROWS = 12
"""Offers of a merchant; fewer would leave some without a test example."""


@dataclass(frozen=True)
class Growth:
    """What a run of so many client merchants took.

    examples: training examples of all of them. data_seconds: from the start until the server has read the data; the
    sites read them once more. round_seconds: of the one round. seconds: of the whole run. These are CPU seconds of the
    process. peak_bytes: most resident memory. summary_bytes, report_bytes, checkpoint_bytes: of ``summary.json``, the
    report, and the federation's checkpoint.
    """

    merchants: int
    examples: int
    data_seconds: float
    round_seconds: float
    seconds: float
    peak_bytes: int | None
    summary_bytes: int
    report_bytes: int
    checkpoint_bytes: int


class _Clock(Callback):
    """CPU seconds at the run's stations."""

    def __init__(self) -> None:
        self.began = time.process_time()
        self.read = self.stage = self.round = self.began

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        self.read = time.process_time()

    def on_stage(self, title: str, total: int | None) -> None:
        self.stage = time.process_time()

    def on_round(self, record: Mapping[str, Any]) -> None:
        self.round = time.process_time() - self.stage


def grown(merchants: int) -> Growth:
    """Run a federation of about so many generated merchants; a hundredth of them, and ten at least, are public."""
    with tempfile.TemporaryDirectory(prefix="growth") as scratch:
        watch, clock = Watch(os.getpid()), _Clock()
        try:
            result = run(experiment(merchants, Path(scratch)), [clock])
            ended = time.process_time()
            peak = watch.peak(time.monotonic())
        finally:
            watch.close()
        part = RunPart(result.folder / CHECKPOINT, 0, "federation", METHOD)
        data = result.summary["data"]
        return Growth(
            merchants=result.summary["merchants"],
            examples=data["examples"]["train"],
            data_seconds=clock.read - clock.began,
            round_seconds=clock.round,
            seconds=ended - clock.began,
            peak_bytes=peak,
            summary_bytes=(result.folder / SUMMARY).stat().st_size,
            report_bytes=(result.folder / REPORT).stat().st_size,
            checkpoint_bytes=part.rounds.stat().st_size,
        )


def experiment(merchants: int, folder: Path) -> Experiment:
    """One round over generated merchants, with the smallest teacher and student that there are."""
    world = {"merchants": merchants, "rows": ROWS, "size_spread": 0.2, "products": 5_000, "languages": ["en"]}
    pairs = {"pairs_per_row": 1, "max_pairs": ROWS, "ranking_queries": 20, "ranking_candidates": 10}
    return Experiment.parse(
        {
            "name": "growth",
            "controls": [],
            "data": {
                "dataset": "marketplace",
                "options": {**world, **pairs},
                "public_share": max(0.01, 10 / merchants),
                "min_rows": 2,
                "proxy_size": 64,
            },
            "teacher": {
                "model": "bert-small",
                "options": {"layers": 1, "width": 32, "heads": 2},
                "epochs": 1,
                "max_examples": 64,
            },
            "student": {"model": "two-tower", "options": {"rows": 256, "width": 8, "head_width": 8}},
            "training": {"server": {"epochs": 1}, "local": {"epochs": 1}, "merchants": {"learning_rate": 0.01}},
            "federation": {"method": METHOD, "options": {"proxy_steps": 1}, "rounds": 1},
            "adaptation": {"enabled": False},
            "runtime": {
                "folder": str(folder / "runs"),
                "cache": str(folder / "cache"),
                "callbacks": [],
                "threads": 1,
                "measure_speed": False,
            },
        }
    )
