"""Cold-start merchants: they take no part, and the students of all rows are measured on their test products."""

import json

import numpy as np
import pytest

from fed_distill.data import load
from fed_distill.models import load_model, predict
from fed_distill.reporting.tables import comparison_cells


@pytest.fixture(scope="module")
def run(tiny_experiment, simulate, tmp_path_factory):
    changes = {
        "data.cold_merchants": 0.3,
        "data.options": {"merchants": 12, "rows": 60, "products": 60},
        "federation.rounds": 1,
        "adaptation.enabled": False,
        "controls": ["student", "server"],
    }
    experiment = tiny_experiment(tmp_path_factory.mktemp("cold"), changes)
    folder, _ = simulate(experiment)
    return experiment, folder, json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_the_federations_student_is_measured_on_merchants_that_took_no_part(run):
    experiment, folder, summary = run
    cold = load(experiment.data).cold
    assert not set(cold.names) & set(summary["by_merchant"]["counts"])
    told = summary["federations"][summary["federation"]]["cold"]
    probabilities = predict(*_encoded(load_model(folder / "student"), cold.test)).numpy()
    right = float(np.mean(probabilities.argmax(axis=1) == cold.test.labels))
    assert told["accuracy"] == pytest.approx(right)


def _encoded(student, examples):
    return student, student.encode(examples.texts, examples.pairs)


def test_tables_have_a_column_of_it(run):
    header, *rows = comparison_cells(run[2])
    place = header.index("cold start")
    assert [row[0] for row in rows if row[place] == "–"] == ["teacher"]


def test_without_cold_merchants_nothing_is_told_of_them(tiny_run):
    summary = json.loads((tiny_run.result.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["student"]["cold"] is None
    assert "cold start" not in comparison_cells(summary)[0]
