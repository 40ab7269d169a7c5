"""Cells run in processes of their own: once each, side by side, going on after a kill, whatever one of them does."""

import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError
from fed_distill.reporting.store import RunStore, read_summary
from fed_distill.storage.fingerprint import named_files
from fed_distill.sweeps import places as places_module
from fed_distill.sweeps import runner as runner_module
from fed_distill.sweeps.cells import distinct, expand
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.memory import Memory
from fed_distill.sweeps.places import Places, placed
from fed_distill.sweeps.runner import Resources, Runner, _Running
from fed_distill.sweeps.sampler import GridSampler

GIGABYTE = 1_000_000_000


class Diary:
    """A follower that writes down what it is told."""

    def __init__(self):
        self.begun, self.started, self.finished, self.events, self.waits = None, [], {}, [], []

    def on_begin(self, total, finished, processes):
        self.begun = (total, finished, processes)

    def on_start(self, cell, again):
        self.started.append((cell.fingerprint, again))

    def on_event(self, cell, what):
        self.events.append((cell.fingerprint, what))

    def on_finish(self, cell, failure, found=""):
        self.finished[cell.fingerprint] = failure

    def on_wait(self, needed, available):
        self.waits.append((needed, available))


@pytest.fixture
def small(tables):
    """Cells of two methods on one seed, without controls."""
    tables |= {"seeds": 1, "base": {"controls": []}, "axis": tables["axis"][:1], "exclude": []}
    return expand(Study.parse(tables))


@pytest.fixture
def run(sham, tmp_path):
    """A function that runs cells by a function of the sham module: failures, and what the follower was told."""

    def run(cells, function="run", attack=""):
        diary, places = Diary(), Places(tmp_path)
        sampler, resources = GridSampler(cells, places), Resources(processes=2, threads=1)
        Runner(places, sampler, f"sham_cells:{function}", resources, diary, f"sham_cells:{attack}").run()
        return sampler.failures, diary

    return run


def starts(tmp_path, cell):
    return (tmp_path / "cells" / cell.fingerprint / "starts").read_text(encoding="utf-8").splitlines()


def test_a_finished_cell_keeps_its_summary_and_not_its_merchants_students(run, small, tmp_path):
    run(small, "run_with_students")
    for cell in small:
        folder = tmp_path / "cells" / cell.fingerprint
        assert (folder / "summary.json").exists() and (folder / "checkpoint").exists()
        assert not list(folder.rglob("*.safetensors"))


def test_every_cell_is_run_once_in_a_process_of_its_own_and_says_what_it_does(run, small, tmp_path):
    failures, diary = run(small)
    assert failures == {}
    assert diary.begun == (2, 0, 2)
    assert diary.finished == {cell.fingerprint: None for cell in small}
    assert all((cell.fingerprint, "round 1 of 10") in diary.events for cell in small)
    lines = [starts(tmp_path, cell) for cell in small]
    assert all(len(of_cell) == 1 and of_cell[0].endswith(" new") for of_cell in lines)
    assert len({line[0].split()[0] for line in lines} | {str(os.getpid())}) == 3


def test_a_cell_begins_with_what_takes_long_to_import_and_the_environment_of_now(run, small, monkeypatch):
    for environment in ("before", "now"):
        monkeypatch.setenv("OF_THE_STUDY", environment)
        failures, _ = run(small, "run_if_imported")
        assert (failures == {}) == (environment == "now")


def test_what_is_finished_is_not_run_again_and_equal_cells_run_once(run, small, tmp_path):
    run(small[:1])
    failures, diary = run([*small, *small])
    assert failures == {}
    assert diary.begun == (2, 1, 2)
    assert [name for name, _ in diary.started] == [small[1].fingerprint]
    assert len(starts(tmp_path, small[0])) == 1


def test_a_cell_that_was_run_when_a_default_was_another_is_not_taken_for_its_own(run, small, tmp_path):
    run(small)
    path = Places(tmp_path).run(small[0].fingerprint) / "experiment.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("batch_size = 32", "batch_size = 99", 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match="batch_size was 99 and is 32 now"):
        run(small)
    with pytest.raises(CheckpointError, match="batch_size was 99"):
        Places(tmp_path).check(small[0])


