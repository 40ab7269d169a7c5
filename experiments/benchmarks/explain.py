"""Whether explanations name the words that a student's score depends on: areas under deletion curves.

Words of a pair are deleted one after another and the rest is scored; the smaller the area under the scores, the earlier
the words that matter were deleted. Pairs are drawn from the test set of the student's own run.

    python experiments/benchmarks/explain.py runs/quickstart
"""

import argparse
from pathlib import Path

import numpy as np

from fed_distill import load_student
from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.examples import Examples
from fed_distill.reporting.store import EXPERIMENT
from fed_distill.serving.faithfulness import deletion_areas
from fed_distill.serving.student import Student


def table(student: Student, test: Examples, pairs: int, seed: int) -> str:
    """Return a Markdown table: a row for each class of the task, with up to ``pairs`` pairs of it."""
    lines = ["| class | pairs | most important first | random order |", "| --- | ---: | ---: | ---: |"]
    draw = np.random.default_rng(seed)
    for number, name in enumerate(student.classes):
        rows = draw.permutation(np.flatnonzero(test.labels == number))[:pairs].tolist()
        if rows:
            some = test.take(rows)
            areas = deletion_areas(student, some.texts, some.pairs or (), seed)
            lines.append(f"| {name} | {len(rows)} | {areas.explained:.4f} | {areas.random:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run whose task has gains")
    parser.add_argument("--pairs", type=int, default=200, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = load(Experiment.read(given.run / EXPERIMENT).data)
    print(table(load_student(given.run), data.test, given.pairs, given.seed))


if __name__ == "__main__":
    main()
