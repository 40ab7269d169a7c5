"""A run on one core and on two."""

import multiprocessing

import pandas as pd
import torch
from safetensors.torch import load_file

import fed_distill.data as data_package
from fed_distill.config import Experiment
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


def test_a_data_frame_is_the_table_of_a_run_and_of_its_continuation(tiny_experiment, tmp_path):
    grades = ("exact", "substitute", "complement", "irrelevant")
    rows = [
        {
            "query": f"query {query}",
            "title": f"candidate {one} of {query} at {shop}",
            "grade": grades[one],
            "shop": shop,
        }
        for shop in ("north", "south", "east", "west")
        for query in range(20)
        for one in range(4)
    ]
    columns = {"text": "query", "pair": "title", "label": "grade", "merchant": "shop"}
    changes = {"data.dataset": "table", "data.options": {"columns": columns}, "controls": [], "runtime.sites": 2}
    experiment = tiny_experiment(tmp_path / "runs", {**changes, "runtime.cache": str(tmp_path / "cache")})
    result = run(experiment, table=pd.DataFrame(rows))
    (stored,) = (tmp_path / "cache" / "tables").iterdir()
    written = Experiment.read(result.folder / "experiment.toml")
    assert written.data.options == {"columns": columns, "path": str(stored)}
    again = run(written.with_changes({"runtime.resume": True}))
    assert again.summary["federations"] == result.summary["federations"]
    assert result.summary["data"]["cleaning"]["rows_kept"] == len(rows)
