"""The command in a process of its own: real sockets, signals and slow clients."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from fed_distill.reporting.store import EXPERIMENT
from fed_distill.serving.service_files import write_serve_file
from tests.serving.processes import answer_of, served
from tests.serving.services import TITLES

BODY = {"query": "usb hub", "titles": TITLES}


@pytest.fixture(scope="module")
def service(exported, tmp_path_factory):
    """A running service with a key, and short times."""
    folder = tmp_path_factory.mktemp("service") / "service"
    key = write_serve_file(folder, exported("two-tower")[1])
    path = folder / "serve.toml"
    path.write_text(path.read_text().replace("[[key]]", "[limits]\nbody_seconds = 0.5\nconnections = 60\n\n[[key]]"))
    with served(folder) as (process, address, lines):
        yield process, address, lines, key


def test_it_answers_and_logs_no_text(service):
    _, (host, port), lines, key = service
    url = f"http://{host}:{port}"
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url) as client:
        assert client.post("/rank?q=sekret", json={**BODY, "query": "sekret"}, headers=headers).status_code == 200
        assert client.post("/rank", json=BODY).status_code == 401
        large = client.post("/rank", content=b"x" * 3_000_000, headers=headers)
        assert large.status_code == 413
        assert "server" not in large.headers
        assert client.get("/ready").json()["ready"]
    text = "".join(lines)
    assert "sekret" not in text
    assert key not in text


def test_slow_and_endless_requests_are_ended(service):
    _, address, _, key = service
    head = (
        f"POST /rank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n".encode()
    )
    for sent, status in {
        b"": b"",
        b"POST /rank HTTP/1.1\r\nHost: x\r\nX-Slow: ": b"",
        head + b"Content-Length: 50\r\n\r\n{": b"HTTP/1.1 408",
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{": b"HTTP/1.1 408",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 1_000_000: b"HTTP/1.1 431",
        b"not http at all\r\n\r\n": b"HTTP/1.1 400",
        head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}": b"HTTP/1.1 400",
        head + b"Content-Length: -2\r\n\r\n{}": b"HTTP/1.1 400",
    }.items():
        with (
            socket.create_connection(address) as connection,
            contextlib.suppress(ConnectionResetError, BrokenPipeError),
        ):
            connection.settimeout(60)
            connection.sendall(sent)
            assert answer_of(connection).startswith(status), sent[:80]


def test_idle_connections_leave_room_again(service):
    _, address, _, key = service
    idle = [socket.create_connection(address) for _ in range(80)]
    for connection in idle:
        connection.settimeout(60)
        assert answer_of(connection) == b""  # closed after the time for headers
        connection.close()
    url = f"http://{address[0]}:{address[1]}/rank"
    assert httpx.post(url, json=BODY, headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_a_stop_lets_a_request_in_progress_finish(exported):
    content = json.dumps(BODY).encode()
    with served(exported("two-tower")[1]) as (process, address, _):
        with socket.create_connection(address) as connection:
            connection.settimeout(60)
            head = "POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:5])
            url = f"http://{address[0]}:{address[1]}/metrics"
            while "in_flight_requests 2.0" not in httpx.get(url, headers={"host": "localhost"}).text:
                pass  # the request has begun, beside this one
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            connection.sendall(content[5:])
            assert answer_of(connection).startswith(b"HTTP/1.1 200")
        assert process.wait(60) == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_the_last_line_of_the_log(exported, tmp_path, workers, number):
    folder = tmp_path / "service"
    write_serve_file(folder, exported("two-tower")[1])
    path = folder / "serve.toml"
    path.write_text(path.read_text().replace("port = 8080", f"port = 8080\nworkers = {workers}"))
    with served(folder, "--port", "0", "--logs", "json") as service:
        service.process.send_signal(number)
        assert service.process.wait(60) == 0
    assert json.loads(service.lines[-1])["message"] == "stopped"
    assert sum("stopped" in line for line in service.lines) == 1


def test_mistakes_are_one_line_and_exit_2(exported, tmp_path):
    trained, export = exported("two-tower")
    run = tmp_path / "run"
    run.mkdir()
    (run / EXPERIMENT).write_text('name = "run"\n', encoding="utf-8")
    damaged = tmp_path / "damaged"
    shutil.copytree(export, damaged)
    for graph in damaged.rglob("*.onnx"):  # the port is told of before the student is loaded
        graph.unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, problem in (
            ([str(tmp_path)], f"{tmp_path} has neither serve.toml nor export.json"),
            ([str(tmp_path / "none")], f"{tmp_path / 'none'} does not exist"),
            ([str(trained)], f"{trained} is a trained student: export it first: fed-distill export {trained} --to"),
            ([str(run)], f"{run} is a run: export it first: fed-distill export {run} --to exported"),
            (
                [str(damaged), "--port", port],
                f"error: port {port} is in use: choose another with --port (service.port in serve.toml)\n",
            ),
            ([str(tmp_path), "--init"], "add --student"),
        ):
            command = [sys.executable, "-m", "fed_distill.cli.main", "serve", *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            assert problem in done.stderr
            assert "Traceback" not in done.stderr
