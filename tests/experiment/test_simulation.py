"""The same run in this process and in worker processes."""

import multiprocessing

import pytest

from fed_distill.errors import ConfigError
from fed_distill.experiment.simulation import run

CHANGES = {
    "controls": ["local"],
    "federation.aggregator": "fedsubavg",
    "compare": [{"method": "fedmd", "aggregator": "fedavg"}],
    "runtime.threads": 1,
    "runtime.trainer": "sequential",
}


def test_two_workers_give_the_student_of_one(tiny_experiment, outcome_of, tmp_path):
    outcomes = [
        outcome_of(run(tiny_experiment(tmp_path / str(workers), {**CHANGES, "runtime.workers": workers})).folder)
        for workers in (1, 2)
    ]
    assert outcomes[0] == outcomes[1]
    assert multiprocessing.active_children() == []


def test_a_users_mistake_leaves_no_worker_behind(tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match="unknown method 'fedavgg'"):
        run(tiny_experiment(tmp_path, {"runtime.workers": 2, "federation.method": "fedavgg"}))
    assert multiprocessing.active_children() == []
