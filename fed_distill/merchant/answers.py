"""What a site has answered of its merchants' protected examples, kept so that none is given twice in other words.

Whose noise nobody else can draw has given an answer once: asked for the same again, it hands out the same bytes. A
second training would draw the same noise, and yet sum in another order if other merchants train beside it; the
difference of both would be of rounding alone, without noise, and a high rate makes rounding large.

An answer is on disk before it leaves. Kept are those of a merchant's newest two rounds, which is what a server that was
killed in the middle of a round can honestly ask for again, and the last one. So the last that was charged and is not
here has never left, and its training may be repeated; who wants an older one again pays for another release.
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
"""Its folder among the ledgers: with what was paid, and not with a run's state, which its people may well delete."""
_KEPT_ROUNDS = 2
_SUFFIX = ".uplink"


class Answers:
    """The answers kept in ``folder``, by (arm of the experiment, seed, merchant, round, digest of the request)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against all other threads and processes: two equal requests at once are one after another.

        The lock ends with the process that holds it.
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
        """What names this folder of answers, random: if it is lost, what was answered from it is never made again."""
        path = self._folder / ".identity"
        if not path.exists():
            with space_for(path):
                make_folder(self._folder)
            write_atomic(path, secrets.token_hex(16), private=True)
        return path.read_text(encoding="ascii")

    def load(self, release: Release, kinds: Kinds) -> Uplink | None:
        """The answer to a request, of payloads of these ``kinds``; None if it is not kept. CheckpointError naming a
        file that cannot be read."""
        path = self._path(release)
        if not path.exists():
            return None
        try:
            check_end(path)
            return decode_uplink(from_bytes(path.read_bytes()[:-DIGEST]), kinds)
        except (OSError, ValueError, UplinkRejected) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): the answer that it holds is lost") from error

    def save(self, release: Release, answer: Uplink) -> None:
        """Keep an answer, and beside it those of the newest two rounds alone. CheckpointError if the disk is full."""
        path = self._path(release)
        with space_for(path):
            make_folder(path.parent)
        remove_leftovers(path.parent)
        content = to_bytes(encode_uplink(answer))
        write_atomic(path, content + checksum(content, path), private=True)
        others = [other for other in path.parent.glob(f"*{_SUFFIX}") if other != path]
        newest = sorted({_round(path), *map(_round, others)})[-_KEPT_ROUNDS:]
        for other in others:
            if _round(other) not in newest:
                other.unlink()

    def _path(self, release: Release) -> Path:
        arm, seed, merchant, round, digest = release.key
        folder = self._folder / f"seed-{seed}" / as_file_name(arm) / as_file_name(merchant)
        return folder / f"{round:06d}-{digest}{_SUFFIX}"


def answered(ledgers: Path) -> set[str]:
    """Who has answers beside the ledgers in a folder, of whatever run, as ``as_file_name`` calls them."""
    return {path.name for path in ledgers.glob(f"{ANSWERS}/*/seed-*/*/*")}


def _round(path: Path) -> int:
    return int(path.name.partition("-")[0])
