"""Draw the cost of a merchant against the number of merchants, from any files of results: SVG and PNG.

``python experiments/benchmarks/chart.py runs/benchmarks/results.jsonl`` can be run again at any time, on the results of
several runs together; of the same contender and workload the median is drawn, with the range as a band.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.results import OK, Attempt, read

Costs = dict[str, dict[int, list[float]]]
"""Milliseconds for a merchant, by contender and number of merchants."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one chart for each kind of workload in the files."""
    parser = argparse.ArgumentParser(description="Cost of a merchant against the number of merchants.")
    parser.add_argument("results", type=Path, nargs="+", help="files of results, JSON lines")
    parser.add_argument("--output", type=Path, default=None, help="folder; that of the first file if not given")
    options = parser.parse_args(arguments)
    folder = options.output or options.results[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    by_kind: dict[str, list[Attempt]] = defaultdict(list)
    for path in options.results:
        for attempt in read(path):
            if attempt.status == OK:
                by_kind[_kind(attempt)].append(attempt)
    for kind, attempts in by_kind.items():
        for file in draw(costs(attempts), kind, folder / f"cost-{kind.replace(', ', '-').replace(' ', '-')}"):
            print(file)
    return 0


def costs(attempts: Sequence[Attempt]) -> Costs:
    """Milliseconds for a merchant in every attempt."""
    result: Costs = {contender.name: {} for contender in CONTENDERS}
    for attempt in attempts:
        merchants = int(attempt.workload["merchants"])
        result.setdefault(attempt.contender, {}).setdefault(merchants, []).append(1000 / attempt.merchants_per_second)
    return {name: dict(sorted(points.items())) for name, points in result.items() if points}


def draw(drawn: Costs, title: str, file: Path) -> list[Path]:
    """Write the chart as ``file`` with the endings svg and png; returns both."""
    titles = {contender.name: contender.title for contender in CONTENDERS}
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, points in drawn.items():
        counts = list(points)
        axes.plot(
            counts, [statistics.median(points[count]) for count in counts], marker="o", label=titles.get(name, name)
        )
        axes.fill_between(counts, [min(points[n]) for n in counts], [max(points[n]) for n in counts], alpha=0.2)
    axes.set(xscale="log", yscale="log", xlabel="merchants in a round", ylabel="milliseconds for a merchant")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    files = [file.with_name(f"{file.name}.{ending}") for ending in ("svg", "png")]
    for path in files:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return files


def _kind(attempt: Attempt) -> str:
    """What workloads of one chart have in common."""
    workload, settings = attempt.workload, attempt.settings
    sizes = "uneven" if workload["uneven"] else "even"
    return (
        f"{workload['student']}, {workload['texts']} texts {sizes}, {settings['threads']} threads {settings['device']}"
    )


if __name__ == "__main__":
    sys.exit(main())
