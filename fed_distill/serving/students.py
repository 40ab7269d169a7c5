"""The students in service, and their replacement without a dropped request.

A new student is loaded and checked beside the old one, and becomes the current one by one assignment. Requests hold the
student they began with, which is released when the last of them ends. A student that is refused changes nothing.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from fed_distill.data.student_description import DESCRIPTION
from fed_distill.errors import ConfigError
from fed_distill.serving.api_keys import KeyRing
from fed_distill.serving.exported_folder import CONFORMANCE, EXPORT, REFERENCE
from fed_distill.serving.index_files import INDEX, current_files
from fed_distill.serving.served_student import LoadedStudent, ServedStudent, load_checked, load_products
from fed_distill.serving.service_config import SERVE, ServeConfig, StudentTable, read_serve_config
from fed_distill.serving.service_metrics import ServiceMetrics
from fed_distill.serving.shadow import Unmetered
from fed_distill.text.cleaning import mask
from fed_distill.text.encoders import TOKENIZER

Role = Literal["student", "canary", "shadow"]
Signature = tuple[tuple[int, ...], ...]

_log = logging.getLogger(__name__)


class Students:
    """The current student, the canary and the shadow, and the loop that watches their folders and the keys.

    problems: by role or ``keys``, why the newest version was refused; empty if none was. shadow_executor: thread of the
    shadow, so that it does not hold up those that answer.
    """

    def __init__(self, config: ServeConfig, folder: Path | None, keys: KeyRing, metrics: ServiceMetrics) -> None:
        """folder: with ``serve.toml``; None if there is none."""
        self._config, self._keys, self._metrics = config, keys, metrics
        self._file = None if folder is None else folder / SERVE
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="scoring")
        self.shadow_executor = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._served: dict[Role, ServedStudent] = {}
        self._seen: dict[str, Signature] = {}
        self._loading = asyncio.Lock()
        self.problems: dict[str, str] = {}
        if self._file is not None:
            self._seen["keys"] = _signature((self._file,))

    @property
    def versions(self) -> Mapping[Role, str]:
        """Version of each student in service."""
        return {role: student.version for role, student in self._served.items()}

    @property
    def ready(self) -> bool:
        """Whether there is a student to answer with."""
        return "student" in self._served

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch of an answer."""
        return sum(student.waiting for student in self.answering.values())

    @property
    def answering(self) -> Mapping[Role, ServedStudent]:
        """The students that answer requests."""
        return {role: student for role, student in self._served.items() if role != "shadow"}

    def current(self) -> ServedStudent | None:
        """Return the current student."""
        return self._served.get("student")

    def shadow(self) -> ServedStudent | None:
        """Return the student that is asked in the background."""
        return self._served.get("shadow")

    def chosen(self, session: bytes) -> ServedStudent | None:
        """Return the student for a session, the same as long as shares and students stay."""
        canary = self._config.canary
        if canary is not None and "canary" in self._served:
            place = int.from_bytes(hashlib.sha256(session).digest()[:8]) / 2**64
            if place < canary.share:
                return self._served["canary"]
        return self._served.get("student")

    @property
    def has_canary(self) -> bool:
        """Whether requests are shared with a canary."""
        return self._config.canary is not None

    def load(self) -> None:
        """Load the students before the service starts; errors are those of ``load_checked``.

        Keys are read too: a worker that starts later must not accept a key that was removed since the service began.

        :raises ConfigError: ``serve.toml`` is no longer valid
        """
        if self._file is not None:
            self._keys.replace(read_serve_config(self._file.parent).key)
        for role, table in self._tables().items():
            self._seen[role], self._seen[_index_of(role)] = _signatures(table)
            self._put(role, load_checked(table, self._config.service.threads))

    async def watch(self) -> None:
        """Reload what has changed, until cancelled."""
        while True:
            await self.reload()
            await asyncio.sleep(self._config.service.watch_seconds)

    async def reload(self, force: bool = False) -> dict[str, str]:
        """Load students and keys that have changed, or all with ``force``, and return ``problems``.

        Of a student whose index alone has changed, only the index is loaded: its cached vectors stay.
        """
        async with self._loading:
            for role, table in self._tables().items():
                files, index = await asyncio.to_thread(_signatures, table)
                same_files, same_index = files == self._seen.get(role), index == self._seen.get(_index_of(role))
                self._seen[role], self._seen[_index_of(role)] = files, index
                if force or not same_files or not (same_index or self._serves_newest(role)):
                    await self._reload_student(role, table)
                elif not same_index and table.index is not None:
                    await self._reload_index(role, table.index)
            if self._file is not None:
                signature = await asyncio.to_thread(_signature, (self._file,))
                if force or signature != self._seen.get("keys"):
                    self._seen["keys"] = signature
                    await self._reload_keys(self._file.parent)
        return dict(self.problems)

    def close(self) -> None:
        """End the threads, after what they compute."""
        for executor in (self._executor, self.shadow_executor):
            executor.shutdown(wait=True)

    def _tables(self) -> dict[Role, StudentTable]:
        config = self._config
        tables: dict[Role, StudentTable | None] = {
            "student": config.service,
            "canary": config.canary,
            "shadow": config.shadow,
        }
        return {role: table for role, table in tables.items() if table is not None}

    async def _reload_student(self, role: Role, table: StudentTable) -> None:
        try:
            loaded = await asyncio.to_thread(load_checked, table, self._config.service.threads)
        except Exception as error:  # whatever is in the folder, the student before it stays
            self._refused(role, error)
        else:
            self._put(role, loaded)

    def _serves_newest(self, role: Role) -> bool:
        """Whether the student in service is that of its folder."""
        return role in self._served and role not in self.problems

    async def _reload_index(self, role: Role, folder: Path) -> None:
        served, what = self._served[role], _index_of(role)
        try:
            index = await asyncio.to_thread(load_products, folder, served.student)
        except Exception as error:  # whatever is in the folder, the index before it stays
            self._refused(what, error)
        else:
            served.use_index(index)
            self._loaded(what, f"{len(index)} products")

    async def _reload_keys(self, folder: Path) -> None:
        try:
            config = await asyncio.to_thread(read_serve_config, folder)
            self._keys.replace(config.key)
        except (ConfigError, OSError) as error:  # no bucket can be made for a new key
            self._refused("keys", error)
        else:
            self._loaded("keys", f"{len(config.key)}")

    def _put(self, role: Role, loaded: LoadedStudent) -> None:
        old = self._served.get(role)
        cached = self._config.service.cached_vectors
        executor, metrics = (self.shadow_executor, Unmetered()) if role == "shadow" else (self._executor, self._metrics)
        self._served[role] = ServedStudent(loaded, executor, self._config.limits, cached, metrics)
        if old is not None:
            self._metrics.student(role, old.version, old.student.variant, serving=False)
        self.problems.pop(_index_of(role), None)
        self._metrics.student(role, loaded.version, loaded.student.variant, serving=True)
        self._loaded(role, loaded.version)

    def _loaded(self, what: str, version: str) -> None:
        self.problems.pop(what, None)
        self._metrics.reloaded(what, "loaded")
        _log.info("%s loaded: %s", what, version)

    def _refused(self, what: str, error: Exception) -> None:
        self.problems[what] = mask(str(error))
        self._metrics.reloaded(what, "refused")
        _log.warning("%s refused, the one before stays: %s", what, mask(str(error)))


def _files_signature(table: StudentTable) -> Signature:
    """Return what changes when an own file of a student does: an incomplete copy is refused, and tried again."""
    paths = [table.student / name for name in (EXPORT, CONFORMANCE, DESCRIPTION, TOKENIZER, REFERENCE)]
    paths += _in_folder(table.student / table.variant)
    if table.trained is not None:
        for folder in (table.trained, table.trained / "student"):
            if (folder / DESCRIPTION).is_file():  # not the folder of a run, whose other files are not read
                paths += _in_folder(folder)
    return _signature(tuple(paths))


def _signatures(table: StudentTable) -> tuple[Signature, Signature]:
    """Return what changes when a file of a student does, and what does when its index does."""
    index = () if table.index is None else _signature((table.index / INDEX, *current_files(table.index)))
    return _files_signature(table), index


def _index_of(role: Role) -> str:
    """Return the name of a student's index in problems, metrics and the log."""
    return "index" if role == "student" else f"{role} index"


def _in_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, in order; nothing if it is not there."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _signature(paths: tuple[Path, ...]) -> Signature:
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = path.stat()
        except (OSError, ValueError):  # a damaged index.json may name what cannot be a file
            found.append((0,))
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
