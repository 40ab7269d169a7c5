"""``python -P -m fed_distill.deploy.supernode SITE.TOML OPTIONS``: Flower's SuperNode for a site, running the site's
installed code only. The address of the server is in the site's file; the options are those of ``flower-supernode``.

Flower's own SuperNode unpacks the app that its server sends and imports it, so that anyone who starts a run at the
server could run code at every site. This one

- accepts only the bundle without code (``fed_distill.deploy.bundle``), and answers any other with an error before it is
  parsed;
- starts answering processes with ``fed_distill.deploy.executor``, which imports the app from the installed package.

Flower's process (1.41) hangs forever once its server presents an untrusted certificate, even after that was renewed.
This one exits with an error and a remedy, so that systemd or Docker restart it.
"""

import hashlib
import importlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.common.config import flatten_dict, get_fab_config
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode.cli import flower_supernode

from fed_distill.deploy.answering import limit_memory
from fed_distill.deploy.bundle import bundle, bundle_hash
from fed_distill.errors import ConfigError, NotAllowed
from fed_distill.logs import escape_logs
from fed_distill.merchant.service import Service
from fed_distill.privacy.secret import write_private

ADVICE = """\
This site is not connected to its server. Run `fed-distill sites check .` in its folder to check whether the server
answers and is trusted. An expired certificate must be renewed by the operator. Flower's code 2004 (failed to activate)
means that the operator has not admitted this site's key or has revoked it, or that the site was connected before:
it is accepted again a minute after the connection was lost. Then restart it; systemd and Docker do so automatically."""

_log = logging.getLogger("flwr")  # in Flower's log, beside its own lines on the same message
_parser: Any = importlib.import_module("flwr.supernode.cli.flower_supernode")
_loop: Any = importlib.import_module("flwr.supernode.start_client_internal")


def main() -> None:
    """Run the SuperNode until it is stopped or loses its server."""
    if not sys.argv[1:]:
        sys.exit("usage: python -P -m fed_distill.deploy.supernode SITE.TOML [options of flower-supernode]")
    path, *options = sys.argv[1:]
    try:
        service = Service.read(Path(path))
        check_app(service, path)
        check_key(Path(path).absolute().parent / "site.key")
    except ConfigError as error:
        sys.exit(f"error: {error}")
    escape_logs()
    limit_memory(service.limits.rules)
    with tempfile.TemporaryDirectory(prefix="fed-distill-") as folder:
        secret = Path(folder) / "executor.key"
        write_private(secret, secrets.token_bytes(32))
        own = ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        sys.argv = ["flower-supernode", "--superlink", service.server.address, *options, *own]
        _parser.start_client_internal = _with_executor(Path(path), secret, _loop.start_client_internal)
        _loop._pull_and_store_message = guarded(_loop._pull_and_store_message, _loop._insert_message)
        try:
            flower_supernode()  # returns only after losing the server; otherwise it exits the process
            flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "Lost the server; see the line above.")
        except SystemExit as end:
            if end.code:
                print(ADVICE, file=sys.stderr, flush=True)
            raise


def check_app(service: Service, path: str) -> None:
    """Raise ConfigError if a site pins another bundle than that of the installed package."""
    pinned = service.server.app
    if pinned not in (None, bundle_hash()):
        raise ConfigError(
            f"{path} pins the app {pinned[:16]}..., but the installed "
            f"fed-distill is {bundle_hash()[:16]}...: install the operator's wheel, or pin the installed one"
        )


def check_key(path: Path) -> None:
    """Raise ConfigError if other users can read the site's key, with which they could impersonate the site."""
    if path.exists() and path.stat().st_mode & 0o077:
        raise ConfigError(f"other users can access {path}: run chmod 600 {path}, and create new keys if it was copied")


def check_run(run: Run) -> None:
    """Raise NotAllowed for a run that is not of a ServerApp, or has unknown settings."""
    if run.primary_task_type != TaskType.SERVER_APP:
        raise NotAllowed(f"rule app: a run of type {str(run.primary_task_type)!r}")
    known = flatten_dict(get_fab_config(bundle())["tool"]["flwr"]["app"]["config"])
    unknown = sorted(run.override_config.keys() - known.keys())
    if unknown:
        raise NotAllowed(f"rule app: a run with the setting {unknown[0]!r}, which this fed-distill does not have")


def check_bundle(fab: Fab) -> None:
    """Raise NotAllowed for a bundle that is not identical to that of the installed package."""
    found = hashlib.sha256(fab.content).hexdigest()
    if found != bundle_hash():
        raise NotAllowed(
            f"rule app: the server sent the app {found[:16]}..., but this site accepts {bundle_hash()[:16]}... only; "
            "start runs with `fed-distill sites run` and the fed-distill that is installed here"
        )


def guarded(pull: Callable[..., int | None], insert: Callable[..., None]) -> Callable[..., int | None]:
    """Wrap Flower's function that receives one message, so that messages of disallowed runs are rejected.

    A rejected message is answered with an error, and its bundle is neither parsed, stored nor imported.

    :param pull: Flower's function that receives a message
    :param insert: Flower's function that stores a message
    """

    def guard(*, state: Any, object_store: Any, receive: Any, get_run: Any, get_fab: Any, **others: Any) -> int | None:
        received: list[Message] = []

        def receive_one() -> Any:
            found = receive()
            received.extend(found[:1] if found else [])
            return found

        def run_of(run_id: int) -> Run:
            run: Run = get_run(run_id)
            check_run(run)
            return run

        def fab_of(fab_hash: str, run_id: int) -> Fab:
            fab: Fab = get_fab(fab_hash, run_id)
            check_bundle(fab)
            return fab

        try:
            return pull(
                state=state,
                object_store=object_store,
                receive=receive_one,
                get_run=run_of,
                get_fab=fab_of,
                **others,
            )
        except NotAllowed as error:
            (message,) = received
            _log.error("Rejected a message of run %s: %s", message.metadata.run_id, error)
            insert(Message(Error(ErrorCode.INVALID_FAB, str(error)), reply_to=message), state, object_store)
            return message.metadata.run_id

    return guard


def _with_executor(site: Path, secret: Path, start: Callable[..., None]) -> Callable[..., None]:
    """Wrap Flower's main loop to run with an executor that starts answering processes."""

    def started(**settings: Any) -> None:
        command = [sys.executable, "-P", "-m", "fed_distill.deploy.executor", str(site)]
        command += ["--runtime-api-address", settings["runtime_api_address"], "--insecure"]
        command += ["--superexec-auth-secret-file", str(secret), "--parent-pid", str(os.getpid())]
        executor = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        threading.Thread(target=_end_with, args=(executor,), daemon=True).start()
        start(**settings)

    return started


def _end_with(executor: subprocess.Popen[bytes]) -> None:
    """End this process when its executor has ended, because messages would not be answered any more."""
    executor.wait()
    _log.error("The executor has ended, so the SuperNode ends too: restart it.")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
