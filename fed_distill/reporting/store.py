"""The folder of a run: experiment, records of rounds, summary, student and report.

The folder is created atomically, is locked by one process at a time, and can be resumed after a process was killed.
"""

import fcntl
import json
import os
import shutil
import time
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fed_distill.config import Experiment
from fed_distill.config.federation import INTAKE
from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.storage.files import (
    read_json,
    remove_leftovers,
    replace_folder,
    space_for,
    strict_json,
    sync_folder,
    write_atomic,
)
from fed_distill.storage.fingerprint import named_files
from fed_distill.storage.parts import CHECKPOINT, check_layout, mark_layout
from fed_distill.storage.sealed import chained
from fed_distill.storage.versions import versions

EXPERIMENT, METRICS, SUMMARY = "experiment.toml", "metrics.jsonl", "summary.json"
REPORT, CLASSES, STUDENT, LOCK = "report.html", "classification_report.txt", "student", ".lock"
_UNIT = {"seed": int, "federation": str, "round": int}
IRRELEVANT_ON_RESUME = ("runtime.", *(f"federation.{key}" for key in INTAKE))


DATA, FILES = "data.json", "files.json"
"""Files in ``checkpoint`` with fingerprints of the data that the run began with, and of the files that it names."""

_TRIES = 20
"""Attempts to lock a folder, in a second."""


