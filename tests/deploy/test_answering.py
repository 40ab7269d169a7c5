"""The process that answers runs what is installed, within the time and memory of its site's rules."""

import importlib
import io
import json
import subprocess
import sys
import time

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from fed_distill.deploy import answering, executor
from fed_distill.deploy.answering import Limited
from fed_distill.deploy.executor import GRACE, LONGEST_START, SiteExecutor
from fed_distill.errors import ModelError, NotAllowed, TrainingError
from fed_distill.merchant.request_validation import outlined
from fed_distill.models import rebuild

SITE = 'name = "north"\n[server]\naddress = "localhost:1"\n[data]\npath = "data.csv"\n[limits.rules]\nmax_seconds = 5\n'
RESTRICTED = """
from fed_distill.deploy.answering import restrict
from fed_distill.merchant.limits import Rules
restrict(Rules({}))
"""


def restricted(rules, then, folder):
    """What a process with these rules does, started in a folder as a site's is; its exit code and what it says."""
    command = [sys.executable, "-P", "-c", RESTRICTED.format(rules) + then]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stderr


NOT_NAMED = [
    ("fed_distill.methods:METHODS", "evil:Evil"),
    ("fed_distill.models.building:STUDENTS", "evil:Evil"),
    ("fed_distill.models.building:STUDENTS", "os:system"),
    ("fed_distill.aggregation:AGGREGATORS", "evil:Evil"),
]
EACH_REFUSED = """
import importlib, sys
from fed_distill.errors import NotAllowed
for path, name in {}:
    module, _, attribute = path.partition(":")
    try:
        getattr(importlib.import_module(module), attribute).resolve(name)
    except NotAllowed as error:
        print(error, file=sys.stderr)
"""


def test_names_in_requests_import_nothing_that_the_rules_do_not_name(tmp_path):
    (tmp_path / "evil.py").write_text("open('imported', 'w')\nclass Evil: pass\n")
    code, said = restricted("", EACH_REFUSED.format(NOT_NAMED), tmp_path)
    assert code == 0
    for (_, name), line in zip(NOT_NAMED, said.splitlines(), strict=True):
        assert line.startswith("rule imports: ") and line.endswith(f"{name!r} is neither built in nor listed there")
    assert not (tmp_path / "imported").exists()


def test_not_even_what_the_rules_name_comes_from_the_working_folder(tmp_path):
    (tmp_path / "evil.py").write_text("open('imported', 'w')\nclass Evil: pass\n")
    resolve = "from fed_distill.methods import METHODS; METHODS.resolve('evil:Evil')"
    code, said = restricted("imports=('evil:Evil',)", resolve, tmp_path)
    assert code == 1 and "No module named 'evil'" in said
    assert not (tmp_path / "imported").exists()


def test_built_in_parts_and_what_the_rules_name_are_imported(tmp_path):
    resolve = "from fed_distill.methods import METHODS; METHODS.resolve('fedavg-kd'); METHODS.resolve('json:loads')"
    assert restricted("imports=('json:loads',)", resolve, tmp_path) == (0, "")


def test_more_memory_than_is_allowed_is_not_had(tmp_path):
    code, said = restricted("max_memory_gib=1.0", "import torch; torch.ones(2**29)", tmp_path)
    assert code == 1 and "can't allocate memory" in said
    assert restricted("max_memory_gib=4.0", "import torch; torch.ones(2**27)", tmp_path)[0] == 0


def test_what_takes_too_long_ends_in_a_refusal_though_errors_are_caught_all_the_way():
    message = object()

    def busy(message, context):
        while True:
            try:
                time.sleep(60)
            except Exception:  # as training catches what goes wrong with one merchant
                continue

    with pytest.raises(NotAllowed, match=r"rule max_seconds: 0\.2 for one message"):
        Limited(busy, 0.2)(message, None)
    assert Limited(lambda message, context: message, 60.0)(message, None) is message


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


def spec(kind, token="token", task=1):
    return ExecutionSpec(kind, "127.0.0.1:1", token, True, None, False, None, False, task)


@pytest.mark.parametrize("kind", [kind for kind in TaskType if kind != TaskType.CLIENT_APP])
def test_a_site_starts_no_other_kind_of_task(monkeypatch, site, kind):
    monkeypatch.setattr(executor.subprocess, "Popen", None)
    assert SiteExecutor(site).launch(spec(kind)).status == LaunchResultStatus.FAILED
    assert SiteExecutor(site).get_eligible_capacity({kind}) == ({TaskType.CLIENT_APP}, set())


class Process:
    """As of ``subprocess``, which does not end by itself."""

    def __init__(self, command, stdin, bufsize):
        self.command, self.stdin, self.killed = command, io.BytesIO(), False

    def poll(self):
        return None

    def kill(self):
        self.killed = True


