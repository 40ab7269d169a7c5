"""The process in which a site answers one message: the installed ClientApp, within the time and memory of its rules.

It is Flower's ``flwr-clientapp``, but for the app, which is not taken from what the server has sent.
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

from fed_distill.deploy.executor import TOKEN
from fed_distill.errors import ConfigError, NotAllowed
from fed_distill.logs import escape_logs
from fed_distill.merchant.limits import Rules
from fed_distill.merchant.service import Service
from fed_distill.registry import allow_imports

_log = logging.getLogger("flwr")


class _OutOfTime(BaseException):
    """No Exception: what handles errors of one merchant must not take it for one."""


class Limited:
    """A ClientApp that answers each message in at most ``seconds``; NotAllowed beyond. None: however long it takes."""

    def __init__(self, app: ClientApp, seconds: float | None) -> None:
        self._app, self._seconds = app, seconds

    def __call__(self, message: Message, context: Context) -> Message:
        """The app's answer. To be called in a process's main thread, which alone hears its alarm."""
        try:
            with _alarm(self._seconds):
                return self._app(message, context)
        except _OutOfTime:
            raise NotAllowed(f"rule max_seconds: {self._seconds:g} for one message") from None


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise _OutOfTime in the main thread when ``seconds`` are over."""

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
    """Hold this process to a site's rules: what it may import for a name, and how much memory it may allocate."""
    allow_imports(rules.imports)
    limit_memory(rules)


def limit_memory(rules: Rules) -> None:
    """Let this process, and each that it starts, allocate no more than a site's rules allow."""
    if rules.max_memory_gib is not None:
        most = int(rules.max_memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _installed_app() -> ClientApp:
    """Imported when Flower knows that this process lives: that takes seconds, and it waits for half a minute."""
    from fed_distill.merchant.app import app

    return app


def _or_end(pull: Callable[..., Any]) -> Callable[..., Any]:
    """Flower's function that fetches the message. If that fails, the process ends and says no more: of one that says
    that it failed, and has no message to answer, the SuperNode would wait for an answer for ever."""

    def pulled(client: Any) -> Any:
        try:
            return pull(client)
        except Exception as error:  # bytes from outside can break a reader in any way
            _log.error("A message cannot be read, and is not answered", exc_info=error)
            os._exit(1)

    return pulled


def main() -> None:
    """Answer the message of the task whose token is in the environment."""
    site, *options = sys.argv[1:]
    try:
        rules = Service.read(Path(site)).limits.rules
    except ConfigError:  # which the app finds too, and answers; meanwhile the strictest rules hold
        rules = Rules()
    escape_logs()
    restrict(rules)
    task: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    task.install_from_fab = lambda *_, **__: None
    task.get_load_client_app_fn = lambda **_: lambda *_: Limited(_installed_app(), rules.max_seconds)
    task.pull_task_input = _or_end(task.pull_task_input)
    sys.argv = ["flwr-clientapp", "--token", os.environ.pop(TOKEN), *options]
    flwr_clientapp()


if __name__ == "__main__":
    main()
