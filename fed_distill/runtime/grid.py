"""Flower's ``Grid`` in this process: the ServerApp's messages go straight to the ClientApp.

No Ray and no network, so a simulation starts at once; the two apps cannot tell the difference. What only this
runtime must know of Flower's internals (task identity, message ids) is in this file.
"""

import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
CLIENT_APP_CRASHED = 2
_RUN = 1


class InProcessGrid(Grid):
    """A grid of ``sites`` nodes that are all served by one ClientApp, one message after another."""

    def __init__(self, app: ClientApp, run_config: Mapping[str, Any], sites: int = 1) -> None:
        TaskIdentity.run_id = _RUN
        TaskIdentity.node_id = SERVER_NODE
        TaskIdentity.task_id = 0
        self._app = app
        self._contexts = {
            SERVER_NODE + 1 + number: Context(
                run_id=_RUN,
                node_id=SERVER_NODE + 1 + number,
                node_config={"partition-id": number, "num-partitions": sites},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for number in range(sites)
        }
        self._ids = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(_RUN)

    def set_run(self, run: Run) -> None:
        """Set the run this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid belongs to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Ids of the nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run each message at its node now; an error in the app becomes an error reply, as in Flower."""
        sent = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            try:
                reply = self._app(message, self._contexts[message.metadata.dst_node_id])
            except Exception as error:  # any fault of the app is the reply, as on a real node
                logging.getLogger(__name__).debug("the client app failed", exc_info=True)
                reply = Message(Error(CLIENT_APP_CRASHED, f"{type(error).__name__}: {error}"), reply_to=message)
            self._replies[message_id] = reply
            sent.append(message_id)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies to these messages, each once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull; there is nothing to wait for."""
        return self.pull_messages(self.push_messages(messages))
