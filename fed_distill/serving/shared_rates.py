"""Token buckets that all workers of a service share, so that a key has its rate however its requests are spread.

A bucket is a file of two numbers. A worker changes it while it holds the file's lock, which the kernel releases when
the worker dies, and by one write, which the kernel completes: a worker that is killed leaves neither a lock nor half a
bucket.

A file that is removed while the service runs gives nobody a second rate: workers that have it open go on with it. A
worker that starts later makes a new one without a token, to which the others then go over.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from fed_distill.serving.api_keys import OwnBucket
from fed_distill.serving.service_config import KeyTable

_STATE = struct.Struct("<dd")


class SharedBucket:
    """The bucket of a key in a file. The monotonic clock is the same for all processes of a machine."""

    def __init__(self, path: Path, missing: OwnBucket | None = None) -> None:
        """path: the file, which is made if there is none. missing: the bucket that is then in it; None: a full one."""
        self._path, self._file = path, _opened(path)
        if missing is not None:
            with self._locked():
                if self._read() is None:
                    self._write(missing)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def wait(self, table: KeyTable, now: float) -> float:
        """Take a token, as ``TokenBucket`` describes."""
        if self._replaced():
            self._follow(table, now)
        with self._locked():
            bucket = self._read() or OwnBucket.full(table, now)
            waiting = bucket.wait(table, max(now, bucket.at))  # another worker may have looked at the clock later
            self._write(bucket)
        return waiting

    def _replaced(self) -> bool:
        """Whether another file has the place of the open one; if none has, nobody takes from another."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file))
        except OSError:
            return False

    def _follow(self, table: KeyTable, now: float) -> None:
        """Go over to the file that replaces the removed one, with no more tokens than either has."""
        before = self._read() or OwnBucket.full(table, now)
        file = _opened(self._path)
        os.close(self._file)
        self._file = file
        with self._locked():
            found = self._read() or before
            at = max(before.at, found.at, now)
            self._write(OwnBucket(min(before.at_time(table, at), found.at_time(table, at)), at))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read(self) -> OwnBucket | None:
        content = os.pread(self._file, _STATE.size, 0)
        return OwnBucket(*_STATE.unpack(content)) if content else None

    def _write(self, bucket: OwnBucket) -> None:
        os.pwrite(self._file, _STATE.pack(bucket.tokens, bucket.at), 0)


def shared_buckets(folder: Path, replaces: bool = False) -> Callable[[KeyTable, float], SharedBucket]:
    """Return what makes the bucket of a key in ``folder``, for ``KeyRing``.

    :param replaces: whether other workers have served before this one, and made the buckets of all keys: a file that
        is not there was removed, and its bucket is empty
    """
    return lambda table, now: SharedBucket(folder / table.sha256, OwnBucket(0.0, now) if replaces else None)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
