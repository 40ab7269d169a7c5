"""Token buckets that all workers of a service share, so that a key has its rate however its requests are spread.

A bucket is a file of two numbers. A worker changes it while it holds the file's lock, which the kernel releases when
the worker dies, and by one write, which the kernel completes: a worker that is killed leaves neither a lock nor half a
bucket.
"""

import fcntl
import os
import struct
import weakref
from collections.abc import Callable
from pathlib import Path

from fed_distill.serving.api_keys import OwnBucket
from fed_distill.serving.service_config import KeyTable

_STATE = struct.Struct("<dd")


class SharedBucket:
    """The bucket of a key in a file. The monotonic clock is the same for all processes of a machine."""

    def __init__(self, path: Path) -> None:
        """path: the file, which is made if there is none: a bucket that is full."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._file)

    def wait(self, table: KeyTable, now: float) -> float:
        """Take a token, as ``TokenBucket`` describes."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            content = os.pread(self._file, _STATE.size, 0)
            bucket = OwnBucket(*_STATE.unpack(content)) if content else OwnBucket.full(table, now)
            waiting = bucket.wait(table, max(now, bucket.at))  # another worker may have looked at the clock later
            os.pwrite(self._file, _STATE.pack(bucket.tokens, bucket.at), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return waiting


def shared_buckets(folder: Path) -> Callable[[KeyTable, float], SharedBucket]:
    """Return what makes the bucket of a key in ``folder``, for ``KeyRing``."""
    return lambda table, now: SharedBucket(folder / table.sha256)
