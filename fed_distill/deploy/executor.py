"""Starts the processes in which a site answers, one a message, and ends those that take too long.

Flower's SuperExec, which starts ``fed_distill.deploy.answering`` where it would start ``flwr-clientapp``, and no other
kind of task.
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
"""Environment variable with the token of a task: a command line can be read by everybody on the machine."""
GRACE = 60.0
"""Seconds beyond ``max_seconds`` after which a process that has not ended by itself is killed."""

_log = logging.getLogger("flwr")


class SiteExecutor:
    """Starts the processes of the site whose file is ``site``; implements Flower's ``Executor``."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._longest = Service.read(site).limits.rules.max_seconds
        self._running: list[tuple[float, subprocess.Popen[bytes]]] = []

    def get_eligible_capacity(self, supported_task_types: set[TaskType], **_: Any) -> tuple[set[TaskType], set[str]]:
        """ClientApps, and no other kind of task that a server may have in mind."""
        return {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, task_type: TaskType | None = None, **_: Any) -> None:
        """There is no limit: a SuperNode has one message at a time."""

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
        """Kill what runs for longer than the site's rules allow: a process may be deaf to its own alarm."""
        self._running = [(began, process) for began, process in self._running if process.poll() is None]
        for began, process in self._running:
            if self._longest is not None and time.monotonic() - began > self._longest + GRACE:
                _log.error("rule max_seconds: %g; the process that answers is killed", self._longest)
                process.kill()

    def close(self) -> None:
        """End what still runs."""
        for _, process in self._running:
            process.terminate()


def main() -> None:
    """Run until the SuperNode, whose process is named in the options, has ended."""
    site, *options = sys.argv[1:]
    executor = SiteExecutor(Path(site))
    loop: Any = importlib.import_module("flwr.supercore.superexec.run_superexec")
    loop.get_executor = lambda *_, **__: executor
    sys.argv = ["flower-superexec", *options]
    flower_superexec()


if __name__ == "__main__":
    main()
