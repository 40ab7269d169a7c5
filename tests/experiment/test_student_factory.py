"""The server's students are kept between runs: used again for the same target, and for no other."""

import json
import logging
import shutil

import pytest
import torch

from fed_distill.experiment import student_factory
from fed_distill.experiment.student_factory import StudentFactory
from fed_distill.reporting.callbacks import Callback
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint

QUICK = {"controls": [], "federation.rounds": 1, "adaptation.enabled": False}
OWN = "own_student_of_the_test:OwnStudent"


class Stages(Callback):
    """Notes the titles of stages."""

    def __init__(self):
        self.titles = []

    def on_stage(self, title, total):
        self.titles.append(title)


@pytest.fixture(scope="module")
def taught(tiny_experiment, simulate, tmp_path_factory):
    """A cache that has the teacher and its labels, and no student."""
    folder = tmp_path_factory.mktemp("taught")
    changes = {**QUICK, "runtime.cache": str(folder / "cache")}
    simulate(tiny_experiment(folder / "runs", changes))
    shutil.rmtree(folder / "cache" / "students")
    return folder / "cache"


@pytest.fixture
def run(taught, tiny_experiment, simulate, outcome_of, tmp_path):
    """A function (changes) -> whether the server's student was trained in a run with these changes, and how it ended;
    its runs share a cache that no other test uses."""
    names = iter(range(1000))

    def once(changes=None, cache="cache"):
        if not (tmp_path / cache).exists():
            shutil.copytree(taught, tmp_path / cache)
        stages = Stages()
        places = {"runtime.cache": str(tmp_path / cache), "name": f"run-{next(names)}"}
        experiment = tiny_experiment(tmp_path / "runs", {**QUICK, **places, **(changes or {})})
        folder, _ = simulate(experiment, callbacks=[stages])
        return any("the server's" in title for title in stages.titles), outcome_of(folder)

    return once


@pytest.fixture
def students(tmp_path):
    """A function: the files of kept students."""
    return lambda: sorted((tmp_path / "cache" / "students").glob("*"))


def test_runs_that_differ_at_merchants_share_the_servers_student(run, students):
    trained, _ = run()
    assert trained
    merchants = {
        "training.merchants.learning_rate": 0.02,
        "training.merchants.optimizer": "sgd",
        "federation.method": "fedavg",
    }
    trained, ended = run({**merchants, "federation.options": {}})
    assert not trained
    assert ended == run({**merchants, "federation.options": {}}, cache="another")[1]
    assert len(students()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data.seed": 1},
        {"data.proxy_size": 39},
        {"teacher.epochs": 2},
        {"student.options": {"rows": 2048, "width": 6, "head_width": 8}},
        {"student.model": "lstm", "student.options": {"rows": 512, "width": 8}},
        {"training.server.learning_rate": 0.02},
        {"training.server.temperature": 3.0},
        {"distill.hard_weight": 0.5},
        {"training.augmentation.deletion": 0.3},
        {"distill.transfer": ["decisions"]},
        {"distill.weights": {"probabilities": 0.5}},
        {"distill.assistants": [{"model": "lstm", "options": {"rows": 512, "width": 8}, "epochs": 0.5}]},
        {"runtime.trainer": "sequential"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_servers_student_depends_on_makes_another(run, students, change):
    run()
    trained, _ = run(change)
    assert trained
    on_labels = 1 if "distill.assistants" in change else 0  # a chain is compared with the student of labels only
    assert len(students()) == 2 + on_labels


def test_the_servers_momentum_makes_another_and_the_merchants_does_not(run):
    by_sgd = {"training.merchants.optimizer": "sgd", "training.server.optimizer": "sgd"}
    run(by_sgd)
    assert not run({**by_sgd, "training.merchants.momentum": 0.5})[0]
    assert run({**by_sgd, "training.server.momentum": 0.5})[0]


def test_other_contents_of_a_file_that_it_is_made_from_make_another(run, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("red, crimson\n", encoding="utf-8")
    synonyms = {"training.augmentation": {"synonyms": 0.3, "dictionary": str(words)}}
    run(synonyms)
    assert not run(synonyms)[0]
    words.write_text("red, scarlet\n", encoding="utf-8")
    assert run(synonyms)[0]


def test_another_number_of_threads_makes_another(run):
    run()
    torch.set_num_threads(2)
    try:
        assert run()[0]
    finally:
        torch.set_num_threads(1)


def test_a_change_of_the_program_makes_another(run, monkeypatch):
    run()
    monkeypatch.setattr(student_factory, "CACHE_VERSION", 0)
    assert run()[0]


def test_a_torn_student_is_reported_and_made_again(run, students, caplog):
    _, ended = run()
    students()[0].write_bytes(students()[0].read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        trained, again = run()
    assert trained
    assert again == ended
    assert str(students()[0]) in caplog.text
    assert not run()[0]


def test_a_kept_student_keeps_the_time_of_its_training(run, students, tmp_path):
    run()
    weights, _ = read_checkpoint(students()[0])
    write_checkpoint(students()[0], weights, {"seconds": 1000.0})
    run({"controls": ["server"], "name": "timed"})
    summary = json.loads((tmp_path / "runs" / "timed" / "summary.json").read_text(encoding="utf-8"))
    assert summary["controls"]["server"]["seconds"] >= 1000.0


@pytest.mark.parametrize("change", [{"student.masked.epochs": 0.5}, {"student.masked.learning_rate": 1e-2}])
def test_how_it_reads_the_domain_makes_another(run, change):
    reader = {"student.model": "lstm", "student.options": {"rows": 512, "width": 8}, "student.masked.epochs": 1.0}
    run(reader)
    assert run({**reader, **change})[0]


def test_the_code_of_a_student_from_an_import_path_makes_another(run, tmp_path, monkeypatch):
    module = tmp_path / "own_student_of_the_test.py"
    module.write_text("from fed_distill.models.two_tower import TwoTower as OwnStudent\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert run({"student.model": OWN})[0]
    assert not run({"student.model": OWN})[0]
    module.write_text(module.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert run({"student.model": OWN})[0]


def test_a_cache_that_cannot_be_written_is_reported_and_costs_no_training(run, monkeypatch, caplog):
    def full(path, weights, values):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(student_factory, "write_checkpoint", full)
    with caplog.at_level(logging.WARNING):
        trained, _ = run()
    assert trained
    assert "cannot be cached for other runs" in caplog.text


def test_going_on_from_initial_weights_is_distilling_anew_and_from_others_it_is_not(run, monkeypatch):
    students, anew = {}, StudentFactory.distilled_anew

    def every_way(self, soft_labels, temperature=None):
        initial = self.student(self.experiment.student.model).state_dict()
        students["initial"] = self.distilled_onwards(initial, soft_labels)
        students["anew"] = anew(self, soft_labels, temperature)
        students["last"] = self.distilled_onwards(students["anew"], soft_labels)
        students["in a later round"] = self.distilled_onwards(students["anew"], soft_labels, 2)
        return students["anew"]

    monkeypatch.setattr(StudentFactory, "distilled_anew", every_way)
    run({"federation.method": "fedmd", "federation.options": {}})
    tables = {name: weights["bag.table"] for name, weights in students.items()}
    assert torch.equal(tables["initial"], tables["anew"])
    assert not torch.equal(tables["last"], tables["anew"])
    assert not torch.equal(tables["last"], tables["in a later round"])
