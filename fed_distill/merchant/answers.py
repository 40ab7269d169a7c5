"""A site's stored answers with protected examples, so that a repeated request gets identical bytes.

With a site's own secret, a second training would draw the same noise, but could sum in another order if the cohort has
other merchants. The difference of both answers would contain rounding errors without noise, and a high learning rate
makes rounding errors large.

An answer is on disk before it is sent. Answers of a merchant's newest two rounds are kept: a server that was killed
within a round can legitimately request this and the previous one again. If the newest charged answer is missing, it was
never sent, and its training may be repeated. An older answer that is requested again is a new release with a new
charge.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fed_distill.errors import CheckpointError, UplinkRejected
from fed_distill.mechanisms.release import Release
from fed_distill.storage.files import as_file_name, make_folder, remove_leftovers, space_for, write_atomic
from fed_distill.storage.sealed import DIGEST, check_end, checksum
from fed_distill.transport.messages import Kinds, Uplink
from fed_distill.transport.records import decode_uplink, encode_uplink, from_bytes, to_bytes

ANSWERS = "answers"
"""Folder of the answers beside the ledgers, not in a run's state, which users may delete."""
_KEPT_ROUNDS = 2
_SUFFIX = ".uplink"


class Answers:
    """Stored answers in ``folder``, by (arm of the experiment, seed, merchant, round, digest of the request)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder for all other threads and processes, so that equal requests are answered one by one.

        The lock is released when its process ends.
        """
        with space_for(self._folder):
            make_folder(self._folder)
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @property
    def identity(self) -> str:
        """Random identity of this folder. A new one changes all noise, so that lost answers cannot be reproduced."""
        path = self._folder / ".identity"
        if not path.exists():
            with space_for(path):
                make_folder(self._folder)
            write_atomic(path, secrets.token_hex(16), private=True)
        return path.read_text(encoding="ascii")

    def load(self, release: Release, kinds: Kinds) -> Uplink | None:
        """Load the answer to a request; None if it is not stored.

        :param kinds: allowed kinds of payloads
        :raises CheckpointError: the file cannot be read
        """
        path = self._path(release)
        if not path.exists():
            return None
        try:
            check_end(path)
            return decode_uplink(from_bytes(path.read_bytes()[:-DIGEST]), kinds)
        except (OSError, ValueError, UplinkRejected) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): its stored answer is lost") from error

    def save(self, release: Release, answer: Uplink) -> None:
        """Store an answer and delete those before the newest two rounds.

        :raises CheckpointError: the disk is full
        """
        path = self._path(release)
        with space_for(path):
            make_folder(path.parent)
        remove_leftovers(path.parent)
        content = to_bytes(encode_uplink(answer))
        write_atomic(path, content + checksum(content, path), private=True)
        earlier = [file for file in path.parent.glob(f"*{_SUFFIX}") if file != path]
        newest = sorted({_round(path), *map(_round, earlier)})[-_KEPT_ROUNDS:]
        for file in earlier:
            if _round(file) not in newest:
                file.unlink()

    def _path(self, release: Release) -> Path:
        arm, seed, merchant, round, digest = release.key
        folder = self._folder / f"seed-{seed}" / as_file_name(arm) / as_file_name(merchant)
        return folder / f"{round:06d}-{digest}{_SUFFIX}"


def answered(ledgers: Path) -> set[str]:
    """Return the merchants with stored answers of any run beside the ledgers, as encoded by ``as_file_name``."""
    return {path.name for path in ledgers.glob(f"{ANSWERS}/*/seed-*/*/*")}


def _round(path: Path) -> int:
    return int(path.name.partition("-")[0])
