"""The load generator against servers whose behaviour is known."""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from fed_distill.cli.main import app
from fed_distill.errors import ConfigError
from fed_distill.serving.load import LoadPlan, run_load
from fed_distill.serving.load_client import Target

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
ABORT = b""


@contextlib.contextmanager
def answering(answer):
    """A server: ``answer(number, head, body)`` gives the bytes for each request, ABORT to break its connection."""
    loop, seen, started = asyncio.new_event_loop(), [], threading.Event()

    async def connected(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("Content-Length:")), 0)
                body = await reader.readexactly(length)
                if head.startswith("GET"):
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                seen.append((head, json.loads(body)))
                reply = answer(len(seen))
                if not reply:
                    break
                writer.write(reply)
        writer.close()

    async def run():
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port.append(server.sockets[0].getsockname()[1])
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()

    port = []
    task = loop.create_task(run())

    def serve():
        loop.run_until_complete(task)
        left = asyncio.all_tasks(loop)
        for one in left:
            one.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{port[0]}", seen
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def plan(**more):
    return LoadPlan(**{"rate": 100.0, "seconds": 0.5, "titles": 3, "arrivals": "constant", "timeout": 100.0, **more})


def test_constant_times_are_even():
    assert plan(rate=4.0, seconds=1.0).times().tolist() == [0.0, 0.25, 0.5, 0.75]


def test_poisson_times_have_the_rate_and_the_spread_of_a_poisson_process():
    times = LoadPlan(rate=1000.0, seconds=20.0).times()
    gaps = np.diff(times)
    assert times[0] > 0.0
    assert times[-1] < 20.0
    assert abs(len(times) - 20_000) < 5 * 20_000**0.5  # five standard deviations of the count
    assert abs(gaps.mean() - 1e-3) < 5e-5
    assert abs(gaps.std() - 1e-3) < 5e-5  # exponential gaps: standard deviation = mean
    assert abs((gaps > 1e-3).mean() - np.exp(-1)) < 0.02


def test_a_load_without_a_request_is_refused():
    with pytest.raises(ConfigError, match="are none"):
        plan(rate=0.5, seconds=0.5).times()


def test_a_stall_delays_every_request_that_was_planned_in_it():
    """One connection, a request each 10 ms, the first takes 0.4 s: number i was planned at 10 i ms and is answered
    after 0.4 s, so that those with i <= 20 take 0.2 s or more. A load that waits for answers would see one slow one."""

    def answer(number):
        if number == 1:
            time.sleep(0.4)
        return OK

    with answering(answer) as (url, _):
        found = run_load(url, plan(connections=1))
    assert found.planned == len(found.latencies) == 50
    assert sum(latency >= 0.2 for latency in found.latencies) >= 20
    assert found.latencies[0] >= 0.4
    assert found.waited >= 30


def test_failures_are_counted_by_kind():
    kinds = {1: b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 2: ABORT, 3: b"none\r\n\r\n"}
    kinds[4] = b"HTTP/1.1 429 Too Many\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    kinds[5] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with answering(lambda number: kinds.get(number, OK)) as (url, _):
        found = run_load(url, plan(connections=1))
    assert found.failed == found.lost == Counter({"status 503": 1, "broken": 2, "status 429": 1})
    assert len(found.latencies) == 46


def test_a_request_is_sent_again_once_only_when_its_connection_broke():
    second = {3: ABORT, 10: ABORT, 11: ABORT, 20: b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"}
    with answering(lambda number: second.get(number, OK)) as (url, seen):
        found = run_load(url, plan(connections=1, retry=True))
    assert found.failed == Counter({"broken": 2, "status 500": 1})
    assert found.lost == Counter({"broken": 1, "status 500": 1})
    assert len(seen) == 50 + 2


def test_nobody_listens_and_nobody_answers():
    with answering(lambda number: OK) as (url, _):
        pass
    assert run_load(url, plan(rate=20.0)).failed == Counter({"not connected": 10})

    def answer(number):
        time.sleep(1.0)
        return OK

    with answering(answer) as (url, _):
        found = run_load(url, plan(rate=20.0, timeout=0.2))
    assert found.failed == Counter({"timeout": 10})
    assert found.latency(99) == float("inf")


def test_new_titles_never_repeat_and_others_say_how_often():
    with answering(lambda number: OK) as (url, seen):
        assert run_load(url, plan(distinct=None)).repeated == 0.0
        run_load(url, plan(distinct=None))
    sent = [title for _, body in seen for title in body["titles"]]
    assert len(sent) == len(set(sent)) == 2 * 50 * 3
    with answering(lambda number: OK) as (url, seen):
        found = run_load(url, plan(distinct=7, queries=["one", "zwei"]))
    sent = [title for _, body in seen for title in body["titles"]]
    assert len(set(sent)) == 7
    assert found.repeated == pytest.approx(1 - 7 / 150)
    assert {body["query"] for _, body in seen} == {"one", "zwei"}


def test_a_target_is_parsed():
    target = Target.of("https://shop.example:8443/student/", "k")
    assert (target.host, target.port, target.context is None) == ("shop.example", 8443, False)
    assert target.request("POST", "/rank", b"{}") == (
        b"POST /student/rank HTTP/1.1\r\nHost: shop.example:8443\r\nAuthorization: Bearer k\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    for url in ("shop.example", "ftp://x", "http://", "http://x:y", "http://a:b@x", "http://x/?a=1"):
        with pytest.raises(ConfigError, match="URL"):
            Target.of(url, None)


def test_the_command_reports_and_its_exit_code_tells(tmp_path, monkeypatch):
    queries, key = tmp_path / "queries", tmp_path / "key"
    queries.write_text("usb hub\n\nkettle\n")
    key.write_text("secret-of-file\n")
    monkeypatch.setenv("FED_DISTILL_KEY", "secret-of-variable")
    options = ["--rate", "50", "--seconds", "0.4", "--arrivals", "constant", "--timeout", "100"]

    def run(*more):
        found = CliRunner().invoke(app, ["load-test", url, *options, *more], catch_exceptions=True)
        return found.exit_code, found.output

    with answering(lambda number: OK) as (url, seen):
        code, text = run("--queries", str(queries))
        assert code == 0, text
        assert "20 requests of 10 titles in 0.4 s, constant" in text
        assert "failed      0\n" in text
        assert "secret-of-variable" in seen[-1][0]
        assert {body["query"] for _, body in seen} <= {"usb hub", "kettle"}
        assert run("--key-file", str(key))[0] == 0
        assert "secret-of-file" in seen[-1][0]
        assert run("--p99-ms", "0.001")[0] == 1
        assert "secret" not in text
    with answering(lambda number: ABORT if number == 3 else OK) as (url, _):
        code, text = run("--retry")
        assert code == 0, text
        assert "failed      1 (1 broken)\nafter retry 0\n" in text
    with answering(lambda number: ABORT if number == 3 else OK) as (url, _):
        assert run()[0] == 1
    for wrong in (["--arrivals", "x"], ["--queries", str(tmp_path)], ["--key-file", str(queries)]):
        assert isinstance(CliRunner().invoke(app, ["load-test", "http://x", *wrong]).exception, ConfigError)
