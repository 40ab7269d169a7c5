"""The process that answers one message at a site: the installed ClientApp, within the site's time and memory limits.

It replaces Flower's ``flwr-clientapp``, which runs the app that the server sent.
"""

import importlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp

from fed_distill.errors import ConfigError, NotAllowed
from fed_distill.logs import escape_logs
from fed_distill.merchant.limits import Rules
from fed_distill.merchant.service import Service
from fed_distill.registry import allow_imports

_log = logging.getLogger("flwr")


class _OutOfTime(BaseException):
    """Not an Exception, so that handlers of one merchant's errors do not catch it."""


class Limited:
    """A ClientApp with a time limit per message; it raises NotAllowed beyond ``seconds``. None: no limit."""

    def __init__(self, app: ClientApp, seconds: float | None) -> None:
        self._app, self._seconds = app, seconds

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the app's answer. Must be called in the main thread, which receives the alarm signal."""
        try:
            with _alarm(self._seconds):
                return self._app(message, context)
        except _OutOfTime:
            raise NotAllowed(f"rule max_seconds: {self._seconds:g} for one message") from None


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise _OutOfTime in the main thread after ``seconds``."""

    def ring(number: int, frame: object) -> NoReturn:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def restrict(rules: Rules) -> None:
    """Restrict this process to a site's policy: allowed imports by name, and memory."""
    allow_imports(rules.imports)
    limit_memory(rules)


def limit_memory(rules: Rules) -> None:
    """Limit the memory of this process and its children to that of a site's policy."""
    if rules.max_memory_gib is not None:
        most = int(rules.max_memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _installed_app() -> ClientApp:
    """Import the app after Flower has received a sign of life, for which it waits half a minute."""
    from fed_distill.merchant.app import app

    return app


def _or_end(pull: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Flower's function that fetches the message, so that the process ends silently if it fails: after a report of
    failure without a message, the SuperNode would wait for an answer forever."""

    def pulled(client: Any) -> Any:
        try:
            return pull(client)
        except Exception as error:  # invalid bytes can raise any exception
            _log.error("A message cannot be parsed and is not answered", exc_info=error)
            os._exit(1)

    return pulled


def _token() -> str:
    """Return the latest token from the standard input and close it, so that nobody sends another.

    It is read when everything is imported: on a slow machine, earlier ones have expired by then.
    """
    received = sys.stdin.fileno()
    tokens = os.read(received, 2**16).decode().split()
    os.dup2(os.open(os.devnull, os.O_RDONLY), received)
    if not tokens:
        raise SystemExit("the process that started this one has ended")
    return tokens[-1]


def main() -> None:
    """Answer the message of the task whose token is in the standard input."""
    site, *options = sys.argv[1:]
    try:
        rules = Service.read(Path(site)).limits.rules
    except ConfigError:  # the app reports it; until then the strictest limits apply
        rules = Rules()
    escape_logs()
    restrict(rules)
    task: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    task.install_from_fab = lambda *_, **__: None
    task.get_load_client_app_fn = lambda **_: lambda *_: Limited(_installed_app(), rules.max_seconds)
    task.pull_task_input = _or_end(task.pull_task_input)
    sys.argv = ["flwr-clientapp", "--token", _token(), *options]
    flwr_clientapp()


if __name__ == "__main__":
    main()
