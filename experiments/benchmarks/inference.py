"""How many pairs a teacher and each student score in a second on one core, encoding included, batched by length.

Speed does not depend on what the weights have learned, so that nothing is trained. Models take turns, so that a noisy
neighbour hits all alike; medians over the turns.

    python experiments/benchmarks/inference.py
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from fed_distill.config import Experiment, TeacherConfig
from fed_distill.data import load
from fed_distill.data.examples import Examples, Task
from fed_distill.models import TextModel, build_student, predict
from fed_distill.models.building import load_teacher

STUDENTS = ("static", "two-tower", "lstm", "bert-mini")


def pairs(count: int) -> tuple[Task, Examples]:
    """Return pairs of generated merchants' texts."""
    data = load(Experiment.model_validate({"data": {"options": {"merchants": 20, "rows": 400}}}).data)
    examples = Examples.concatenate([data.public, *(merchant.train for merchant in data.merchants.values())])
    return data.task, examples.take([row % len(examples) for row in range(count)])


def seconds(model: TextModel, examples: Examples) -> float:
    """Return the time of encoding and scoring all ``examples``."""
    began = time.perf_counter()
    predict(model, model.encode(examples.texts, examples.pairs))
    return time.perf_counter() - began


def measured(models: Sequence[tuple[str, TextModel, int]], examples: Examples, turns: int) -> dict[str, list[float]]:
    """Return pairs a second of each turn, by name; each model scores the first ``count`` examples."""
    rates: dict[str, list[float]] = {name: [] for name, _, _ in models}
    for _ in range(turns + 1):
        for name, model, count in models:
            rates[name].append(count / seconds(model, examples.take(range(count))))
    return {name: found[1:] for name, found in rates.items()}  # the first turn warms up


def table(rates: dict[str, list[float]], models: Sequence[tuple[str, TextModel, int]]) -> str:
    """Return a Markdown table with speed relative to the first model."""
    first = statistics.median(rates[models[0][0]])
    lines = [
        "| model | weights | pairs/s | slowest | fastest | × teacher |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, model, _ in models:
        middle, found = statistics.median(rates[name]), rates[name]
        cells = [name, f"{model.parameter_count():,}", f"{middle:,.0f}", f"{min(found):,.0f}", f"{max(found):,.0f}"]
        lines.append(f"| {' | '.join(cells)} | {middle / first:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="minilm", help="teacher.model")
    parser.add_argument(
        "--pairs", type=int, default=512, help="pairs that the teacher scores; students score 32 times as many"
    )
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, examples = pairs(32 * given.pairs)
    teacher = load_teacher(TeacherConfig(model=given.teacher), task)
    texts = list(dict.fromkeys([*examples.texts, *(examples.pairs or ())]))
    models = [(given.teacher, teacher, given.pairs)]
    models += [(name, build_student(name, {}, task, teacher, texts), 32 * given.pairs) for name in STUDENTS]
    print(table(measured(models, examples, given.turns), models))


if __name__ == "__main__":
    main()
