"""Speed and memory of one ranking model, in a process of its own: ``ranking_models.py`` starts it for each model.

Times are CPU seconds of the whole process with one thread, so that other programs on the machine do not count (they
still share caches and memory). Memory is the peak resident set, the interpreter and its libraries included.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from experiments.benchmarks.rankers import Model, Ranker

TITLES = 100
"""Titles of one timed ranking."""
_BLOCK = 1024
"""Texts that are embedded in one call."""
_RUNS, _WARM_UP = 300, 10
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Environment of the measuring process."""


@dataclass(frozen=True)
class Speed:
    """texts: embedded in a second of CPU time, None without vectors. titles, stored: 50th and 99th percentile of ms to
    rank ``TITLES`` titles from their texts, and from their stored vectors. memory: peak resident set in MB."""

    texts: float | None
    titles: tuple[float, float]
    stored: tuple[float, float] | None
    memory: float

    @classmethod
    def read(cls, content: dict[str, Any]) -> Self:
        """Return what ``described`` gave."""
        stored = content["stored"]
        return cls(content["texts"], tuple(content["titles"]), stored and tuple(stored), content["memory"])

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable description."""
        return asdict(self)


def measured(ranker: Ranker, queries: Sequence[str], titles: Sequence[str], seconds: float) -> Speed:
    """Measure a model on real texts.

    :param queries: distinct queries, taken in turn
    :param titles: distinct titles; each ranking has the next ``TITLES`` of them
    :param seconds: maximum CPU time of each of the three measurements
    """

    def candidates(turn: int) -> list[str]:
        start = turn * TITLES
        return [titles[(start + place) % len(titles)] for place in range(TITLES)]

    def whole(turn: int) -> None:
        np.argsort(-ranker.scores([queries[turn % len(queries)]] * TITLES, candidates(turn)), kind="stable")

    by_texts = _percentiles(whole, seconds)
    if not ranker.has_vectors:
        return Speed(None, by_texts, None, _peak_memory())
    vectors = [ranker.embed(candidates(turn)) for turn in range(min(10, -(-len(titles) // TITLES)))]

    def stored(turn: int) -> None:
        query = ranker.embed([queries[turn % len(queries)]])[0]
        np.argsort(-ranker.compare(query, vectors[turn % len(vectors)]), kind="stable")

    return Speed(_texts_a_second(ranker, titles, seconds), by_texts, _percentiles(stored, seconds), _peak_memory())


def measure_in_process(model: Model, texts: Path, seconds: float) -> Speed:
    """Measure ``model`` in a new process of one thread.

    :param texts: JSON file with ``queries`` and ``titles``
    :raises SystemExit: the process failed; the message has its last line
    """
    command = [sys.executable, "-m", "experiments.benchmarks.ranking_speed", json.dumps(model.described()), str(texts)]
    done = subprocess.run([*command, str(seconds)], capture_output=True, text=True, env={**os.environ, **ONE_THREAD})
    if done.returncode:
        raise SystemExit(f"{model.name} could not be measured: {done.stderr.strip().rpartition(chr(10))[2]}")
    return Speed.read(json.loads(done.stdout.strip().splitlines()[-1]))


def _texts_a_second(ranker: Ranker, titles: Sequence[str], seconds: float) -> float:
    """Return the median rate over blocks of texts, the first of which warms up."""
    rates: list[float] = []
    began = time.process_time()
    while len(rates) < 3 or (time.process_time() - began < seconds and len(rates) < _RUNS):
        start = len(rates) * _BLOCK
        block = [titles[(start + place) % len(titles)] for place in range(_BLOCK)]
        before = time.process_time()
        ranker.embed(block)
        rates.append(_BLOCK / (time.process_time() - before))
    return float(np.median(rates[1:]))


def _percentiles(ranked: Callable[[int], None], seconds: float) -> tuple[float, float]:
    """Return the 50th and 99th percentile of the ms of a call."""
    times: list[float] = []
    began = time.process_time()
    for turn in range(_WARM_UP + _RUNS):
        before = time.process_time()
        ranked(turn)
        times.append(1000 * (time.process_time() - before))
        if turn >= 2 * _WARM_UP and time.process_time() - began > seconds:
            break
    middle, high = np.percentile(times[_WARM_UP:], (50, 99))
    return float(middle), float(high)


def _peak_memory() -> float:
    """Return the peak resident set of this process since it was started, in MB."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1000 if found else float("nan")


def _main() -> None:
    description, texts, seconds = sys.argv[1:]
    content = json.loads(Path(texts).read_text(encoding="utf-8"))
    model = Model.read(json.loads(description))
    speed = measured(model.ranker(), content["queries"], content["titles"], float(seconds))
    print(json.dumps(speed.described()))


if __name__ == "__main__":
    _main()
