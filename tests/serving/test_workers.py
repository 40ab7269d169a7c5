"""Several workers on one port: real processes, which are paused to choose who answers, and killed."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from types import SimpleNamespace

import httpx
import pytest
from starlette.datastructures import State

from fed_distill.errors import ServiceError
from fed_distill.serving import supervisor, worker
from fed_distill.serving.api_keys import key_hash
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import save_index
from fed_distill.serving.runtime import load_exported
from fed_distill.serving.service_config import ServeConfig
from fed_distill.serving.shared_folder import SharedFolder
from fed_distill.serving.supervisor import MOST_ENDED
from tests.serving.processes import COMMAND, alive, paused, served
from tests.serving.services import TITLES, replace_export, until

BODY = {"query": "usb hub", "titles": TITLES}
BURST = 12
SETTINGS = {"service": {"student": "export", "workers": 2}}


def write(folder, export, *, keys="", **service):
    """A serve.toml for two workers that do not watch files."""
    settings = {"student": str(export), "workers": 2, "watch_seconds": 3600, **service}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    folder.mkdir(exist_ok=True)
    (folder / "serve.toml").write_text("\n".join(["[service]", *lines, keys]))
    return folder


def key(name, scopes, rate=1e6, burst=1_000_000):
    return f'[[key]]\nname = "{name}"\nsha256 = "{key_hash(name)}"\nscopes = {scopes}\nrate = {rate}\nburst = {burst}\n'


OPERATOR, SHOP, LATER = (
    key("operator", ["admin", "metrics", "rank"]),
    key("shop", ["rank"], 0.001, BURST),
    key("later", ["rank"]),
)


class Client:
    """Asks on a new connection each time, so that any worker may answer."""

    def __init__(self, url):
        self.url = url

    def ask(self, name="operator", path="/rank", method="POST"):
        headers = {"authorization": f"Bearer {name}"}
        body = BODY if path == "/rank" else None
        return httpx.request(method, self.url + path, json=body, headers=headers, timeout=100)

    def metric(self, pattern):
        text = self.ask(path="/metrics", method="GET").text
        return sum(float(value) for value in re.findall(rf"^fed_distill_{pattern}\S* ([\d.e+]+)$", text, re.MULTILINE))


@pytest.fixture
def export(exported, tmp_path):
    return shutil.copytree(exported("two-tower")[1], tmp_path / "export")


def test_two_workers_are_one_service(export, exported, tmp_path):
    """One start for what would be many: rates, metrics, reloads, and the replacement of a killed worker."""
    folder = write(tmp_path / "service", export, keys=OPERATOR + SHOP)
    with served(folder, "--port", "0") as service:
        first, second = service.workers
        client = Client(service.url)

        # Each worker in turn answers alone: the bucket and the counts are the service's.
        for answering, other in ((first, second), (second, first)):
            with paused(other):
                assert [client.ask("shop").status_code for _ in range(BURST // 2)] == [200] * (BURST // 2), answering
        for other in (first, second):
            with paused(other):
                assert client.ask("shop").status_code == 429
        assert client.metric('requests_total{route="/rank",status="200"}') == BURST
        assert client.metric('requests_total{route="/rank",status="429"}') == 2
        assert client.metric('request_seconds_count{route="/rank"}') == BURST + 2
        old = client.ask(path="/ready", method="GET").json()["students"]["student"]
        assert client.metric(rf'student_info\{{role="student",variant="float32",version="{old}"') == 2

        # A reload by request, and one by signal, reach both.
        replace_export(export, exported("lstm")[1])
        new = client.ask(path="/admin/reload").json()["students"]["student"]
        assert new != old
        until(lambda: client.metric(rf'student_info\{{role="student",variant="float32",version="{new}"') == 2)
        assert client.metric(rf'student_info\{{role="student",variant="float32",version="{old}"') == 0
        assert client.ask("later").status_code == 401
        write(folder, export, keys=OPERATOR + SHOP + LATER)
        service.process.send_signal(signal.SIGHUP)
        for other in (first, second):
            with paused(other):
                until(lambda: client.ask("later").status_code == 200)

        # A killed worker is replaced. Its counts stay, the used-up bucket too, and a key removed meanwhile is refused.
        counted = client.metric('requests_total{route="/rank",status="200"}')
        write(folder, export, keys=OPERATOR + SHOP)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(service.workers) == 3)
        until(lambda: client.metric(rf'student_info\{{role="student",variant="float32",version="{new}"') == 2)
        assert client.metric('requests_total{route="/rank",status="200"}') == counted
        with paused(second):
            assert client.ask("later").status_code == 401
            assert client.ask("shop").status_code == 429
        assert "ended by SIGKILL" in "".join(service.lines)
        workers = service.workers
    assert service.process.returncode == 0
    assert not any(map(alive, workers))


def test_a_change_of_the_index_by_one_worker_is_seen_by_all_and_by_the_next_one(export, tmp_path):
    """The workers look at no file by themselves here: the one that changed the index tells the others."""
    student = load_exported(export)
    save_index(ProductIndex.build(student, [Product("old", "red kettle")]), tmp_path / "index", student.digest)
    keys = key("operator", ["search", "index"])
    with served(
        write(tmp_path / "service", export, keys=keys, index=str(tmp_path / "index")), "--port", "0"
    ) as service:

        def ask(method, path, body):
            headers = {"authorization": "Bearer operator"}
            return httpx.request(method, service.url + path, json=body, headers=headers, timeout=100)

        def found():
            return sorted(hit["id"] for hit in ask("POST", "/search", {"query": "usb hub"}).json()["hits"])

        first, second = service.workers
        with paused(second):
            new = {"products": [{"id": "new", "title": TITLES[0]}]}
            assert ask("PUT", "/products", new).json()["products"] == 2
            assert found() == ["new", "old"]
        with paused(first):
            until(lambda: found() == ["new", "old"])
            assert ask("POST", "/products/delete", {"products": ["old"]}).json()["products"] == 1
        with paused(second):
            until(lambda: found() == ["new"])
        os.kill(first, signal.SIGKILL)
        until(lambda: "".join(service.lines).count("student loaded") == 3)
        with paused(second):
            until(lambda: found() == ["new"])


def test_sigterm_drains_all_workers_and_ctrl_c_does_not_wait(export, tmp_path):
    with served(write(tmp_path / "service", export, drain_seconds=500.0), "--port", "0") as service:
        idle = httpx.Client(base_url=service.url, timeout=100)
        assert idle.post("/rank", json=BODY, headers={"host": "localhost"}).headers.get("connection") is None
        service.process.send_signal(signal.SIGTERM)
        until(lambda: not service.ready())
        for other in service.workers:
            with paused(other):
                assert not service.ready()
                answer = httpx.post(f"{service.url}/rank", json=BODY, timeout=100)
                assert answer.status_code == 200
                assert answer.headers["connection"] == "close"
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(100) == 0
        with socket.create_server(service.address):  # the port is free
            pass
        assert not any(map(alive, service.workers))


def test_a_crash_loop_ends_the_service(export, tmp_path):
    with served(write(tmp_path / "service", export), "--port", "0") as service:
        for number in range(MOST_ENDED + 1):
            until(lambda number=number: len(service.workers) >= 2 + number)
            os.kill(service.workers[-1], signal.SIGKILL)
        assert service.process.wait(100) == 2
        with socket.create_server(service.address):
            pass
    text = "".join(service.lines)
    assert f"workers ended {MOST_ENDED + 1} times within 60 seconds, the last one by SIGKILL" in text
    assert "Traceback" not in text
    assert not any(map(alive, service.workers))


def test_a_worker_that_cannot_load_a_broken_student_is_tried_again_while_others_serve(export, tmp_path):
    whole = (export / "export.json").read_text()
    with served(write(tmp_path / "service", export), "--port", "0") as service:
        (export / "export.json").write_text("{}")
        os.kill(service.workers[0], signal.SIGKILL)
        until(lambda: "".join(service.lines).count("ended with exit code 2 before it served") == 2)
        assert httpx.post(f"{service.url}/rank", json=BODY, timeout=100).status_code == 200
        (export / "export.json").write_text(whole)
        until(lambda: "".join(service.lines).count("loaded") == 3)
        with paused(service.workers[1]):
            assert httpx.post(f"{service.url}/rank", json=BODY, timeout=100).status_code == 200


@pytest.mark.parametrize("others", [True, False])
def test_ends_before_a_worker_serves_stop_the_service_if_no_other_serves(monkeypatch, tmp_path, others):
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.0)

    async def keep():
        with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(SharedFolder("{}")) as shared:
            found = supervisor._Supervisor(ServeConfig.model_validate(SETTINGS), None, listener, "text", shared)
            found._served, found._workers = True, {1: SimpleNamespace(ready=others, channel=None)}
            ends = iter(range(3 * MOST_ENDED))

            async def run_one(place):
                if next(ends, None) is None:
                    found._stopping.set()
                return 2, False

            monkeypatch.setattr(found, "_run_one", run_one)
            monkeypatch.setattr(found, "_stop_now", found._stopping.set)
            await found._keep(2)
            return found._problem

    problem = asyncio.run(keep())
    assert problem is None if others else f"workers ended {MOST_ENDED + 1} times" in str(problem)


def test_sigterm_to_all_processes_at_once_drains_as_one_to_the_supervisor_does(export, tmp_path):
    """As systemd stops a service, unless told otherwise."""
    with served(write(tmp_path / "service", export, drain_seconds=500.0), "--port", "0") as service:
        for process in (*service.workers, service.process.pid):
            os.kill(process, signal.SIGTERM)
        for other in service.workers:
            with paused(other):
                until(lambda: httpx.get(f"{service.url}/ready", timeout=100).status_code == 503)
                assert httpx.post(f"{service.url}/rank", json=BODY, timeout=100).status_code == 200
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(100) == 0
        assert not any(map(alive, service.workers))


def test_sighup_to_all_processes_at_once_reloads_and_ends_no_worker(export, tmp_path):
    """As a terminal that is closed sends it, and systemctl kill."""
    with served(write(tmp_path / "service", export), "--port", "0") as service:
        for process in (*service.workers, service.process.pid):
            os.kill(process, signal.SIGHUP)
        until(lambda: "".join(service.lines).count("student loaded") == 4)
        assert len(service.workers) == 2
        assert all(map(alive, service.workers))


def test_a_worker_starts_although_the_shared_folder_was_removed(export, tmp_path):
    """By a program that removes old temporary files. A key has its rate once all the same."""
    folder, settings = tmp_path / "tmp", write(tmp_path / "service", export, keys=OPERATOR + SHOP)
    folder.mkdir()
    with served(settings, "--port", "0", environment={"TMPDIR": str(folder)}) as service:
        client = Client(service.url)
        assert [client.ask("shop").status_code for _ in range(BURST - 1)] == [200] * (BURST - 1)
        (shared,) = folder.glob("fed-distill-serve-*")
        shutil.rmtree(shared)
        os.kill(service.workers[0], signal.SIGKILL)
        until(lambda: "".join(service.lines).count("student loaded") == 3)
        assert shared.stat().st_mode & 0o777 == 0o700
        for other in service.workers[1:]:
            with paused(other):
                until(lambda: client.ask().status_code == 200)  # an operator's rate comes back at once
                assert client.ask("shop").status_code == 429
    assert not shared.exists()


def test_a_folder_that_took_the_place_of_the_shared_one_is_not_used():
    shared = SharedFolder("{}")
    shared.path.rename(shared.path.with_suffix(".moved"))
    shared.path.mkdir()
    (shared.path / "settings.json").write_text("forged")
    with pytest.raises(ServiceError, match="was replaced, perhaps by another user"):
        shared.complete()
    shared.close()
    assert (shared.path / "settings.json").read_text() == "forged"
    shutil.rmtree(shared.path)
    shutil.rmtree(shared.path.with_suffix(".moved"))


def test_the_shared_folder_is_locked_against_programs_that_clean_up():
    """systemd-tmpfiles leaves alone what it cannot lock."""
    with contextlib.closing(SharedFolder("{}")) as shared:
        file = os.open(shared.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(file)
        assert shared.settings.stat().st_mode & 0o777 == 0o600


def test_workers_end_when_their_supervisor_is_killed(export, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    with served(write(tmp_path / "service", export), "--port", "0", environment={"TMPDIR": str(folder)}) as service:
        service.process.kill()
        assert service.process.wait(100) == -signal.SIGKILL
        until(lambda: not any(map(alive, service.workers)))
        with socket.create_server(service.address):
            pass


@pytest.mark.parametrize("mistake", ["no student", "no temporary folder"])
def test_what_cannot_start_says_why_once(export, tmp_path, mistake):
    folder, environment = write(tmp_path / "service", export), dict(os.environ)
    if mistake == "no student":
        (export / "export.json").unlink()
        expected = "export.json", "ended with exit code 2 before it served: its error is above"
    else:
        environment["PATH"], expected = "", ("make /tmp writable or set TMPDIR",)
        code = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null/x']\n"
        (tmp_path / "sitecustomize.py").write_text(code)
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    done = subprocess.run([*COMMAND, str(folder), "--port", "0"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert all(part in " ".join(done.stderr.split()) for part in expected), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("supervisor", ["paused", "gone"])
def test_a_worker_answers_although_its_supervisor_does_not_listen(supervisor):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        if supervisor == "gone":
            theirs.close()
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while True:
                ours.send(b"." * 65536)
        state = State()
        worker._connect(state, ours)
        assert (state.reload_others(), state.index_changed()) == (None, None)


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_without_a_sign_of_life_is_given_up_after_a_second_look(monkeypatch, late):
    """The supervisor itself may have been paused, with a sign of life unread."""
    monkeypatch.setattr(supervisor, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "BEAT_SECONDS", 0.0 if not late else 100.0)
    heard = []

    async def watch():
        reader = asyncio.StreamReader()
        worker = supervisor._Worker(1, SimpleNamespace(pid=1), reader, None, ready=True)
        if late:
            asyncio.get_running_loop().call_later(0.05, reader.feed_data, b".")
            asyncio.get_running_loop().call_later(0.1, reader.feed_eof)
        await worker.watch(lambda _, told: heard.append(told))

    asyncio.run(watch())
    assert heard == ([b"."] if late else [])
