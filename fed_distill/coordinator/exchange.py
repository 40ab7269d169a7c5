"""Messages to sites and what comes back, waited for no longer than is worth it.

A real grid gives what is there when it is asked, and its sites are away, slow, or gone for good: whatever has no usable
answer is told as a ``NoReply``, with its cause.
"""

import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fed_distill.transport.requests import Cause

LONGEST_REASON = 500
"""Characters of a reason that are kept."""
LONGEST_NAME = 60
"""Characters of a site's name that are kept."""
LIFETIME = 2.0
"""Deadlines after which Flower may drop a message. Twice, so that what came in time is still there when the chunk that
it belongs to is taken in; not for ever, so that a site that comes back is not handed what nobody waits for."""
_CAUSES: Mapping[int, Cause] = {
    ErrorCode.NODE_UNAVAILABLE: "absent",
    ErrorCode.MESSAGE_UNAVAILABLE: "late",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "late",
}
_FIRST_PAUSE = 0.05
_ODD = re.compile(r"[^\w.-]")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoReply:
    """A site without a usable answer, and why; ``cause`` as of a ``Refusal``."""

    node: int
    reason: str
    cause: Cause = "fault"


class Deadline:
    """``seconds`` from now on, or however long it takes if they are None."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left, infinitely many without a deadline; 0 at its end."""
        return float("inf") if self._end is None else max(0.0, self._end - time.monotonic())


class Exchange:
    """What a server asks of sites through a Flower grid. ``poll_seconds``: longest pause between two looks at it."""

    def __init__(self, grid: Grid, poll_seconds: float) -> None:
        self._grid = grid
        self.poll_seconds = poll_seconds
        self._names: dict[int, str] = {}

    def name(self, node: int, name: object, there: Collection[int]) -> None:
        """From now on the site ``node`` goes by the ``name`` that it has told, with ``_`` for all but letters, digits,
        ``.`` and ``-``, since it is read in the middle of sentences. Nodes that are not ``there`` lose theirs."""
        self._names = {one: own for one, own in self._names.items() if one in there}
        if isinstance(name, str) and name:
            self._names[node] = _ODD.sub("_", name[:LONGEST_NAME])

    def title(self, node: int) -> str:
        """What a site is called in logs and reports: by its name, and by its number too where the name is another
        site's as well, or might be taken for a number; without a name by its number alone."""
        name = self._names.get(node)
        if name is None:
            return f"site {node}"
        told_apart = not name.isdecimal() and list(self._names.values()).count(name) == 1
        return f"site {name}" if told_apart else f"site {name} ({node})"

    def nodes(self) -> list[int]:
        """Ids of the sites that are there now, sorted."""
        return sorted(self._grid.get_node_ids())

    def send(self, content: RecordDict, node: int, kind: str, deadline: Deadline, group: str = "") -> str | NoReply:
        """Send one message: its id. One at a time keeps the payload that a grid must take at once small."""
        lifetime = None if deadline.seconds is None else LIFETIME * deadline.seconds
        message = Message(content, node, kind, ttl=lifetime, group_id=group)
        keys = [key for key in self._grid.push_messages([message]) if key]
        # no id is how a grid says that it could not send a message
        return (
            keys[0] if keys else log_failure(NoReply(node, f"{self.title(node)} failed: its request could not be sent"))
        )

    def replies(self, sent: Mapping[str, int], deadline: Deadline) -> Iterator[tuple[str, Message | NoReply]]:
        """What comes back to each message of ``sent`` (site by message id), in the order in which it comes.

        At least one look is taken, so that what was there in time is found after the deadline too. A reply that was
        not waited for any more, or comes twice, is dropped.
        """
        missing, pause = dict(sent), _FIRST_PAUSE
        while missing:
            for reply in self._grid.pull_messages(list(missing)):
                key = reply.metadata.reply_to_message_id
                if key not in missing:
                    _log.warning("a reply to message %s, which is not waited for, is dropped", key)
                    continue
                node = missing.pop(key)
                yield key, log_failure(self._failure(node, reply.error)) if reply.has_error() else reply
                pause = _FIRST_PAUSE
            left = deadline.left()
            if missing and not left:
                break
            if missing:
                time.sleep(min(pause, self.poll_seconds, left))
                pause *= 2
        for key, node in missing.items():
            reason = f"{self.title(node)} did not answer within {deadline.seconds:g} s"
            yield key, log_failure(NoReply(node, reason, "late"))

    def ask(
        self, contents: Mapping[int, RecordDict], kind: str, seconds: float | None
    ) -> tuple[dict[int, RecordDict], list[NoReply]]:
        """Send each site its content; the answers by site, and for each site without any why."""
        deadline = Deadline(seconds)
        silent: list[NoReply] = []
        sent: dict[str, int] = {}
        for node, content in contents.items():
            key = self.send(content, node, kind, deadline)
            if isinstance(key, NoReply):
                silent.append(key)
            else:
                sent[key] = node
        answered = {}
        for key, reply in self.replies(sent, deadline):
            if isinstance(reply, NoReply):
                silent.append(reply)
            else:
                answered[sent[key]] = reply.content
        return answered, silent

    def _failure(self, node: int, error: Error) -> NoReply:
        cause = _CAUSES.get(error.code, "fault")
        what = {"absent": "is away", "late": "did not answer in time"}.get(cause, "failed")
        return NoReply(node, readable(f"{self.title(node)} {what}: {error.reason}"), cause)


def log_failure(silence: NoReply) -> NoReply:
    """Say it in the log."""
    _log.warning("%s", silence.reason)
    return silence


def readable(reason: str) -> str:
    """What a site says of itself, on one line of bounded length: without control characters, escape sequences and
    marks that change the direction of the text after them."""
    return "".join(sign if sign.isprintable() else " " for sign in reason[:LONGEST_REASON])
