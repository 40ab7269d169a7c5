"""A study of methods and privacy budgets whose cells are written by formula, in no time."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places, placed

TABLES = {
    "name": "costs",
    "title": "What does privacy cost?",
    "seeds": 3,
    "base": {"federation": {"rounds": 5}},
    "axis": [
        {"name": "method", "key": "federation.method", "values": ["fedavg-kd", "fedmd"]},
        {
            "name": "unit",
            "values": [
                {"label": "example", "privacy.unit": "example"},
                {"label": "merchant", "privacy.unit": "merchant"},
            ],
        },
        {"key": "privacy.epsilon", "values": [1, 8, float("inf")]},
    ],
    "exclude": [{"method": "fedmd", "unit": "merchant"}],
}


@pytest.fixture(scope="session")
def sham():
    """The module that stands in for a simulation, on the path of this process and so of its children."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    yield importlib.import_module("sham_cells")
    sys.path.remove(folder)


@pytest.fixture
def tables():
    """Tables of a study file: two methods, two units (one excluded for one method), three budgets, three seeds."""
    return {**TABLES, "axis": [dict(axis) for axis in TABLES["axis"]]}


@pytest.fixture
def study(tables):
    return Study.parse(tables)


@pytest.fixture(scope="session")
def write_cells(sham):
    """A function that writes the results of cells into places."""

    def write(cells, places):
        for cell in cells:
            sham.write(placed(cell, places, threads=1, again=False))

    return write


@pytest.fixture(scope="session")
def finish(write_cells):
    """A function (folder) -> the study with all its cells finished: study, cells, places."""

    def finish(folder):
        study = Study.parse(TABLES)
        cells, places = expand(study), Places(folder / "costs")
        write_cells(cells, places)
        return SimpleNamespace(study=study, cells=cells, places=places)

    return finish


@pytest.fixture
def finished(finish, tmp_path):
    """A study of a test's own with all its cells finished."""
    return finish(tmp_path)
