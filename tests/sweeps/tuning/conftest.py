"""A small search whose runs are written by formula."""

import copy
import io
import multiprocessing
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fed_distill.sweeps import process
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.progress import SweepProgress
from fed_distill.sweeps.runner import Resources, Runner
from fed_distill.sweeps.space import Tuning
from fed_distill.sweeps.trial_sampler import TrialSampler

TABLES = {
    "name": "small",
    "trials": 4,
    "random_trials": 2,
    "pruning": False,
    "base": {"federation": {"rounds": 3}, "training": {"merchants": {"learning_rate": 1e-3}}},
    "search": [
        {"key": "training.merchants.learning_rate", "low": 1e-3, "high": 1e-1, "log": True},
        {"key": "training.merchants.batch_size", "values": [16, 32]},
    ],
}


@pytest.fixture
def tables():
    return copy.deepcopy(TABLES)


@pytest.fixture(scope="session")
def sham():
    """The module that stands in for a simulation, on the path of this process and so of its children."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture
def forked(monkeypatch):
    """Processes of runs are copies of this one, which import nothing anew; the runner's own tests start new ones."""
    monkeypatch.setattr(process, "get_context", lambda kind: multiprocessing.get_context("fork"))


@pytest.fixture
def tune(sham, forked, tmp_path):
    """A function that runs a tuning into a folder by a function of the sham module: its places, and what it said."""

    def run(tables, function="run", folder="tuning", processes=2):
        said, tuning = io.StringIO(), Tuning.parse(tables)
        places = Places(tmp_path / folder)
        progress = SweepProgress(Console(file=said, width=400), noun="run")
        sampler, simulate = TrialSampler(tuning, places), f"sham_trials:{function}"
        Runner(places, sampler, simulate, Resources(processes, 1), progress).run()
        return tuning, places, said.getvalue()

    return run
