"""A run on one core and on two."""

import multiprocessing

import torch
from safetensors.torch import load_file

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
