"""A run on one core and on two."""

import multiprocessing

import torch
from safetensors.torch import load_file

import fed_distill.data as data_package
from fed_distill.data import load
from fed_distill.experiment.simulation import run

CHANGES = {"controls": ["local"], "federation.aggregator": "fedsubavg", "federation.rounds": 2, "runtime.cohort": 2}


def test_two_cores_give_the_student_of_one(tiny_experiment, tmp_path):
    before, students = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            folder = run(tiny_experiment(tmp_path / str(threads), {**CHANGES, "runtime.threads": threads})).folder
            students.append(load_file(folder / "student" / "model.safetensors"))
    finally:
        torch.set_num_threads(before)
    one, two = students
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)
    assert multiprocessing.active_children() == []


def test_the_server_and_all_sites_read_the_data_once(tiny_experiment, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(data_package, "load", lambda config: reads.append(config) or load(config))
    experiment = tiny_experiment(tmp_path, {"controls": [], "runtime.sites": 2})
    run(experiment)
    assert reads == [experiment.data]