def test_cells_of_a_table_that_has_changed_are_not_taken_for_those_of_now(tables, tmp_path, monkeypatch):
    """Or one table would have scores on different labels."""
    file, read = tmp_path / "table.csv", []
    file.write_text("query,title,label")
    tables |= {
        "seeds": 1,
        "base": {"controls": [], "data": {"options": {"path": str(file)}}},
        "axis": tables["axis"][:1],
    }
    cells = expand(Study.parse(tables | {"exclude": []}))
    for cell in cells:
        RunStore.create(Places(tmp_path).run(cell.fingerprint), placed(cell, Places(tmp_path), 1, again=False)).close()
    monkeypatch.setattr(places_module, "named_files", lambda name: read.append(name) or named_files(name))
    places = Places(tmp_path)
    for cell in cells:
        places.check(cell)
    assert len(cells) == 2 and read == [str(file)], "each file is read once"
    file.write_text("another,title,label")
    with pytest.raises(CheckpointError, match=r"table.csv has changed since the run in .* began"):
        Places(tmp_path).check(cells[0])


def test_a_cell_that_fails_is_noted_with_its_reason_and_tried_again_next_time(run, small, tmp_path):
    failed = small[1].fingerprint
    failures, diary = run(small, "fail_fedmd")
    assert failures == {failed: "merchant 'shop-3' has no label"}
    assert diary.finished == {small[0].fingerprint: None, failed: failures[failed]}
    places = Places(tmp_path)
    assert places.reason(failed) == "merchant 'shop-3' has no label"
    failures, diary = run(small)
    assert failures == {}
    assert [name for name, _ in diary.started] == [failed]
    assert places.reason(failed) is None


def test_a_bug_in_one_cell_has_its_traceback_in_the_log_and_stops_no_other(run, tables):
    tables |= {"seeds": 1, "axis": tables["axis"][:1], "exclude": [], "base": {"seed": 1, "controls": []}}
    cells = expand(Study.parse(tables))
    failures, diary = run(cells, "fail_fedmd")
    (name,) = failures
    assert failures[name].startswith("ZeroDivisionError: a bug; its traceback is in ")
    log = failures[name].rpartition(" ")[2]
    assert 'raise ZeroDivisionError("a bug")' in Path(log).read_text(encoding="utf-8")
    assert list(diary.finished.values()).count(None) == 1


def test_a_function_that_cannot_be_imported_fails_in_words(run, small):
    failures, _ = run(small[:1], "nothing")
    assert list(failures.values()) == ["sham_cells has no 'nothing' (required as function for cells)"]


def test_a_cell_whose_process_is_killed_fails_and_goes_on_next_time(run, small, tmp_path):
    failures, _ = run(small[:1], "killed_once")
    assert list(failures.values()) == [
        "its process was killed by SIGKILL; if memory ran out, lower --parallel"
    ]  # fmt: skip
    failures, diary = run(small[:1], "killed_once")
    assert failures == {}
    assert diary.started == [(small[0].fingerprint, True)]
    assert starts(tmp_path, small[0])[0].endswith(" resumed")


@pytest.fixture
def attacked(tables):
    """Cells of one method on two seeds, of which the first is to be attacked."""
    tables |= {"seeds": 2, "base": {"controls": []}, "axis": [{"key": "federation.rounds", "values": [1]}]}
    return expand(Study.parse({**tables, "exclude": [], "audit": {"shadows": 6, "canaries": 30}}))


def audits(tmp_path, cells):
    return [read_summary(Places(tmp_path).run(cell.fingerprint))["privacy"]["audit"] for cell in cells]


def test_cells_of_the_first_seeds_are_attacked_after_their_runs(run, attacked, tmp_path):
    failures, diary = run(attacked, attack="attack")
    assert failures == {}
    first, second = audits(tmp_path, attacked)
    assert (first["auc"], first["shadows"], first["canaries"]) == (0.5, 6, 30)
    assert second["auc"] is None
    assert (attacked[0].fingerprint, "audit") in diary.events


