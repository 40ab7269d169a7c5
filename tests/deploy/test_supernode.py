"""A site's SuperNode is told its server by the site's file, runs no code that a server sends, and says why it ends."""

import inspect
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fed_distill.deploy import supernode
from fed_distill.deploy.bundle import bundle, bundle_hash
from fed_distill.errors import NotAllowed

SITE = 'name = "north"\n[server]\naddress = "fed.example.org:8000"\n{server}\n[data]\npath = "data.csv"\n'

REPLACED = ((supernode._parser, "start_client_internal"), (supernode._loop, "_pull_and_store_message"))


@pytest.fixture
def started(monkeypatch, tmp_path):
    """A function: start with a file's text, Flower's part in it played by ``flower``; gives how it ended."""

    def start(text, flower):
        path = tmp_path / "site.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(supernode, "flower_supernode", flower)
        for name in ("escape_logs", "limit_memory"):  # which last as long as the process
            monkeypatch.setattr(supernode, name, lambda *_: None)
        monkeypatch.setattr(supernode, "flwr_exit", lambda code, message: sys.exit(1))
        for module, name in REPLACED:  # put back what main puts in their place
            monkeypatch.setattr(module, name, getattr(module, name))
        monkeypatch.setattr(sys, "argv", ["supernode", str(path), "--port", "9101"])
        with pytest.raises(SystemExit) as end:
            supernode.main()
        return end.value.code

    return start


def test_flower_gets_the_address_and_the_options(started):
    told = []
    assert started(SITE.format(server=""), lambda: told.extend(sys.argv)) == 1
    assert told[:5] == ["flower-supernode", "--superlink", "fed.example.org:8000", "--port", "9101"]
    assert told[5:8] == ["--isolation", "process", "--superexec-auth-secret-file"]


@pytest.mark.parametrize(("code", "advised"), [(0, False), (1, True)])
def test_advice_is_given_where_it_did_not_end_well(started, capsys, code, advised):
    assert started(SITE.format(server=""), lambda: sys.exit(code)) == code
    assert ("sites check" in capsys.readouterr().err) == advised


def test_a_supernode_that_has_given_up_is_an_error(started, capsys):
    assert started(SITE.format(server=""), lambda: None) == 1
    assert "sites check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("[server", "is not valid TOML"), ('name = "a"\nserver = 1', "server"), ("", "server is missing")],
)
def test_a_file_that_is_none_of_a_site_is_named(started, text, message):
    assert message in started(text, lambda: None)


def test_a_site_that_pins_another_app_than_is_installed_does_not_start(started):
    assert started(SITE.format(server=f'app = "{bundle_hash()}"'), lambda: sys.exit(0)) == 0
    told = started(SITE.format(server=f'app = "{"0" * 64}"'), lambda: sys.exit(0))
    assert "pins the app 0000000000000000" in told and "install the operator's wheel" in told


def test_a_site_whose_key_others_may_read_does_not_start(started, tmp_path):
    key = tmp_path / "site.key"
    key.write_text("secret")
    for mode, ended in ((0o600, 0), (0o640, "chmod 600"), (0o604, "chmod 600")):
        key.chmod(mode)
        told = started(SITE.format(server=""), lambda: sys.exit(0))
        assert told == ended if mode == 0o600 else ended in told


def test_a_start_without_a_file_says_how_it_is_used(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["supernode"])
    with pytest.raises(SystemExit, match=r"SITE\.TOML"):
        supernode.main()


HONEST = replace(Run.create_empty(1), fab_hash=bundle_hash())


@pytest.mark.parametrize(
    ("run", "fab", "refusal"),
    [
        (HONEST, bundle(), None),
        (replace(HONEST, override_config={"set": "federation.rounds = 3"}), bundle(), None),
        (HONEST, bundle() + b"\0", "the server sent the app"),
        (HONEST, b"", "the server sent the app"),
        (HONEST, bundle()[:-1] + b"x", "the server sent the app"),
        (replace(HONEST, primary_task_type=TaskType.AGENT_APP), bundle(), "a run of type 'flwr-agentapp'"),
        (replace(HONEST, override_config={"code": "x"}), bundle(), "with the setting 'code'"),
    ],
)
def test_a_bundle_is_looked_at_before_flower_does(superlink, run, fab, refusal):
    """Flower's own function takes the message in; parsing, keeping and starting come after both questions."""
    superlink.run, superlink.fab = run, Fab(bundle_hash(), fab, {})  # the hash that comes with it may lie
    assert superlink.pull() == 1
    if refusal is None:
        assert superlink.taken == [bundle()] and not superlink.inserted
    else:
        (reply,) = superlink.inserted
        assert not superlink.taken
        assert reply.has_error() and reply.error.code == ErrorCode.INVALID_FAB and refusal in reply.error.reason


class SuperLink:
    """A server with one message, and Flower's function as far as it asks for run and bundle."""

    def __init__(self, message):
        self.message, self.run, self.fab = message, HONEST, None
        self.taken, self.inserted = [], []

    def pull(self):
        def flower(*, receive, get_run, get_fab, **_):
            message, _ = receive()
            run = get_run(message.metadata.run_id)
            self.taken.append(get_fab(run.fab_hash, run.run_id).content)
            return run.run_id

        guard = supernode.guarded(flower, lambda message, state, store: self.inserted.append(message))
        return guard(
            state=None,
            object_store=None,
            receive=lambda: (self.message, None),
            get_run=lambda run_id: self.run,
            get_fab=lambda fab_hash, run_id: self.fab,
        )


@pytest.fixture
def superlink():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0  # as runtime.grid does
    message = Message(RecordDict(), dst_node_id=1, message_type="query.merchants")
    return SuperLink(message)


def test_no_message_is_no_refusal():
    assert (
        supernode.guarded(lambda *, receive, **_: receive(), None)(
            state=None, object_store=None, receive=lambda: None, get_run=None, get_fab=None
        )
        is None
    )


def test_what_is_replaced_in_flower_is_there():
    """Another release may have renamed it; then nothing would be guarded."""
    assert all(callable(getattr(module, name)) for module, name in REPLACED)
    assert "_pull_and_store_message(" in inspect.getsource(supernode._loop.start_client_internal)
    assert "    start_client_internal(" in inspect.getsource(supernode._parser.flower_supernode)


def test_errors_of_the_guard_are_of_its_own_kind():
    with pytest.raises(NotAllowed, match="rule app"):
        supernode.check_bundle(Fab(bundle_hash(), b"other", {}))


def test_without_its_executor_a_supernode_ends(monkeypatch):
    ended = []
    monkeypatch.setattr(supernode.os, "kill", lambda *told: ended.append(told))
    supernode._end_with(subprocess.Popen([sys.executable, "-c", ""]))
    assert ended == [(os.getpid(), signal.SIGTERM)]
