"""Measure what a merchant costs, try many, and write the tables of ``docs/how-to/scaling.md`` from what was measured.

``python experiments/benchmarks/scaling.py constants``, ``... scaling.py run 10000`` and ``... scaling.py write`` share
one file of measurements, in which each replaces what it measured before.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from experiments.benchmarks.constants import MethodCost, NameCost, StudentCost, name_cost, student_cost
from experiments.benchmarks.growth import Growth, grown
from experiments.benchmarks.projection import bytes_table, constants_table, names_table, runs_table, work_table
from fed_distill.errors import DataError, FedDistillError

HERE = Path(__file__).parent
STUDENTS = ("two-tower", "bert-mini")


@dataclass
class Measured:
    """A file of measurements: students by name, names, and runs by number of merchants."""

    students: dict[str, StudentCost] = field(default_factory=dict)
    names: NameCost | None = None
    runs: dict[int, Growth] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """What the file holds; nothing if there is none."""
        if not path.exists():
            return cls()
        raw = json.loads(path.read_text(encoding="utf-8"))
        students = {}
        for one in raw["students"]:
            methods = {name: MethodCost(**cost) for name, cost in one.pop("methods").items()}
            students[one["student"]] = StudentCost(**one, methods=methods)
        runs = {one["merchants"]: Growth(**one) for one in raw["runs"]}
        return cls(students, NameCost(**raw["names"]) if raw["names"] else None, runs)

    def write(self, path: Path) -> None:
        """Replace the file."""
        content = {
            "students": [asdict(one) for one in self.students.values()],
            "names": None if self.names is None else asdict(self.names),
            "runs": [asdict(self.runs[size]) for size in sorted(self.runs)],
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def tables(self) -> dict[str, str]:
        """The tables by marker; DataError if something was not measured yet."""
        students = [self.students[name] for name in STUDENTS if name in self.students]
        if len(students) < len(STUDENTS) or self.names is None or not self.runs:
            raise DataError("not everything is measured yet: call scaling.py constants, then scaling.py run 1000")
        runs = list(self.runs.values())
        return {
            "constants": constants_table(students),
            "bytes": bytes_table(students),
            **{f"work-{one.student}": work_table([one]) for one in students},
            "names": names_table(self.names, runs),
            "runs": runs_table(runs),
        }


def written(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with the table after each marker ``<!-- name -->`` replaced; DataError for a marker that is missing."""
    for name, table in tables.items():
        marker = f"<!-- {name} -->\n"
        before, found, after = text.partition(marker)
        if not found:
            raise DataError(f"there is no marker {marker.strip()} to put a table after")
        lines = after.split("\n")
        rest = next((at for at, line in enumerate(lines) if not line.startswith("|")), len(lines))
        text = before + marker + table + "\n" + "\n".join(lines[rest:])
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the caller can mend."""
    options = _parser().parse_args(arguments)
    measured = Measured.read(options.file)
    commands: dict[str, Callable[[], None]] = {
        "constants": lambda: _constants(measured, options),
        "run": lambda: _run(measured, options),
        "write": lambda: _write(measured, options),
    }
    torch.set_num_threads(1)
    try:
        commands[options.command]()
    except FedDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _constants(measured: Measured, options: argparse.Namespace) -> None:
    for student in options.students:
        measured.students[student] = student_cost(student, options.merchants, options.texts)
        measured.names = name_cost()
        measured.write(options.file)
    print(constants_table([measured.students[name] for name in options.students]))


def _run(measured: Measured, options: argparse.Namespace) -> None:
    growth = grown(options.merchants)
    measured.runs[growth.merchants] = growth
    measured.write(options.file)
    print(runs_table([growth]))


def _write(measured: Measured, options: argparse.Namespace) -> None:
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(written(text, measured.tables()), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="What a merchant costs, and what many of them take.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--file", type=Path, default=HERE / "scaling.json", help="file of measurements")
    commands = parser.add_subparsers(dest="command", required=True)
    constants = commands.add_parser("constants", help="measure one merchant's bytes, seconds and memory")
    constants.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS, help="what is trained")
    constants.add_argument("--merchants", type=int, default=64, help="merchants that are measured")
    constants.add_argument("--texts", type=int, default=64, help="examples of a merchant")
    grow = commands.add_parser("run", help="run generated merchants in process, with a tiny student")
    grow.add_argument("merchants", type=int, help="how many are generated")
    page = commands.add_parser("write", help="write the tables")
    page.add_argument(
        "--page", type=Path, default=HERE.parents[1] / "docs" / "how-to" / "scaling.md", help="where the markers are"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
