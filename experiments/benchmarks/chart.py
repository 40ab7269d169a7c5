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

from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.results import OK, Attempt, read
from fed_distill.reporting import charts

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


@charts.styled
def draw(drawn: Costs, title: str, file: Path) -> list[Path]:
    """Write the chart as ``file`` with the endings svg and png; returns both."""
    titles = {contender.name: contender.title for contender in CONTENDERS}
    names = {number: titles.get(name, name) for number, name in enumerate(drawn)}
    figure, axes = charts.empty_figure(f"milliseconds for a merchant: {title}", legend=names, columns=2)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("merchants in a round", color=charts.SOFT)
    for (number, name), points in zip(names.items(), drawn.values(), strict=True):
        look = charts.Look(number, numbered=charts.are_numbered(names))
        medians = [statistics.median(found) for found in points.values()]
        charts.draw_line(axes, list(points), medians, [(min(found), max(found)) for found in points.values()], look)
        for count, median in zip(points, medians, strict=True):
            charts.draw_mark(
                axes, count, median, charts.MARK, look, tip=f"{name}, {count:,} merchants: {median:.3g} ms"
            )
    charts.write_figure(figure, file.parent, file.name, f"Cost of a merchant, {title}")
    return [file.with_name(f"{file.name}.{ending}") for ending in ("svg", "png")]


def _kind(attempt: Attempt) -> str:
    """What workloads of one chart have in common."""
    workload, settings = attempt.workload, attempt.settings
    sizes = "uneven" if workload["uneven"] else "even"
    return (
        f"{workload['student']}, {workload['texts']} texts {sizes}, {settings['threads']} threads {settings['device']}"
    )


if __name__ == "__main__":
    sys.exit(main())
