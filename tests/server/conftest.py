"""What two runs are compared by: everything but the times."""

import json

import pytest

TIMES = ("seconds", "speed", "name")


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(child) for key, child in value.items() if key not in TIMES}
    return [timeless(child) for child in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def outcome_of():
    """A function: summary, rounds and student weights of a finished run, times left out."""

    def outcome(folder):
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return {
            "summary": timeless(json.loads((folder / "summary.json").read_text(encoding="utf-8"))),
            "rounds": [timeless(json.loads(line)) for line in lines],
            "student": (folder / "student" / "model.safetensors").read_bytes(),
            "classes": (folder / "classification_report.txt").read_text(encoding="utf-8"),
        }

    return outcome
