"""The folder that the workers of a service share, among temporary files.

A service lives for months, and programs that clean up remove old temporary files: systemd-tmpfiles after ten days, but
nothing of a folder that is locked (tmpfiles.d(5), "Age"). What was removed all the same is made anew for the next
worker; in the meantime another user may have made a folder of that name, which is not used.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from fed_distill.errors import ServiceError
from fed_distill.storage.files import write_atomic


class SharedFolder:
    """A folder that only this user can enter. path: the folder itself."""

    def __init__(self, settings: str) -> None:
        """settings: content of the file ``settings``; raises OSError if no folder can be made."""
        self.path = Path(tempfile.mkdtemp(prefix="fed-distill-serve-"))
        self._content = settings
        self._lock()
        self.complete()

    @property
    def settings(self) -> Path:
        """File with the settings of the service."""
        return self.path / "settings.json"

    @property
    def rates(self) -> Path:
        """Folder of the keys' token buckets."""
        return self.path / "rates"

    @property
    def metrics(self) -> Path:
        """Folder of the metrics of all workers."""
        return self.path / "metrics"

    def complete(self) -> None:
        """Make anew what was removed.

        :raises ServiceError: another folder has its name
        :raises OSError: the folder cannot be written
        """
        if not os.path.lexists(self.path):
            self.path.mkdir(0o700)
            self._lock()
        if not self._is_ours():
            raise ServiceError(f"{self.path} was replaced, perhaps by another user: look who made it, and start again")
        for folder in (self.rates, self.metrics):
            folder.mkdir(exist_ok=True)
        if not self.settings.exists():
            write_atomic(self.settings, self._content, private=True)

    def close(self) -> None:
        """Remove the folder."""
        if os.path.lexists(self.path) and self._is_ours():
            shutil.rmtree(self.path, ignore_errors=True)

    def _is_ours(self) -> bool:
        return os.path.samestat(self.path.lstat(), os.fstat(self._file))

    def _lock(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        fcntl.flock(self._file, fcntl.LOCK_SH)