def test_a_finished_run_is_attacked_without_being_run_again_and_once(run, attacked, tmp_path):
    run([replace(cell, attacks=None) for cell in attacked])
    failures, diary = run(attacked, attack="attack")
    assert failures == {}
    assert [name for name, _ in diary.started] == [attacked[0].fingerprint]
    assert len(starts(tmp_path, attacked[0])) == 1
    assert run(attacked, attack="broken_attack")[1].started == []


def test_an_attack_that_fails_is_noted_and_tried_again(run, attacked, tmp_path):
    name = attacked[0].fingerprint
    failures, _ = run(attacked, attack="broken_attack")
    assert failures == {name: "too few examples to attack"}
    assert Places(tmp_path).is_finished(name) and not Places(tmp_path).is_done(attacked[0])
    assert run(attacked, attack="attack")[0] == {}
    assert Places(tmp_path).reason(name) is None


STUDY = """
import sys
from pathlib import Path

from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.progress import SweepProgress
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.runner import Resources, Runner
from fed_distill.sweeps.sampler import GridSampler

if __name__ == "__main__":
    places = Places(Path("out"))
    sampler = GridSampler(expand(Study.read("study.toml")), places)
    Runner(places, sampler, "sham_cells:hang", Resources(2, 1), SweepProgress()).run()
"""


