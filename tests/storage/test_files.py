"""Files are whole or absent, and hold no NaN."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from fed_distill.errors import CheckpointError, TrainingError
from fed_distill.storage import files
from fed_distill.storage.files import (
    read_json,
    remove_leftovers,
    replace_folder,
    space_for,
    strict_json,
    write_atomic,
)


class Killed(BaseException):
    """Stands for the process ending at this instant."""


def kill(*_):
    raise Killed


def test_content_is_replaced(tmp_path):
    write_atomic(tmp_path / "a.txt", "ä old")
    write_atomic(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_process_killed_before_the_rename_leaves_the_old_content(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_content_is_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), replace(old, new)))
    write_atomic(tmp_path / "a.txt", "new")
    assert events == ["fsync", "rename", "fsync"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "student"
    replace_folder(folder, lambda path: write_atomic(path / "old.bin", b"1"))
    replace_folder(folder, lambda path: write_atomic(path / "new.bin", b"2"))
    assert [path.name for path in folder.iterdir()] == ["new.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_folder_stays_as_it_is_when_filling_fails(tmp_path):
    folder = tmp_path / "student"
    replace_folder(folder, lambda path: write_atomic(path / "model.bin", b"1"))

    def half(path):
        (path / "model.bin").write_bytes(b"ha")
        raise Killed

    with pytest.raises(Killed):
        replace_folder(folder, half)
    assert (folder / "model.bin").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def interrupted(at, monkeypatch, tmp_path):
    """Replace a folder's content, ``old``, and be interrupted at the rename of this number."""
    folder, replace, renames = tmp_path / "student", os.replace, iter(range(9))
    replace_folder(folder, lambda path: (path / "old.bin").write_bytes(b"1"))

    def interrupt(old, new):
        if next(renames) == at:
            raise Killed
        replace(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(Killed):
            replace_folder(folder, lambda path: (path / "new.bin").write_bytes(b"2"))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_folder_that_was_moved_aside_is_put_back_by_an_interrupt(tmp_path, monkeypatch, at):
    interrupted(at, monkeypatch, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "old.bin"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_folder_that_a_killed_process_moved_aside_is_put_back(tmp_path, monkeypatch, at):
    with monkeypatch.context() as patched:  # nothing tidies up after a SIGKILL
        patched.setattr(files, "_retire", lambda *_: None)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        interrupted(at, monkeypatch, tmp_path)
    assert (tmp_path / "student").exists() == (at == 1)
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "old.bin"]
    replace_folder(tmp_path / "student", lambda path: (path / "new.bin").write_bytes(b"2"))
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "new.bin"]


def test_the_outermost_remedy_of_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"a\.txt cannot be written .* start again .a run: with --resume."):
        write_atomic(tmp_path / "a.txt", "new")
    with pytest.raises(CheckpointError, match=r"b cannot be written .* start again"), space_for("b", "start again"):
        write_atomic(tmp_path / "a.txt", "new")


def test_two_processes_may_replace_a_folder_at_once(tmp_path, monkeypatch):
    """What the other one has put in between is replaced, too."""
    folder, replace, others = tmp_path / "teacher", os.replace, iter([b"1", b"2"])

    def meanwhile(old, new):
        if new == folder and (content := next(others, None)) is not None:
            folder.mkdir(exist_ok=True)
            (folder / "theirs.bin").write_bytes(content)
        replace(old, new)

    monkeypatch.setattr(os, "replace", meanwhile)
    replace_folder(folder, lambda path: (path / "own.bin").write_bytes(b"3"))
    assert [path.name for path in folder.iterdir()] == ["own.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".summary.json.0a1b2c3d.tmp").write_text("half")
    (tmp_path / ".student.0a1b2c3d.tmp").mkdir()
    (tmp_path / ".student.0a1b2c3d.tmp" / "model.bin").write_text("half")
    (tmp_path / "notes.tmp").write_text("mine")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tmp"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.float64("-inf")])
def test_a_number_that_is_not_finite_is_refused_with_its_key(value):
    with pytest.raises(TrainingError, match=r"summary\.json: rounds\[1\]\.auc is -?(nan|inf)"):
        strict_json({"rounds": [{"auc": 0.5}, {"auc": value}]}, "summary.json")


def test_numpy_numbers_are_written_as_numbers():
    text = strict_json({"a": np.float32(0.5), "b": np.int64(3), "c": None, "d": "ü"}, "x")
    assert json.loads(text) == {"a": 0.5, "b": 3, "c": None, "d": "ü"}


def test_a_missing_or_torn_json_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.json: No such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(CheckpointError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