def test_a_process_that_is_deaf_to_its_alarm_is_killed(monkeypatch, site):
    now = [0.0]
    monkeypatch.setattr(executor.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(executor.subprocess, "Popen", Process)
    starting = SiteExecutor(site)
    starting.launch(spec(TaskType.CLIENT_APP))
    process = starting._running[0].process
    assert process.command[:4] == [sys.executable, "-P", "-m", "fed_distill.deploy.answering"]
    assert process.stdin.getvalue() == b"token\n" and "token" not in process.command
    for now[0], killed in ((5.0 + GRACE, False), (5.1 + GRACE, True)):
        starting.reconcile()
        assert process.killed is killed


SLOW = f"""#!{sys.executable}
import os, time
from fed_distill.deploy.answering import _token
while not os.path.exists("imported"):
    time.sleep(0.05)
token = _token()
with open(token, "x"):
    pass
while not os.path.exists("answered"):
    time.sleep(0.05)
"""


def test_a_process_that_starts_slowly_receives_later_tokens(monkeypatch, tmp_path, site, caplog):
    """The SuperNode asks for another process once the token has expired; on a slow machine they would pile up."""
    program = tmp_path / "slow"
    program.write_text(SLOW)
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executor.sys, "executable", str(program))
    starting = SiteExecutor(site)
    for token, task in (("first", 1), ("second", 1), ("other", 2)):
        assert starting.launch(spec(TaskType.CLIENT_APP, token, task)).status == LaunchResultStatus.ACCEPTED
    assert [answering.task for answering in starting._running] == [1, 2]
    assert len(caplog.records) == 1 and "overloaded" in caplog.text

    (tmp_path / "imported").touch()
    until(lambda: {"second", "other"} <= {path.name for path in tmp_path.iterdir()})
    assert not (tmp_path / "first").exists()

    assert starting.launch(spec(TaskType.CLIENT_APP, "third", 1)).status == LaunchResultStatus.ACCEPTED
    assert [answering.task for answering in starting._running] == [1, 2, 1]
    until((tmp_path / "third").exists)
    (tmp_path / "answered").touch()
    until(lambda: not starting.reconcile() and not starting._running)


def test_a_process_that_does_not_start_is_killed_for_another(monkeypatch, site):
    """Otherwise each token would grant it more time, until the pipe is full and nobody else is started."""
    now = [0.0]
    monkeypatch.setattr(executor.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(executor.subprocess, "Popen", Process)
    starting = SiteExecutor(site)
    for now[0] in (0.0, LONGEST_START, LONGEST_START + 1.0):
        starting.launch(spec(TaskType.CLIENT_APP))
    assert [answering.process.killed for answering in starting._running] == [True, False]


def until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_app_that_answers_is_the_installed_one_whatever_was_sent(monkeypatch, site):
    """Flower's process asks a function for the app, by what the server sent; it gets the installed one."""
    from fed_distill.merchant.app import app

    task = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    for name in ("install_from_fab", "get_load_client_app_fn"):
        monkeypatch.setattr(task, name, getattr(task, name))
    for name in ("escape_logs", "restrict"):  # which last as long as the process
        monkeypatch.setattr(answering, name, lambda *_: None)
    monkeypatch.setattr(answering, "_token", lambda: "token")
    monkeypatch.setattr(sys, "argv", ["answering", str(site), "--insecure"])
    given = []
    monkeypatch.setattr(answering, "flwr_clientapp", lambda: given.extend(sys.argv))
    answering.main()
    assert given == ["flwr-clientapp", "--token", "token", "--insecure"]
    assert task.install_from_fab(b"anything") is None
    loaded = task.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)("evil", "0", "0")
    assert isinstance(loaded, Limited) and (loaded._app, loaded._seconds) == (app, 5.0)


def test_a_message_that_cannot_be_read_ends_the_process_without_a_word(monkeypatch):
    """Flower's own process would say that it failed, and the SuperNode wait for its answer for ever."""
    ended = []
    monkeypatch.setattr(answering.os, "_exit", ended.append)

    def pull(client):
        raise ValueError("no protobuf")

    answering._or_end(pull)(None)
    assert ended == [1]
    assert answering._or_end(lambda client: client)("message") == "message"


CONFIG = {"model_type": "vit", "auto_map": {"AutoModelForSequenceClassification": "evil--modeling.Evil"}}


@pytest.mark.parametrize("config", [CONFIG, {"model_type": "bert", "nested": [{"auto_map": {}}]}])
def test_a_configuration_that_names_code_of_its_own_is_refused_and_nobody_is_asked(monkeypatch, config):
    """transformers would ask on the terminal whether the code is to be run."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    settings = {"classes": 2, "pair": True, "config": config, "max_length": 16}
    described = json.dumps({"kind": "fed_distill.models.transformer:Transformer", "settings": settings})
    with pytest.raises(TrainingError, match="has custom code"):
        outlined(described)


def test_no_other_kind_of_network_asks_either(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ModelError):
        rebuild(
            "fed_distill.models.transformer:Transformer",
            {"classes": 2, "pair": True, "config": {"model_type": "vit"}, "max_length": 16},
        )
