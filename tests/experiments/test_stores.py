"""The benchmark of all stores: trainers get the same examples, and the table compares them with the plain loop."""

import json

import numpy as np
import pytest

from experiments.benchmarks import stores
from experiments.benchmarks.stores import Measured, Stores, attempt, opened, table

SIZES = [3, 8, 5]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What ``prepare`` writes, for three stores and small students."""
    small = {name: {**options, "rows": 256, "width": 8, "head_width": 8} for name, options in stores.STUDENTS.items()}
    monkeypatch.setattr(stores, "STUDENTS", small)
    texts = [f"tea {at % 3} ; milk ; bread {at % 5}" for at in range(sum(SIZES))]
    pairs = [f"jam {at % 4}" for at in range(sum(SIZES))]
    for student in small:
        (tmp_path / student).mkdir()
        np.save(tmp_path / student / "labels.npy", np.arange(sum(SIZES)) % 2)
        for name, values in Stores(student).new_student().encode(texts, pairs).items():
            np.save(tmp_path / student / f"field.{name}.npy", values.numpy())
    return tmp_path


def test_a_store_has_its_own_examples(folder):
    cohort = opened(folder, "history-tower", SIZES)
    assert [len(shop) for shop in cohort.shops] == SIZES
    assert cohort.workload.examples() == 16
    assert cohort.shops[1].labels.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("student", stores.STUDENTS)
def test_all_trainers_end_with_about_the_same_student(folder, capsys, student):
    found = {}
    for trainer in stores.TRAINERS:
        attempt(folder, student, trainer, SIZES, rounds=2)
        found[trainer] = json.loads(capsys.readouterr().out)
        assert len(found[trainer]["ends"]) == 3 and sorted(found[trainer]["ends"]) == found[trainer]["ends"]
    assert found["cohort"]["loss"] == pytest.approx(found["sequential"]["loss"], rel=1e-5)
    assert found["plain loop"]["loss"] == pytest.approx(found["cohort"]["loss"], rel=1e-5)  # a batch for each store


def test_the_table_has_ratios_to_the_plain_loop_of_the_same_student():
    rows = table(
        [
            Measured("a", "plain loop", 10, 99, (4.0, 6.0), 2**30, 0.5),
            Measured("a", "cohort", 10, 99, (1.0, 1.0), 2**29, 0.5),
        ]
    ).splitlines()
    assert rows[2] == "| a | plain loop | 2.0 | 1.0× | 1.00 GiB | 1.00× | 0.500 |"
    assert rows[3] == "| a | cohort | 10.0 | 5.0× | 0.50 GiB | 0.50× | 0.500 |"
