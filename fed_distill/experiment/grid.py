"""Flower's ``Grid`` in one process: messages of the ServerApp are passed directly to the ClientApp.

Without Ray and a network, a simulation starts immediately. The use of Flower's internals (task identity, message ids)
for this runtime is confined to this module.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import InMemoryGrid

SERVER_NODE = 1
CLIENT_APP_CRASHED = 2
_RUN = 1


def is_simulated(grid: Grid) -> bool:
    """Whether all sites of ``grid`` are simulated on this machine, by this runtime or by Flower's simulation."""
    return isinstance(grid, InProcessGrid | InMemoryGrid)


class InProcessGrid(Grid):
    """A grid of ``sites`` nodes with one ClientApp, which processes messages one by one.

    A message is processed when its reply is pulled, so that replies do not accumulate.
    """

    def __init__(self, app: ClientApp, run_config: Mapping[str, Any], sites: int = 1) -> None:
        TaskIdentity.run_id = _RUN
        TaskIdentity.node_id = SERVER_NODE
        TaskIdentity.task_id = 0
        self._nodes = [SERVER_NODE + 1 + number for number in range(sites)]
        self._ids = itertools.count(1)
        self._run = Run.create_empty(_RUN)
        self._app = app
        self._contexts = {node: context_of(node, sites, run_config) for node in self._nodes}
        self._queued: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the grid's run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The grid's run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue each message at its node, and return the message ids for ``pull_messages``."""
        sent = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            self._queue(message_id, message)
            sent.append(message_id)
        return sent

    def _queue(self, message_id: str, message: Message) -> None:
        """Keep a message until its reply is pulled."""
        self._queued[message_id] = message

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Process these messages in the given order, each once, and return their replies."""
        return [self._run_at_node(self._queued.pop(key)) for key in message_ids if key in self._queued]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push the messages and pull their replies; pulling blocks until they are processed."""
        return self.pull_messages(self.push_messages(messages))

    def _run_at_node(self, message: Message) -> Message:
        return answer(self._app, message, self._contexts[message.metadata.dst_node_id])


def context_of(node: int, nodes: int, run_config: Mapping[str, Any]) -> Context:
    """Return the Flower context of one of ``nodes`` local nodes."""
    return Context(
        run_id=_RUN,
        node_id=node,
        node_config={"partition-id": node - SERVER_NODE - 1, "num-partitions": nodes},
        state=RecordDict(),
        run_config=dict(run_config),
    )


def answer(app: Callable[[Message, Context], Message], message: Message, context: Context) -> Message:
    """Return the app's reply; an exception becomes an error reply, as on a real node."""
    try:
        return app(message, context)
    except Exception as error:  # any error of the app is the reply
        logging.getLogger(__name__).debug("the client app failed", exc_info=True)
        return Message(Error(CLIENT_APP_CRASHED, f"{type(error).__name__}: {error}"), reply_to=message)
