"""How fast students are beside a teacher."""

from types import SimpleNamespace

from experiments.benchmarks.inference import measured, pairs, table
from fed_distill.models import build_student


def test_medians_are_relative_to_the_first_model():
    models = [
        ("slow", SimpleNamespace(parameter_count=lambda: 2000), 4),
        ("fast", SimpleNamespace(parameter_count=lambda: 7), 8),
    ]
    rows = table({"slow": [2.0, 5.0, 3.0], "fast": [600.0, 30.0, 900.0]}, models).splitlines()
    assert rows[2:] == ["| slow | 2,000 | 3 | 2 | 5 | 1 |", "| fast | 7 | 600 | 30 | 900 | 200 |"]


def test_every_turn_but_the_first_counts():
    task, examples = pairs(20)
    student = build_student("two-tower", {"rows": 100, "width": 4}, task)
    rates = measured([("one", student, 10), ("two", student, 20)], examples, turns=2)
    assert {name: len(found) for name, found in rates.items()} == {"one": 2, "two": 2}
    assert all(rate > 0 for found in rates.values() for rate in found)