def gone(process):
    """Whether this process has ended; waits for it."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 60)[0])
    finally:
        os.close(handle)


def test_a_killed_study_takes_its_cells_with_it_and_goes_on_by_the_same_command(sham, tables, tmp_path):
    tables |= {"seeds": 1, "base": {"controls": []}, "axis": tables["axis"][:1], "exclude": []}
    study = Study.parse(tables)
    (tmp_path / "study.toml").write_text(study.to_toml(), encoding="utf-8")
    (tmp_path / "script.py").write_text(STUDY, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "script.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("1 of 2"):
                break
        cells, places = expand(study), Places(tmp_path / "out")
        (hanging,) = [cell for cell in cells if not places.is_finished(cell.fingerprint)]
        pid = places.run(hanging.fingerprint) / "pid"
        with pytest.raises(CheckpointError, match=f"is being run by process {process.pid}"):
            Runner(places, GridSampler(cells, places), "sham_cells:run", Resources(1, 1), Diary()).run()
        while not (pid.exists() and pid.read_text(encoding="ascii")):
            assert process.poll() is None
            select.select([], [], [], 0.02)  # a loop without a pause would take the core that the cell needs
        os.kill(process.pid, signal.SIGKILL)
    assert gone(int(pid.read_text(encoding="ascii")))
    diary, sampler = Diary(), GridSampler(cells, places)
    Runner(places, sampler, "sham_cells:run", Resources(2, 1), diary).run()
    assert sampler.failures == {}
    assert diary.started == [(hanging.fingerprint, True)]
    assert all(places.is_finished(cell.fingerprint) for cell in cells)


def test_cells_are_ended_with_the_call_that_runs_them(sham, small, tmp_path):
    class Impatient(Diary):
        def on_finish(self, cell, failure, found=""):
            raise KeyboardInterrupt

    places = Places(tmp_path)
    runner = Runner(places, GridSampler(small, places), "sham_cells:hang", Resources(2, 1), Impatient())
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert runner._running == []
    written = [path.read_text(encoding="ascii") for path in (tmp_path / "cells").glob("*/pid")]
    assert all(gone(int(pid)) for pid in written if pid)  # one that was ended while it wrote may have written nothing


@pytest.fixture
def admission(monkeypatch, tables, tmp_path):
    """A function: may another cell start, with these cells running (bytes now, past its teacher), peak and bytes left?

    The cells differ in their teacher if asked for.
    """

    def admit(running, peak, available, processes=4, teachers=1):
        axis = {"name": "t", "key": "teacher.epochs", "values": list(range(1, teachers + 1))}
        changed = {**tables, "seeds": 9, "base": {"controls": []}, "axis": [axis], "exclude": []}
        cells = list(distinct(expand(Study.parse(changed))).values())
        monkeypatch.setattr(runner_module, "available_memory", lambda: available)
        places, sampler = Places(tmp_path), GridSampler(cells[len(running) :], Places(tmp_path))
        sampler.begin()
        runner = Runner(places, sampler, "x:y", Resources(processes, 1), Diary(), peak=peak)
        for cell, (now, past) in zip(cells, running, strict=False):
            one = _Running(cell, SimpleNamespace(), runner_module._teacher_of(cell), past, now=now)
            runner._running.append(one)
            if past:
                runner._cached_teachers.add(one.teacher)
        return runner._next() is not None

    return admit


def test_the_first_cell_starts_whatever_memory_there_is(admission):
    assert admission([], peak=0, available=0)


def test_no_more_cells_run_than_there_are_processes(admission):
    assert admission([(1, True)], peak=1, available=GIGABYTE, processes=2)
    assert not admission([(1, True), (1, True)], peak=1, available=GIGABYTE, processes=2)


def test_until_a_peak_is_known_one_cell_runs_alone(admission):
    assert not admission([(5, False)], peak=0, available=GIGABYTE, teachers=2)


def test_another_cell_needs_room_for_the_largest_peak_and_for_what_others_may_still_grow(admission):
    peak = 4 * GIGABYTE
    running = [(4 * GIGABYTE, True), (1 * GIGABYTE, True)]
    assert admission(running, peak, available=7 * GIGABYTE)
    assert not admission(running, peak, available=7 * GIGABYTE - 1)


def test_where_the_system_tells_nothing_only_the_number_of_processes_counts(admission):
    assert admission([(0, True)], peak=0, available=None)


def test_cells_wait_for_the_one_that_makes_their_teacher_and_others_do_not(admission):
    assert not admission([(1, False)], peak=1, available=GIGABYTE, teachers=1)
    assert admission([(1, True)], peak=1, available=GIGABYTE, teachers=1)
    assert admission([(1, False)], peak=1, available=GIGABYTE, teachers=2)


def test_the_peak_is_that_of_the_whole_tree_of_a_cell_past_its_teacher(monkeypatch, small, tmp_path):
    monkeypatch.setattr(runner_module.connection, "wait", lambda sources, timeout: [])
    monkeypatch.setattr(runner_module, "tree_memory", lambda pids: {pid: Memory(3, 7 * pid) for pid in pids})
    places = Places(tmp_path)
    runner = Runner(places, GridSampler(small, places), "x:y", Resources(2, 1), Diary())
    for pid, past in ((1, True), (2, False)):
        process = SimpleNamespace(pid=pid, sources=[], pipe=None, sentinel=None)
        runner._running.append(_Running(small[0], process, "teacher", past))
    assert runner._wait() == []
    assert (runner.peak, [one.now for one in runner._running]) == (7, [3, 3])


@pytest.mark.parametrize(
    ("runtime", "cores", "asked", "gpu", "expected"),
    [
        ({}, 8, None, False, (8, 1)),
        ({"threads": 2}, 8, None, False, (4, 2)),
        ({"threads": 4}, 2, None, False, (1, 4)),
        ({}, 8, 2, False, (2, 4)),
        ({"threads": 3}, 8, 2, False, (2, 3)),
        ({}, 16, None, True, (1, 16)),
        ({}, 16, 2, True, (2, 8)),
    ],
)
def test_processes_and_threads_fill_the_cores(runtime, cores, asked, gpu, expected):
    found = Resources.of(Experiment.parse({"runtime": runtime}), cores, asked, gpu)
    assert (found.processes, found.threads) == expected


def test_a_placed_cell_is_named_by_its_fingerprint_and_shows_no_progress_of_its_own(small, tmp_path):
    experiment = placed(small[0], Places(tmp_path), threads=3, again=True)
    assert (experiment.name, experiment.runtime.folder) == (small[0].fingerprint, tmp_path / "cells")
    assert (experiment.runtime.threads, experiment.runtime.resume) == (3, True)
    assert experiment.runtime.callbacks == ["tensorboard"]
