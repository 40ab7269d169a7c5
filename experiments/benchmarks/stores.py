"""All stores of the Complete Journey in one round: the cohort trainer beside a loop over merchants.

``python experiments/benchmarks/stores.py`` prints a table. Each attempt is a process of its own with one thread; all
train the same examples of next-basket, from the same weights. The first round warms up. Seconds are CPU seconds, so
that a busy machine spoils little, and speed and memory are given as ratios to the plain loop of the same run too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks import ours, plain
from experiments.benchmarks.contenders import Clock, Settings
from experiments.benchmarks.watch import Watch
from experiments.benchmarks.workload import Cohort, Shop, Weights, Workload
from fed_distill import seeds
from fed_distill.config import DataConfig
from fed_distill.data.dataset import HasParts
from fed_distill.data.examples import Examples, Task
from fed_distill.data.shop.dataset import CompleteJourney
from fed_distill.data.tasks import NEXT_BASKET
from fed_distill.models import TextModel, build_student

STUDENTS = {"two-tower": {"max_features": 128}, "history-tower": {"history": 20, "max_features": 16}}
"""Students with their options, those of ``experiments/shop.toml``."""
TRAINERS: dict[str, Callable[[Cohort, Settings, Clock], None]] = {
    "plain loop": plain.train,
    "sequential": partial(ours.train, trainer="sequential"),
    "cohort": partial(ours.train, trainer="cohort"),
}
PLAIN = "plain loop"


@dataclass(frozen=True)
class Stores(Workload):
    """A round over stores of several ``store_sizes``."""

    store_sizes: tuple[int, ...] = ()

    def sizes(self) -> list[int]:
        """Examples of each store."""
        return list(self.store_sizes)

    def examples(self) -> int:
        """Examples in a round."""
        return sum(self.store_sizes)

    def task(self) -> Task:
        """Return next-basket."""
        return NEXT_BASKET

    def new_student(self) -> TextModel:
        """The student before the first round; always the same weights."""
        with seeds.scope(self.seed, "benchmark student"):
            return build_student(self.student, STUDENTS[self.student], self.task())


class CpuClock(Clock):
    """Notes the CPU seconds of this process at the end of each round."""

    def round_done(self, weights: Callable[[], Weights]) -> None:
        """Note the end of a round; see ``Clock``."""
        super().round_done(weights)
        self.ends[-1] = time.process_time()


@dataclass(frozen=True)
class Measured:
    """One attempt.

    seconds: CPU seconds of the timed rounds. peak: most memory in bytes. loss: mean over examples of the first stores.
    """

    student: str
    trainer: str
    stores: int
    examples: int
    seconds: tuple[float, ...]
    peak: int
    loss: float

    @property
    def speed(self) -> float:
        """Stores trained in a CPU second."""
        return self.stores * len(self.seconds) / sum(self.seconds)


def prepare(folder: Path, most: int) -> list[int]:
    """Write the encoded training examples of every store with any, and return their numbers.

    :param folder: a folder for each student is made in it
    :param most: maximum number of examples of a store
    """
    config = DataConfig(dataset="complete-journey", task="next-basket")
    source = CompleteJourney(max_pairs=most, history=20).read(config)
    assert isinstance(source, HasParts)  # it is split by time
    rows = [np.flatnonzero((source.owners == store) & (source.parts == 0)) for store in range(len(source.names))]
    stores = [(own, name) for own, name in zip(rows, source.names, strict=True) if len(own)]
    tables = [source.examples(own, name, "train", config.seed) for own, name in stores]
    sizes, every = [len(table) for table in tables], Examples.concatenate(tables)
    for student in STUDENTS:
        (folder / student).mkdir(parents=True)
        np.save(folder / student / "labels.npy", every.labels)
        for name, values in Stores(student).new_student().encode(every.texts, every.pairs).items():
            np.save(folder / student / f"field.{name}.npy", values.numpy())
    return sizes


def opened(folder: Path, student: str, sizes: Sequence[int]) -> Cohort:
    """Open what ``prepare`` wrote, memory-mapped."""
    fields = {
        path.name.split(".")[1]: torch.from_numpy(np.load(path, mmap_mode="c"))
        for path in sorted((folder / student).glob("field.*.npy"))
    }
    labels = torch.from_numpy(np.load(folder / student / "labels.npy", mmap_mode="c"))
    shops = tuple(
        Shop({name: values[start:stop] for name, values in fields.items()}, labels[start:stop])
        for start, stop in pairwise(np.cumsum([0, *sizes]).tolist())
    )
    return Cohort(Stores(student, store_sizes=tuple(sizes)), shops, folder)


def attempt(folder: Path, student: str, trainer: str, sizes: Sequence[int], rounds: int) -> None:
    """Train in this process, and print the ends of the rounds and the loss as JSON."""
    torch.set_num_threads(1)
    cohort, clock = opened(folder, student, sizes), CpuClock("cpu")
    TRAINERS[trainer](cohort, Settings(rounds + 1, 1, "cpu"), clock)
    print(json.dumps({"ends": clock.ends, "loss": cohort.mean_loss(clock.weights())}))


def measured(folder: Path, student: str, trainer: str, sizes: Sequence[int], rounds: int) -> Measured:
    """Let a trainer train the stores in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.stores", "--attempt", str(folder), student, trainer]
    process = subprocess.Popen(
        [*command, json.dumps(list(sizes)), "--rounds", str(rounds)], stdout=subprocess.PIPE, text=True
    )
    watch = Watch(process.pid)
    try:
        told, _ = process.communicate()
        peak = watch.peak(time.monotonic())
    finally:
        watch.close()
    if process.returncode:
        raise SystemExit(f"{trainer} of {student} failed with exit code {process.returncode}")
    found = json.loads(told.splitlines()[-1])
    seconds = tuple(end - start for start, end in pairwise(found["ends"]))
    return Measured(student, trainer, len(sizes), sum(sizes), seconds, peak or 0, found["loss"])


def table(attempts: Sequence[Measured]) -> str:
    """Return the attempts as a Markdown table, each beside the plain loop of the same student."""
    lines = [
        "| student | trainer | stores/CPU s | beside the plain loop | peak memory | beside the plain loop | loss |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    loops = {one.student: one for one in attempts if one.trainer == PLAIN}
    lines += [
        f"| {one.student} | {one.trainer} | {one.speed:.1f} | {one.speed / loops[one.student].speed:.1f}× | "
        f"{one.peak / 2**30:.2f} GiB | {one.peak / loops[one.student].peak:.2f}× | {one.loss:.3f} |"
        for one in attempts
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all trainers with all students, and print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--most", type=int, default=64, help="maximum number of examples of a store")
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds, after one that is not timed")
    parser.add_argument("--stores", type=int, help="number of stores, the first; all, if not given")
    parser.add_argument("--attempt", nargs=4, metavar=("FOLDER", "STUDENT", "TRAINER", "SIZES"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.attempt:
        folder, student, trainer, sizes = options.attempt
        attempt(Path(folder), student, trainer, json.loads(sizes), options.rounds)
        return
    with tempfile.TemporaryDirectory(prefix="stores") as scratch:
        sizes = prepare(Path(scratch), options.most)[: options.stores]
        attempts = [
            measured(Path(scratch), student, trainer, sizes, options.rounds)
            for student in STUDENTS
            for trainer in TRAINERS
        ]
    print(f"{len(sizes)} stores, {sum(sizes):,} training examples of next-basket, one thread\n\n{table(attempts)}")


if __name__ == "__main__":
    main()
