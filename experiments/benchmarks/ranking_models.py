"""A run's student beside its teacher, Model2Vec and sentence-transformers: quality, size, speed and memory.

Quality is this project's nDCG@10 on the run's own test queries; whatever had to be chosen was chosen on its validation
queries. Everything is kept in ``--work``: an interrupted command goes on where it was, and ``--speed`` measures speed
and memory again without the rest.

    python experiments/benchmarks/ranking_models.py runs/scarce_labels runs/static
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.rankers import Model
from experiments.benchmarks.ranking_speed import TITLES, Speed, measure_in_process
from fed_distill.evaluation.statistics import Estimate, difference, estimate
from fed_distill.reporting.wording import number, signed
from fed_distill.storage.files import read_json, strict_json, write_atomic

MODELS, TEXTS, SPEED = "models.json", "texts.json", "speed.json"
_HEAD = (
    "model",
    "trained on",
    "nDCG@10",
    "minus the first",
    "MB",
    "texts/s",
    f"ms for {TITLES} titles, p50 / p99",
    "the same, vectors stored",
    "MB of memory",
)


@dataclass(frozen=True)
class Row:
    """A model with nDCG@10 of each test query, and its speed."""

    model: Model
    queries: Sequence[float]
    speed: Speed


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table; differences are paired by query with the first row."""
    lines = [f"| {' | '.join(_HEAD)} |", f"| --- | --- |{' ---: |' * (len(_HEAD) - 2)}"]
    first = [np.array([rows[0].queries])]
    for row in rows:
        own, speed = [np.array([row.queries])], row.speed
        cells = [
            row.model.name,
            row.model.trained_on,
            _interval(estimate(own)),
            "" if row is rows[0] else _interval(estimate(difference(own, first)), signed),
            f"{row.model.bytes / 1e6:.1f}",
            "" if speed.texts is None else f"{float(f'{speed.texts:.2g}'):,.0f}",
            _pair(speed.titles),
            "" if speed.stored is None else _pair(speed.stored),
            f"{speed.memory:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(work: Path, models: Sequence[Model], again: bool, seconds: float) -> dict[str, Speed]:
    """Return the speed of each model by name; one that was measured before is not measured again unless ``again``."""
    file = work / SPEED
    kept: dict[str, Speed] = {}
    if file.exists() and not again:
        kept = {name: Speed.read(found) for name, found in read_json(file).items()}
    for model in models:
        if model.name not in kept:
            print(f"speed: {model.name}", flush=True)
            kept[model.name] = measure_in_process(model, work / TEXTS, seconds)
            content: Mapping[str, object] = {name: speed.described() for name, speed in kept.items()}
            write_atomic(file, strict_json(content, SPEED))
    return kept


def prepare(runs: Sequence[Path], work: Path, encoder: Path | None) -> None:
    """Build all models, measure their quality, and write ``models.json`` and ``texts.json``."""
    from experiments.benchmarks import ranking_setting as made

    setting = made.open_setting(runs, work, encoder)
    models = [*made.own_models(setting), *made.static_models(setting), *made.encoder_models(setting)]
    found = [{"model": model.described(), "queries": made.quality(setting, model)} for model in models]
    write_atomic(work / TEXTS, strict_json(made.sample_texts(setting), TEXTS))
    write_atomic(work / MODELS, strict_json(found, MODELS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Build what is missing, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs on the same data, the reference first")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/ranking_models"), help="folder to build in")
    parser.add_argument("--encoder", type=Path, help="sentence encoder instead of the MiniLM of fed-distill[minilm]")
    parser.add_argument("--speed", action="store_true", help="measure only speed and memory again")
    parser.add_argument("--seconds", type=float, default=20.0, help="maximum CPU seconds of each measurement of speed")
    given = parser.parse_args(arguments)
    if not given.speed:
        prepare(given.runs, given.work, given.encoder)
    elif not (given.work / MODELS).exists():
        parser.error(f"{given.work} has no models yet: run the command without --speed first")
    found = [(Model.read(one["model"]), one["queries"]) for one in read_json(given.work / MODELS)]
    speeds = measure(given.work, [model for model, _ in found], given.speed, given.seconds)
    print(table([Row(model, queries, speeds[model.name]) for model, queries in found]))
    print(
        f"\n{len(found[0][1]):,} test queries; ± is the 95 % interval over them. MB: weights and tokenizer. Speed: CPU "
        f"time of one thread, load average {os.getloadavg()[0]:.1f}. Memory: peak, Python and its libraries included."
    )


def _interval(found: Estimate, written: Callable[[float], str] = number) -> str:
    half = "" if found.half_width is None else f" ± {found.half_width:.4f}"
    return f"{written(found.value)}{half}"


def _pair(values: tuple[float, float]) -> str:
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:,.0f}" for value in values)


if __name__ == "__main__":
    main()