class RunStore:
    """The folder of one run, locked for writing. Open it with ``create`` or ``resume``; close it, or use ``with``.

    ``metrics.jsonl`` is in order of the rounds: append the record of a round after its checkpoint is written, and
    ``rewind`` to the checkpoint on resume, which has the record of its last round, so that no round is missing or
    duplicated.
    """

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def create(cls, folder: Path, experiment: Experiment) -> Self:
        """Create a run in a new ``folder``.

        :raises ConfigError: the folder is not empty
        :raises CheckpointError: the disk is full; nothing is left
        """
        with space_for(folder, "start the run again"), ExitStack() as undo:
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
            fresh.mkdir()
            undo.callback(shutil.rmtree, fresh, ignore_errors=True)
            lock = undo.enter_context(_take_lock(fresh))
            header = ", ".join(f"{name} {version}" for name, version in versions().items())
            mark_layout(fresh / CHECKPOINT)
            write_atomic(fresh / EXPERIMENT, f"# Written by {header}\n{experiment.to_toml()}")
            write_atomic(fresh / CHECKPOINT / FILES, json.dumps(_files_of(experiment), indent=2) + "\n")
            try:
                os.rename(fresh, folder)
            except OSError as error:
                if not folder.exists():
                    raise
                raise ConfigError(
                    f"{folder} exists: continue this run with --resume, or start another one with --name NAME"
                ) from error
            undo.pop_all()
        sync_folder(folder.parent)
        return cls(folder, lock)

    @classmethod
    def resume(cls, folder: Path, experiment: Experiment) -> Self:
        """Resume the run in ``folder``.

        :raises CheckpointError: it is missing, locked, of another experiment, or of a version with another layout; or a
            file that the experiment names has changed since it began
        """
        path = folder / EXPERIMENT
        if not folder.exists():
            raise CheckpointError(
                f"there is no run in {folder} to resume, and nothing was saved there: start it without --resume"
            )
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, so the run cannot be resumed: restore it or use another --name")
        lock = _take_lock(folder)
        try:
            check_layout(folder / CHECKPOINT)
            check_same(folder, experiment)
            check_files(folder)
            mark_layout(folder / CHECKPOINT)
            store = cls(folder, lock)
            remove_leftovers(folder)
            store._drop_torn_line()
            store._check_belongs(experiment)
        except BaseException:
            lock.close()
            raise
        return store

    @classmethod
    def opened(cls, folder: Path) -> Self:
        """Lock a finished run, to add results to it; raise CheckpointError if another process has locked it."""
        return cls(folder, _take_lock(folder))

    def check_data(self, fingerprint: str) -> None:
        """Raise CheckpointError if the run began with other data; keep the fingerprint of a run that has none."""
        path = self.folder / CHECKPOINT / DATA
        if not path.exists():
            write_atomic(path, json.dumps({"fingerprint": fingerprint}) + "\n")
        elif read_json(path) != {"fingerprint": fingerprint}:
            raise CheckpointError(
                f"{self.folder} began with other data: its files, or how this version reads them, have changed since. "
                "Restore them, or start another run with --name (for a study or a tuning: --out)"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Append the record of a round to ``metrics.jsonl`` and flush it to disk.

        :raises TrainingError: a number is not finite
        :raises CheckpointError: the disk is full; an incomplete line is dropped on resume
        """
        line = strict_json(record, METRICS)
        with space_for(self.folder / METRICS), (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """Return all records of ``metrics.jsonl``."""
        return read_records(self.folder)

    def rewind(self, seed: int, federation: str, round: int) -> bool:
        """Drop a federation's records after a round, at which it resumes; records of other federations are kept.

        :returns: whether the record of that round exists, as it always does for round 0, before the first one
        """
        records = self.records()
        unit = [line for line in records if (line["seed"], line["federation"]) == (seed, federation)]
        kept = [line for line in records if line not in unit or line["round"] <= round]
        if len(kept) < len(records):
            self._write_records(kept)
        return round == 0 or any(line["round"] == round for line in unit)

    def check(self, seed: int, federation: str, lines: str, remedy: str) -> None:
        """Raise CheckpointError, with the ``remedy``, unless a federation's records have the hash ``lines``."""
        found = ""
        for record in self.records():
            if (record["seed"], record["federation"]) == (seed, federation):
                found = chained(found, record)
        if found != lines:
            raise CheckpointError(
                f"the lines of {federation} on seed {seed} in {self.folder / METRICS} were changed: "
                f"restore a copy of the file, or {remedy}"
            )

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json``; raise TrainingError, naming the key, if a number is not finite."""
        return self.write(SUMMARY, strict_json(summary, SUMMARY, indent=2) + "\n")

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file of the run atomically and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        return path

    def save_student(self, save: Callable[[Path], None]) -> Path:
        """Replace ``student/``; ``save`` (such as ``TextModel.save``) writes into the folder that it receives."""
        replace_folder(self.folder / STUDENT, save)
        return self.folder / STUDENT

    def close(self) -> None:
        """Unlock the run, so that another process may resume it."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop_torn_line(self) -> None:
        path = self.folder / METRICS
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_atomic(path, whole)

    def _check_belongs(self, experiment: Experiment) -> None:
        seeds, arms = range(experiment.seed, experiment.seed + experiment.repeats), experiment.arms()
        for number, record in enumerate(self.records(), start=1):
            if record["seed"] not in seeds or record["federation"] not in arms:
                raise CheckpointError(
                    f"{self.folder / METRICS}, line {number} is of {record['federation']} on seed {record['seed']}, "
                    "which is not part of this run: the file was damaged or edited; restore a copy of it, or delete "
                    "the line to train its federation again"
                )

    def _write_records(self, records: Iterable[Mapping[str, Any]]) -> None:
        write_atomic(self.folder / METRICS, "".join(strict_json(record, METRICS) + "\n" for record in records))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of ``metrics.jsonl`` without a torn last line; raise CheckpointError for other errors."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line, parse_constant=_no_number)
        except ValueError as error:
            raise CheckpointError(f"{path}, line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict) or any(type(record.get(key)) is not kind for key, kind in _UNIT.items()):
            raise CheckpointError(
                f"{path}, line {number} is not a round's record: seed, federation or round is missing"
            )
        records.append(record)
    return records


def read_experiment(folder: Path) -> Experiment:
    """Return the experiment of a run; raise CheckpointError if it is missing, ConfigError if it cannot be read."""
    path = folder / EXPERIMENT
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {EXPERIMENT}: it is not the folder of a run")
    return Experiment.read(path)


def read_summary(folder: Path, needs: Iterable[str] = ()) -> dict[str, Any]:
    """Return ``summary.json`` of a run; raise CheckpointError if it is missing, damaged or without one of ``needs``."""
    path = folder / SUMMARY
    if not path.exists() and not (folder / EXPERIMENT).exists():
        raise CheckpointError(f"{folder} has no {SUMMARY} and no {EXPERIMENT}: it is not the folder of a run")
    if not path.exists():
        if holder := writer(folder):
            raise CheckpointError(f"{folder} has no {SUMMARY} yet: process {holder} is running it; wait until it ends")
        raise CheckpointError(f"{folder} has no {SUMMARY}: the run is not finished; continue it with --resume")
    summary = read_json(path)
    if not isinstance(summary, dict) or not set(needs) <= set(summary):
        raise CheckpointError(f"{path} is not a run's summary: restore a copy of it, or delete the run to repeat it")
    return summary


def read_audit(folder: Path) -> dict[str, Any] | None:
    """Return the audit of a finished run, or None; raise CheckpointError if the summary is missing or damaged."""
    privacy = read_summary(folder).get("privacy")
    if not isinstance(privacy, dict) or "audit" not in privacy:
        raise CheckpointError(
            f"{folder / SUMMARY} has no entry for the audit: it is damaged; delete it to write it again"
        )
    audit: dict[str, Any] | None = privacy["audit"]
    return audit


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _take_lock(folder: Path) -> IO[str]:
    """Lock the folder for this process; the system releases the lock when the process ends. Who only looks whether it
    is locked (``writer``) has it for an instant, so it is tried again for a second."""
    lock = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        for attempt in range(_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(1 / _TRIES)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise CheckpointError(
            f"{folder} is being written by process {holder}: wait for it, end it if it hangs, or use another --name"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def writer(folder: Path) -> str:
    """Return the number of the process that is writing a run, as text, or an empty one if there is none."""
    if not (folder / LOCK).is_file():
        return ""
    with (folder / LOCK).open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return lock.read().strip() or "unknown"
    return ""


def check_same(folder: Path, experiment: Experiment) -> None:
    """Raise CheckpointError unless the run in ``folder`` is of this experiment, ignoring where and how it is computed.

    Keys that its version did not have are taken to be at their default."""
    path = folder / EXPERIMENT
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    added = _flat(tomllib.loads(Experiment().to_toml()))  # defaults for keys that the run's version did not have
    now = _flat(_decisive(tomllib.loads(experiment.to_toml())))
    before = {**{key: value for key, value in added.items() if key in now}, **_flat(_decisive(stored))}
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key) and not key.startswith(IRRELEVANT_ON_RESUME):
            raise CheckpointError(
                f"{path} is of another experiment: {key} was {_shown(before, key)} and is "
                f"{_shown(now, key)} now. Use the same value, or another --name (for a study or a tuning: --out)"
            )


def check_files(folder: Path, read: Callable[[str], Mapping[str, str]] = named_files) -> None:
    """Raise CheckpointError if a file that an experiment names has changed since its run in ``folder`` began.

    Files that no longer exist are ignored, since results can be read without them. Runs of earlier releases have no
    fingerprints to compare.

    :param read: returns the fingerprint of a file by its path, as ``named_files``
    """
    path = folder / CHECKPOINT / FILES
    for name, before in (read_json(path) if path.exists() else {}).items():
        if read(name).get(name, before) != before:
            raise CheckpointError(
                f"{name} has changed since the run in {folder} began, so that results of before and after would be "
                "mixed: restore the file, or use another --name (for a study or a tuning: --out)"
            )


def _files_of(experiment: Experiment) -> dict[str, str]:
    """Return fingerprints of the files that an experiment reads; a ledger is written, too, and is none of them."""
    tables = experiment.model_dump(mode="json", exclude={"name": True, "runtime": True, "privacy": {"ledger"}})
    return named_files(tables)


def _decisive(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables without what the compared federations may also change on resume."""
    compared = [{key: value for key, value in one.items() if key not in INTAKE} for one in tables.get("compare", [])]
    return {**tables, "compare": compared}


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
