"""Messages to sites and their replies, with a deadline.

Sites of a real grid may be offline or slow. A site without a usable reply is returned as a ``NoReply`` with its cause.
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
"""Maximum length of a reason."""
LONGEST_NAME = 60
"""Maximum length of a site's name."""
LIFETIME = 2.0
"""Lifetime of a message in Flower, in deadlines. More than one, so that replies in time remain until their chunk is
processed; finite, so that a site that reconnects does not receive expired requests."""
_CAUSES: Mapping[int, Cause] = {
    ErrorCode.NODE_UNAVAILABLE: "absent",
    ErrorCode.MESSAGE_UNAVAILABLE: "late",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "late",
}
_FIRST_PAUSE = 0.05
_FIRST_REMINDER = 60.0  # seconds after which the log says who is waited for
_NAMED = 5  # sites in a line of the log
_ODD = re.compile(r"[^\w.-]")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoReply:
    """A site without a usable reply, with the reason; ``cause`` as of a ``Refusal``."""

    node: int
    reason: str
    cause: Cause = "fault"


class Deadline:
    """A deadline ``seconds`` from now; None for no deadline."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since it was set."""
        return time.monotonic() - self._began

    def left(self) -> float:
        """Return the remaining seconds, infinity without a deadline; 0 after it."""
        return float("inf") if self.seconds is None else max(0.0, self.seconds - self.waited)


class Exchange:
    """Messages to sites through a Flower grid. ``poll_seconds``: maximum polling interval."""

    def __init__(self, grid: Grid, poll_seconds: float) -> None:
        self._grid = grid
        self.poll_seconds = poll_seconds
        self._names: dict[int, str] = {}

    def name(self, node: int, name: object, there: Collection[int]) -> None:
        """Set the reported ``name`` of the site ``node``, for log messages; characters other than letters, digits,
        ``.`` and ``-`` become ``_``. Names of nodes that are not ``there`` are removed."""
        self._names = {one: own for one, own in self._names.items() if one in there}
        if isinstance(name, str) and name:
            self._names[node] = _ODD.sub("_", name[:LONGEST_NAME])

    def title(self, node: int) -> str:
        """Return a site's title for logs and reports: its name, with its node id if the name is ambiguous or looks like
        a number; without a name, its node id."""
        name = self._names.get(node)
        if name is None:
            return f"site {node}"
        unique = not name.isdecimal() and list(self._names.values()).count(name) == 1
        return f"site {name}" if unique else f"site {name} ({node})"

    def nodes(self) -> list[int]:
        """Return the ids of the sites that are online, sorted."""
        return sorted(self._grid.get_node_ids())

    def send(self, content: RecordDict, node: int, kind: str, deadline: Deadline, group: str = "") -> str | NoReply:
        """Send one message and return its id. Messages are sent one by one to keep the grid's payload small."""
        lifetime = None if deadline.seconds is None else LIFETIME * deadline.seconds
        message = Message(content, node, kind, ttl=lifetime, group_id=group)
        keys = [key for key in self._grid.push_messages([message]) if key]
        # a grid returns no id if it could not send the message
        return (
            keys[0] if keys else log_failure(NoReply(node, f"{self.title(node)} failed: its request could not be sent"))
        )

    def replies(self, sent: Mapping[str, int], deadline: Deadline) -> Iterator[tuple[str, Message | NoReply]]:
        """Yield the reply to each message of ``sent`` (site by message id), in order of arrival.

        It polls at least once, so that replies that arrived in time are found after the deadline. Unexpected and
        repeated replies are dropped. The log says which sites are waited for, a minute, two, four and so on after the
        deadline was set.
        """
        missing, pause = dict(sent), _FIRST_PAUSE
        reminder = _FIRST_REMINDER
        while reminder <= deadline.waited:
            reminder *= 2
        while missing:
            for reply in self._grid.pull_messages(list(missing)):
                key = reply.metadata.reply_to_message_id
                if key not in missing:
                    _log.warning("an unexpected reply to message %s is dropped", key)
                    continue
                node = missing.pop(key)
                yield key, log_failure(self._failure(node, reply.error)) if reply.has_error() else reply
                pause = _FIRST_PAUSE
            left = deadline.left()
            if missing and not left:
                break
            if missing and (waited := deadline.waited) >= reminder:
                sites = dict.fromkeys(self.title(node) for node in missing.values())
                what = f"{len(missing)} of {len(sent)} replies are missing after {waited:.0f} s"
                _log.warning("%s: %s", what, _some(sites))
                reminder *= 2
            if missing:
                time.sleep(min(pause, self.poll_seconds, left))
                pause *= 2
        for key, node in missing.items():
            reason = f"{self.title(node)} did not answer within {deadline.seconds:g} s"
            yield key, log_failure(NoReply(node, reason, "late"))

    def ask(
        self, contents: Mapping[int, RecordDict], kind: str, seconds: float | None
    ) -> tuple[dict[int, RecordDict], list[NoReply]]:
        """Send each site its content; return replies by site, and a ``NoReply`` for each site without one."""
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
        what = {"absent": "is offline", "late": "did not answer in time"}.get(cause, "failed")
        return NoReply(node, readable(f"{self.title(node)} {what}: {error.reason}"), cause)


def _some(sites: Collection[str]) -> str:
    """Return the first titles and the number of others."""
    first, others = [*sites][:_NAMED], len(sites) - _NAMED
    return ", ".join(first) + (f" and {others} more" if others > 0 else "")


def log_failure(silence: NoReply) -> NoReply:
    """Log the failure and return it."""
    _log.warning("%s", silence.reason)
    return silence


def readable(reason: str) -> str:
    """Sanitize a text from a site: one line of bounded length, without control characters, escape sequences and
    bidirectional marks."""
    return "".join(sign if sign.isprintable() else " " for sign in reason[:LONGEST_REASON])
