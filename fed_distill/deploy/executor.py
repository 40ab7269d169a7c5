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
from pathlib import Path
from typing import Any

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

from fed_distill.merchant.service import Service

TOKEN = "FED_DISTILL_TASK_TOKEN"
"""Environment variable with the token of a task; a command line would be readable by all users of the machine."""
GRACE = 60.0
"""Seconds beyond ``max_seconds`` after which a process is killed."""

_log = logging.getLogger("flwr")


class SiteExecutor:
    """Starts the processes of the site with the file ``site``; implements Flower's ``Executor``."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._longest = Service.read(site).limits.rules.max_seconds
        self._running: list[tuple[float, subprocess.Popen[bytes]]] = []

    def get_eligible_capacity(self, supported_task_types: set[TaskType], **_: Any) -> tuple[set[TaskType], set[str]]:
        """Return ClientApps as the only supported task type."""
        return {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, task_type: TaskType | None = None, **_: Any) -> None:
        """Return at once: a SuperNode processes one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start a process that answers one message."""
        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed(f"a site runs ClientApps, not {spec.task_type}")
        command = [sys.executable, "-P", "-m", "fed_distill.deploy.answering", str(self._site)]
        command += ["--runtime-api-address", spec.runtime_api_address, "--insecure", "--parent-pid", str(os.getpid())]
        environment = {**os.environ, TOKEN: spec.token}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        self._running.append((time.monotonic(), process))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Kill processes that exceed the site's time limit, since their own alarm may be blocked."""
        self._running = [(began, process) for began, process in self._running if process.poll() is None]
        for began, process in self._running:
            if self._longest is not None and time.monotonic() - began > self._longest + GRACE:
                _log.error("rule max_seconds: %g; the answering process is killed", self._longest)
                process.kill()

    def close(self) -> None:
        """Kill the running processes."""
        for _, process in self._running:
            process.terminate()


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
