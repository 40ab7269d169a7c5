"""Start one process per message to answer it, and kill processes that exceed the time limit.

It is an executor for Flower's SuperExec that starts ``fed_distill.deploy.answering`` instead of ``flwr-clientapp``, and
no other type of task.
"""

import importlib
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

from fed_distill.merchant.service import Service

GRACE = 60.0
"""Seconds beyond ``max_seconds`` after which a process is killed."""
LONGEST_START = 600.0
"""Seconds after which a process that has not read a token is killed, and another one started."""

_log = logging.getLogger("flwr")


@dataclass
class _Answering:
    """A process that answers the message of ``task``. ``launched``: when it was; ``began``: when it received its latest
    token."""

    task: int
    process: subprocess.Popen[bytes]
    launched: float
    began: float

    def receive(self, token: str) -> bool:
        """Hand over a token, and return whether the process had yet to read one; kill it if it takes too long to start.

        It goes through the process's input: a command line would be readable by all users of the machine. A token that
        arrives while an earlier one is read may be lost; Flower then sends another.
        """
        assert self.process.stdin is not None
        if time.monotonic() - self.launched > LONGEST_START:
            self.process.kill()
            return False
        try:
            self.process.stdin.write(f"{token}\n".encode())
        except BrokenPipeError:
            return False
        self.began = time.monotonic()
        return True


class SiteExecutor:
    """Starts the processes of the site with the file ``site``; implements Flower's ``Executor``."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._longest = Service.read(site).limits.rules.max_seconds
        self._running: list[_Answering] = []

    def get_eligible_capacity(self, supported_task_types: set[TaskType], **_: Any) -> tuple[set[TaskType], set[str]]:
        """Return ClientApps as the only supported task type."""
        return {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, task_type: TaskType | None = None, **_: Any) -> None:
        """Return at once: a SuperNode processes one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start a process that answers one message, unless one for this message is still starting.

        Flower's tokens expire after half a minute. On a machine on which a process takes longer to start, each new
        token goes to the process that is starting, so that it answers after all and no others pile up.
        """
        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed(f"a site runs ClientApps, not {spec.task_type}")
        for earlier in self._running:
            if earlier.task == spec.task_id and earlier.process.poll() is None and earlier.receive(spec.token):
                _log.warning("The process that answers a message takes long to start: is this machine overloaded?")
                return LaunchResult.accepted()
        command = [sys.executable, "-P", "-m", "fed_distill.deploy.answering", str(self._site)]
        command += ["--runtime-api-address", spec.runtime_api_address, "--insecure", "--parent-pid", str(os.getpid())]
        process, now = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0), time.monotonic()
        answering = _Answering(spec.task_id, process, now, now)
        answering.receive(spec.token)
        self._running.append(answering)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Kill processes that exceed the site's time limit, since their own alarm may be blocked."""
        self._running = [answering for answering in self._running if answering.process.poll() is None]
        for answering in self._running:
            if self._longest is not None and time.monotonic() - answering.began > self._longest + GRACE:
                _log.error("rule max_seconds: %g; the answering process is killed", self._longest)
                answering.process.kill()

    def close(self) -> None:
        """Kill the running processes."""
        for answering in self._running:
            answering.process.terminate()


def main() -> None:
    """Run until the SuperNode, named by its process id in the options, ends."""
    site, *options = sys.argv[1:]
    executor = SiteExecutor(Path(site))
    loop: Any = importlib.import_module("flwr.supercore.superexec.run_superexec")
    loop.get_executor = lambda *_, **__: executor
    sys.argv = ["flower-superexec", *options]
    flower_superexec()


if __name__ == "__main__":
    main()
