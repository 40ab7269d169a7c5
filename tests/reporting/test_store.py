"""A run's folder: complete or absent, held by one process, resumable after a kill at any instant."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import tomllib

import pytest
import tomli_w

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError, ConfigError, TrainingError
from fed_distill.reporting import store as store_module
from fed_distill.reporting.store import RunStore, read_audit, read_records, read_summary
from fed_distill.storage.sealed import chained

EXPERIMENT = Experiment(name="trial", seed=3)


def line(federation, round, seed=3):
    return {"seed": seed, "federation": federation, "round": round, "train_loss": 0.5}


def written(folder):
    return [(record["seed"], record["federation"], record["round"]) for record in read_records(folder)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "trial"


def test_a_new_run_holds_the_complete_experiment_and_the_versions(folder):
    with RunStore.create(folder, EXPERIMENT):
        text = (folder / "experiment.toml").read_text()
    assert Experiment.read(folder / "experiment.toml") == EXPERIMENT
    assert tomllib.loads(text)["training"]["merchants"]["batch_size"] == 32
    comment = text.splitlines()[0]
    assert comment.startswith("# ")
    assert all(f"{name} " in comment for name in ("fed-distill", "python", "torch", "transformers", "flwr"))


def test_an_existing_run_is_not_written_over(folder):
    RunStore.create(folder, EXPERIMENT).close()
    before = sorted(path.name for path in folder.parent.rglob("*"))
    with pytest.raises(ConfigError, match=r"trial exists: continue this run with --resume.*--name"):
        RunStore.create(folder, EXPERIMENT)
    assert sorted(path.name for path in folder.parent.rglob("*")) == before


def test_a_folder_with_other_things_in_it_is_not_written_into(folder):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists: continue this run"):
        RunStore.create(folder, EXPERIMENT)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.fixture
def of_table(tmp_path):
    """An experiment on a table, whose file it names, and with a ledger, which a run writes."""
    for name in ("table.csv", "ledger.sqlite"):
        (tmp_path / name).write_text("before")
    return EXPERIMENT.with_changes(
        {"data.options": {"path": str(tmp_path / "table.csv")}, "privacy.ledger": str(tmp_path / "ledger.sqlite")}
    )


def test_a_run_whose_files_have_changed_is_not_resumed(folder, of_table, tmp_path):
    RunStore.create(folder, of_table).close()
    (tmp_path / "ledger.sqlite").write_text("after")
    RunStore.resume(folder, of_table).close()
    (tmp_path / "table.csv").write_text("after")
    with pytest.raises(CheckpointError, match=r"table.csv has changed since the run in .*trial began.*--name"):
        RunStore.resume(folder, of_table)
    (tmp_path / "table.csv").write_text("before")
    RunStore.resume(folder, of_table).close()


def test_a_run_whose_files_are_elsewhere_or_that_is_of_an_earlier_release_is_resumed(folder, of_table, tmp_path):
    RunStore.create(folder, of_table).close()
    (tmp_path / "table.csv").rename(tmp_path / "moved.csv")
    with RunStore.resume(folder, of_table) as store:
        assert store.folder == folder
    (folder / "checkpoint" / "files.json").unlink()
    (tmp_path / "table.csv").write_text("after")
    with RunStore.resume(folder, of_table) as store:
        assert store.records() == []


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_run_that_does_not_fit_on_the_disk_leaves_nothing(folder, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(CheckpointError, match=r"trial cannot be written .*: free some space and start the run again$"):
        RunStore.create(folder, EXPERIMENT)
    assert list(folder.parent.iterdir()) == []


def test_an_interrupt_while_a_run_is_created_leaves_nothing(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "mark_layout", interrupt)
    with pytest.raises(KeyboardInterrupt):
        RunStore.create(folder, EXPERIMENT)
    assert list(folder.parent.iterdir()) == []


def test_lines_are_appended_and_read_back(folder):
    with RunStore.create(folder, EXPERIMENT) as store:
        assert store.records() == []
        store.append(line("fedavg", 1))
        store.append(line("fedavg", 2))
        assert store.records() == [line("fedavg", 1), line("fedavg", 2)]


def test_a_number_that_is_not_finite_is_not_written(folder):
    with RunStore.create(folder, EXPERIMENT) as store:
        with pytest.raises(TrainingError, match="train_loss is nan"):
            store.append({**line("fedavg", 1), "train_loss": float("nan")})
        with pytest.raises(TrainingError, match=r"summary\.json: student\.auc is inf"):
            store.write_summary({"student": {"auc": float("inf")}})
    assert not (folder / "metrics.jsonl").exists()
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_dropped_on_resume(folder, cut):
    with RunStore.create(folder, EXPERIMENT) as store:
        store.append(line("fedavg", 1))
        store.append(line("fedavg", 2))
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(content[:-cut])
    assert written(folder) == [(3, "fedavg", 1)]
    with RunStore.resume(folder, EXPERIMENT) as store:
        store.append(line("fedavg", 2))
    assert (folder / "metrics.jsonl").read_bytes() == content


def test_a_damaged_line_in_the_middle_is_named(folder):
    with RunStore.create(folder, EXPERIMENT) as store:
        store.append(line("fedavg", 1))
    (folder / "metrics.jsonl").write_text('{"seed": 3\n' + json.dumps(line("fedavg", 2)) + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1"):
        read_records(folder)


@pytest.mark.parametrize(
    "text",
    ["[1]", "{}", '{"seed": 3, "round": 1}', '{"seed": 3, "federation": "fedavg", "round": "1"}'],
)
def test_a_line_that_is_no_rounds_record_is_named(folder, text):
    RunStore.create(folder, EXPERIMENT).close()
    (folder / "metrics.jsonl").write_text(text + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1 is not a round's record"):
        read_records(folder)


ROUNDS = [("fedavg", 1, 3), ("fedavg", 2, 3), ("fedavg-kd", 1, 3), ("fedavg-kd", 2, 3), ("fedavg", 1, 4)]


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        ((3, "fedavg", 0), [2, 3, 4]),
        ((3, "fedavg", 1), [0, 2, 3, 4]),
        ((3, "fedavg", 2), [0, 1, 2, 3, 4]),
        ((3, "fedavg-kd", 0), [0, 1, 4]),
        ((3, "fedavg-kd", 1), [0, 1, 2, 4]),
        ((4, "fedavg", 0), [0, 1, 2, 3]),
        ((4, "fedavg", 1), [0, 1, 2, 3, 4]),
        ((4, "fedavg-kd", 0), [0, 1, 2, 3, 4]),
    ],
)
def test_rewinding_cuts_a_federations_lines_after_the_resume_point_and_no_others(folder, point, kept):
    with RunStore.create(folder, EXPERIMENT) as store:
        for federation, round, seed in ROUNDS:
            store.append(line(federation, round, seed))
        store.rewind(*point)
    assert written(folder) == [(seed, federation, round) for federation, round, seed in map(ROUNDS.__getitem__, kept)]


def test_rewinding_says_whether_the_round_to_resume_from_has_its_line(folder):
    """A round is written down after its checkpoint, so that a crash between both leaves a checkpoint without a line."""
    with RunStore.create(folder, EXPERIMENT) as store:
        store.append(line("fedavg", 1))
        assert store.rewind(3, "fedavg", 0)
        assert not store.rewind(3, "fedavg", 2)
        assert not store.rewind(4, "fedavg", 1)


def chain(lines):
    """The hash that a checkpoint has of these lines."""
    found = ""
    for record in lines:
        found = chained(found, record)
    return found


LINES = [line("fedavg", 1), line("fedavg-kd", 1), line("fedavg", 2), line("fedavg", 1, seed=4)]


def test_lines_as_they_were_written_are_told_by_federation_and_seed(folder):
    with RunStore.create(folder, EXPERIMENT) as store:
        for record in LINES:
            store.append(record)
        store.check(3, "fedavg", chain([LINES[0], LINES[2]]), "")
        store.check(3, "fedavg-kd", chain(LINES[1:2]), "")
        store.check(4, "fedavg", chain(LINES[3:]), "")
        store.check(4, "fedavg-kd", chain([]), "")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:2],
        lambda lines: [*lines, lines[0]],
        lambda lines: [lines[2], lines[1], lines[0]],
        lambda lines: [lines[0].replace("0.5", "0.6"), *lines[1:]],
        lambda lines: [lines[0].replace('"seed": 3', '"seed": 4'), *lines[1:]],
        lambda lines: [lines[0].replace("train_loss", "train_lost"), *lines[1:]],
    ],
    ids=["first lost", "last lost", "doubled", "moved", "digit", "seed", "key"],
)
def test_a_line_that_was_changed_lost_doubled_or_moved_is_found(folder, change):
    with RunStore.create(folder, EXPERIMENT) as store:
        for record in LINES[:3]:
            store.append(record)
        path = folder / "metrics.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
        with pytest.raises(
            CheckpointError, match=r"lines of fedavg on seed 3 in .*metrics\.jsonl were changed: .* or mend it"
        ):
            store.check(3, "fedavg", chain([LINES[0], LINES[2]]), "mend it")


@pytest.mark.parametrize("record", [line("fedbvg", 1), line("fedavg", 1, seed=9)])
def test_a_line_of_what_the_run_does_not_have_is_named_on_resume(folder, record):
    with RunStore.create(folder, EXPERIMENT) as store:
        store.append(line("fedavg", 1))
        store.append(record)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2 is of fed.vg on seed .*not part of this run"):
        RunStore.resume(folder, EXPERIMENT)


def test_there_must_be_a_run_to_resume(folder):
    with pytest.raises(CheckpointError, match=r"no run in .*trial to resume, .*without --resume"):
        RunStore.resume(folder, EXPERIMENT)
    folder.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"experiment\.toml is missing, .*restore it or use another --name"):
        RunStore.resume(folder, EXPERIMENT)


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"training.merchants.learning_rate": 0.5}, "training.merchants.learning_rate", "was 0.003 and is 0.5 now"),
        ({"training.server.clip_norm": 1.0}, "training.server.clip_norm", "was inf and is 1.0 now"),
        ({"federation.options": {"epochs": 2}}, "federation.options.epochs", "was not set and is 2 now"),
        ({"repeats": 2, "federation.rounds": 3}, "repeats", "was 1 and is 2 now"),
    ],
)
def test_a_run_of_another_experiment_is_not_resumed(folder, changes, key, values):
    RunStore.create(folder, EXPERIMENT).close()
    with pytest.raises(CheckpointError, match=f"another experiment: {key} {values}"):
        RunStore.resume(folder, EXPERIMENT.with_changes(changes))


def test_a_run_of_a_version_without_a_key_goes_on_with_its_default_and_no_other(folder):
    RunStore.create(folder, EXPERIMENT).close()
    path = folder / "experiment.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    del tables["training"]["server"]["optimizer"]
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    RunStore.resume(folder, EXPERIMENT).close()
    other = EXPERIMENT.with_changes({"training.server.optimizer": "sgd", "training.server.momentum": 0.9})
    with pytest.raises(CheckpointError, match=r"another experiment: training.server.optimizer was 'adamw'"):
        RunStore.resume(folder, other)


def test_where_a_run_is_kept_and_what_follows_it_may_change_on_resume(folder):
    RunStore.create(folder, EXPERIMENT).close()
    changed = EXPERIMENT.with_changes({"runtime.threads": 1, "runtime.callbacks": []})
    with RunStore.resume(folder, changed) as store:
        assert store.folder == folder


def test_who_is_waited_for_may_change_on_resume_also_of_what_is_compared(folder):
    def compared(**changes):
        other = {"label": "other", "method": "fedavg", **changes}
        return EXPERIMENT.with_changes({"compare": [other], "federation.retries": changes.get("retries", 3)})

    RunStore.create(folder, compared()).close()
    RunStore.resume(folder, compared(retries=9, deadline=5.0)).close()
    with pytest.raises(CheckpointError, match="another experiment: compare was"):
        RunStore.resume(folder, compared(rounds=7))


def test_a_run_is_written_by_one_process_at_a_time(folder):
    with (
        RunStore.create(folder, EXPERIMENT),
        pytest.raises(CheckpointError, match=f"written by process {os.getpid()}: .*--name"),
    ):
        RunStore.resume(folder, EXPERIMENT)
    RunStore.resume(folder, EXPERIMENT).close()


def test_a_refused_resume_lets_go_of_the_lock(folder):
    RunStore.create(folder, EXPERIMENT).close()
    with pytest.raises(CheckpointError, match="another experiment"):
        RunStore.resume(folder, EXPERIMENT.with_changes({"seed": 4}))
    with RunStore.resume(folder, EXPERIMENT) as store:
        assert store.records() == []


HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.truncate(0); lock.write(str(__import__("os").getpid())); lock.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_taken_over(folder):
    RunStore.create(folder, EXPERIMENT).close()
    command = [sys.executable, "-c", HOLDER, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"written by process {holder.pid}"):
            RunStore.resume(folder, EXPERIMENT)
        holder.kill()
        holder.wait()
        with RunStore.resume(folder, EXPERIMENT):
            assert (folder / ".lock").read_text() == f"{os.getpid()}\n"


def test_what_a_killed_write_left_is_removed_on_resume(folder):
    RunStore.create(folder, EXPERIMENT).close()
    (folder / ".summary.json.12345678.tmp").write_text("{")
    RunStore.resume(folder, EXPERIMENT).close()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "checkpoint", "experiment.toml"]


def test_the_student_is_replaced_as_a_whole(folder):
    with RunStore.create(folder, EXPERIMENT) as store:
        store.save_student(lambda path: (path / "a.bin").write_bytes(b"1"))
        assert store.save_student(lambda path: (path / "b.bin").write_bytes(b"2")) == folder / "student"
    assert [path.name for path in (folder / "student").iterdir()] == ["b.bin"]


def test_the_summary_is_read_back_and_a_missing_one_explained(folder):
    with (
        RunStore.create(folder, EXPERIMENT),
        pytest.raises(CheckpointError, match=rf"has no summary\.json yet: process {os.getpid()} is running it; wait"),
    ):
        read_summary(folder)
    with pytest.raises(CheckpointError, match=r"is not finished; .*--resume"):
        read_summary(folder)
    with RunStore.resume(folder, EXPERIMENT) as store:
        store.write_summary({"schema": 1, "student": {"auc": None}})
    assert read_summary(folder) == {"schema": 1, "student": {"auc": None}}


def test_what_an_audit_found_is_read_from_the_summary_or_its_damage_named(folder):
    with RunStore.create(folder, EXPERIMENT) as store:
        for audit in (None, {"auc": 0.5}):
            store.write_summary({"privacy": {"unit": "none", "audit": audit}})
            assert read_audit(folder) == audit
        for damaged in ({}, {"privacy": None}, {"privacy": {"unit": "none"}}):
            store.write_summary(damaged)
            with pytest.raises(CheckpointError, match=r"summary\.json has no entry for the audit: .*delete it"):
                read_audit(folder)


def test_who_looks_whether_a_run_is_written_does_not_keep_it_from_being_resumed(folder):
    RunStore.create(folder, EXPERIMENT).close()
    with (folder / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with RunStore.resume(folder, EXPERIMENT):
            assert (folder / ".lock").read_text() == f"{os.getpid()}\n"
