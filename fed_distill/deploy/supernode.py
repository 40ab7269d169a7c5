"""``python -P -m fed_distill.deploy.supernode SITE.TOML OPTIONS``: Flower's SuperNode for a site, running the site's
own code and nobody else's. The site's file says where the server is; the options are those of ``flower-supernode``.

Flower's own SuperNode unpacks the app that its server sends and imports it: whoever starts a run at the server would
run code at every site. This one

- accepts the one bundle that holds no code (``fed_distill.deploy.bundle``), and answers any other with an error before
  it is parsed;
- lets ``fed_distill.deploy.executor`` start the processes that answer, which take the app from the installed package.

Flower's own process (1.41) goes on for ever, deaf, once its server shows a certificate that it cannot trust, also when
that has long been renewed. This one ends with an error, so that systemd or Docker start it again, and says what to do.
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
This site is not with its server. `fed-distill sites check .` in its folder says whether the server answers and is to be
trusted. A certificate that has expired is the operator's to renew. Flower's code 2004 (failed to activate) means that
the operator has not admitted this site's key or has revoked it, or that the site has just been there:
it is let in again a minute after it was lost. Then start it again; systemd and Docker do."""

_log = logging.getLogger("flwr")  # beside what Flower says of the same message
_parser: Any = importlib.import_module("flwr.supernode.cli.flower_supernode")
_loop: Any = importlib.import_module("flwr.supernode.start_client_internal")


def main() -> None:
    """Be the SuperNode until it is stopped, or has given its server up."""
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
            flower_supernode()  # comes back only when it has given up: every other end leaves the process
            flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The server is given up; the line above says why.")
        except SystemExit as end:
            if end.code:
                print(ADVICE, file=sys.stderr, flush=True)
            raise


def check_app(service: Service, path: str) -> None:
    """Raise ConfigError if a site pins another bundle than that of the package which is installed, and would run."""
    pinned = service.server.app
    if pinned not in (None, bundle_hash()):
        raise ConfigError(
            f"{path} pins the app {pinned[:16]}..., and the fed-distill that is "
            f"installed here is {bundle_hash()[:16]}...: install the operator's wheel, or pin what you have"
        )


def check_key(path: Path) -> None:
    """Raise ConfigError for a site's key that others may read: who has it can pass for the site."""
    if path.exists() and path.stat().st_mode & 0o077:
        raise ConfigError(f"others may use {path}: chmod 600 {path}, and if anybody has, make new keys")


def check_run(run: Run) -> None:
    """Raise NotAllowed for a run that is of no ServerApp, or has settings that this package does not know."""
    if run.primary_task_type != TaskType.SERVER_APP:
        raise NotAllowed(f"rule app: a run of type {str(run.primary_task_type)!r}")
    known = flatten_dict(get_fab_config(bundle())["tool"]["flwr"]["app"]["config"])
    unknown = sorted(run.override_config.keys() - known.keys())
    if unknown:
        raise NotAllowed(f"rule app: a run with the setting {unknown[0]!r}, which fed-distill here does not know")


def check_bundle(fab: Fab) -> None:
    """Raise NotAllowed for a bundle that is not, byte for byte, that of the installed package."""
    found = hashlib.sha256(fab.content).hexdigest()
    if found != bundle_hash():
        raise NotAllowed(
            f"rule app: the server sent the app {found[:16]}..., and this site runs {bundle_hash()[:16]}... alone; "
            "the operator starts runs by `fed-distill sites run`, with the fed-distill that is installed here"
        )


def guarded(pull: Callable[..., int | None], insert: Callable[..., None]) -> Callable[..., int | None]:
    """Flower's function that takes in one message, refusing those of runs that the site takes no part in.

    A refused message is answered with an error that says why, and its bundle is neither parsed, kept nor imported.
    ``insert``: Flower's function that stores a message.
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
            _log.error("Refused a message of run %s: %s", message.metadata.run_id, error)
            insert(Message(Error(ErrorCode.INVALID_FAB, str(error)), reply_to=message), state, object_store)
            return message.metadata.run_id

    return guard


def _with_executor(site: Path, secret: Path, start: Callable[..., None]) -> Callable[..., None]:
    """Flower's main loop, with an executor beside it that starts the processes which answer."""

    def started(**settings: Any) -> None:
        command = [sys.executable, "-P", "-m", "fed_distill.deploy.executor", str(site)]
        command += ["--runtime-api-address", settings["runtime_api_address"], "--insecure"]
        command += ["--superexec-auth-secret-file", str(secret), "--parent-pid", str(os.getpid())]
        executor = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        threading.Thread(target=_end_with, args=(executor,), daemon=True).start()
        start(**settings)

    return started


def _end_with(executor: subprocess.Popen[bytes]) -> None:
    """End this process when its executor has ended: nobody would answer any more."""
    executor.wait()
    _log.error("The executor has ended, and the SuperNode ends with it: start it again.")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
