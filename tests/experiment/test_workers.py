"""Worker processes answer as the app in this process does, and end with the grid or with the parent."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fed_distill.errors import TrainingError
from fed_distill.experiment.grid import CLIENT_APP_CRASHED
from fed_distill.experiment.workers import REPLIES_AHEAD, WorkerGrid

APP = """
import os
import signal
import threading

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp


def build():
    app = ClientApp()

    @app.query("who")
    def who(message, context):
        calls = context.state["calls"]["n"] + 1 if "calls" in context.state else 1
        context.state["calls"] = ConfigRecord({"n": calls})
        with open(context.run_config["log"], "a") as log:
            log.write(f"{context.node_id}\\n")
        answer = {
            "pid": os.getpid(),
            "part": f"{context.node_config['partition-id']} of {context.node_config['num-partitions']}",
            "threads": torch.get_num_threads(),
            "calls": calls,
        }
        return Message(RecordDict({"who": ConfigRecord(answer)}), reply_to=message)

    @app.query("echo")
    def echo(message, context):
        return Message(message.content, reply_to=message)

    @app.query("crash")
    def crash(message, context):
        raise RuntimeError("ill")

    @app.query("die")
    def die(message, context):
        os.kill(os.getpid(), signal.SIGKILL)

    @app.query("hang")
    def hang(message, context):
        threading.Event().wait()

    return app


def broken():
    raise RuntimeError("no shop here")
"""
PARENT = """
import sys

from flwr.app import RecordDict

from fed_distill.experiment.workers import WorkerGrid

if __name__ == "__main__":
    grid = WorkerGrid("shop_app:build", {"log": sys.argv[1]}, nodes=2, workers=2)
    node = grid.get_node_ids()[0]
    (who,) = grid.send_and_receive([grid.create_message(RecordDict(), "query.who", node, "1")])
    keys = grid.push_messages([grid.create_message(RecordDict(), "query.hang", node, "1")])
    print(*grid.processes, flush=True)
    grid.pull_messages(keys)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with the app's module, on the path of this process and so of its workers."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop_app.py").write_text(APP, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


FOUR_THREADS = {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
"""Of which torch takes as many as there are cores; tests have one otherwise, and nothing to share."""


@pytest.fixture(scope="module")
def grid(shop):
    with pytest.MonkeyPatch.context() as patch:
        for name, count in FOUR_THREADS.items():
            patch.setenv(name, count)
        grid = WorkerGrid("shop_app:build", {"log": str(shop / "log")}, nodes=3, workers=2)
    with grid:
        yield grid


def message(grid, kind, place=0, content=None, group="1"):
    return grid.create_message(content or RecordDict(), f"query.{kind}", grid.get_node_ids()[place], group)


def gone(processes):
    """Whether all these processes have ended; waits for them."""
    for process in processes:
        try:
            handle = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        try:
            if not select.select([handle], [], [], 60)[0]:
                return False
        finally:
            os.close(handle)
    return True


def test_every_node_is_served_by_its_worker_with_its_own_context(grid):
    assert isinstance(grid, Grid)
    replies = grid.send_and_receive([message(grid, "who", place) for place in (0, 1, 2, 0)])
    answers = [reply.content["who"] for reply in replies]
    assert [answer["part"] for answer in answers] == ["0 of 3", "1 of 3", "2 of 3", "0 of 3"]
    one, other = grid.processes
    assert [answer["pid"] for answer in answers] == [one, other, one, one]
    assert [answer["calls"] for answer in answers] == [1, 1, 1, 2]
    assert [reply.metadata.src_node_id for reply in replies] == [grid.get_node_ids()[place] for place in (0, 1, 2, 0)]


def test_messages_cross_bit_for_bit(grid):
    content = RecordDict(
        {
            "0/weights": ArrayRecord({"w": Array(np.array([[1.5, np.nan], [-0.0, 3e-45]], dtype=np.float32))}),
            "1/weights": ArrayRecord({"empty": Array(np.zeros((0, 3))), "i": Array(np.array([2**40]))}),
            "metrics": MetricRecord({"loss": [0.1, 0.2], "n": 3}),
            "head": ConfigRecord({"merchant": "Müller & 商户", "raw": b"\x00\xff", "flag": True}),
        }
    )
    request = message(grid, "echo", 1, content, group="7")
    (reply,) = grid.send_and_receive([request])
    assert list(reply.content) == list(content)
    for name in ("0/weights", "1/weights"):
        assert {key: array.data for key, array in reply.content[name].items()} == {
            key: array.data for key, array in content[name].items()
        }
    assert reply.content["metrics"] == content["metrics"]
    assert reply.content["head"] == content["head"]
    assert reply.metadata.reply_to_message_id == request.metadata.message_id
    assert (reply.metadata.group_id, reply.metadata.message_type) == ("7", "query.echo")


def test_an_app_that_raises_is_an_error_reply_and_the_worker_goes_on(grid):
    failed, answered = grid.send_and_receive([message(grid, "crash"), message(grid, "who")])
    assert (failed.error.code, failed.error.reason.rpartition(" ")[2]) == (CLIENT_APP_CRASHED, "ill")
    assert answered.has_content()


def test_each_reply_is_given_once_in_the_order_asked_and_late_ones_can_be_asked_first(grid):
    keys = grid.push_messages([message(grid, "who", number % 3) for number in range(12)])
    (last,) = grid.pull_messages(keys[-1:])
    assert last.metadata.reply_to_message_id == keys[-1]
    replies = grid.pull_messages(["unknown", *reversed(keys)])
    assert [reply.metadata.reply_to_message_id for reply in replies] == keys[-2::-1]
    assert grid.pull_messages(keys) == []


def test_a_worker_works_no_more_than_two_replies_ahead(grid, shop):
    (shop / "log").write_text("")
    node = str(grid.get_node_ids()[1])
    keys = grid.push_messages([message(grid, "who", 1) for _ in range(8)])
    grid.pull_messages(keys[:1])
    for _ in range(30):  # time enough for the worker to do too much
        grid.send_and_receive([message(grid, "echo", 0)])
    assert 1 <= (shop / "log").read_text().split().count(node) <= 1 + REPLIES_AHEAD
    assert len(grid.pull_messages(keys)) == 7
    assert (shop / "log").read_text().split().count(node) == 8


def test_a_killed_worker_is_named_and_none_is_left_behind(shop):
    log, before = {"log": str(shop / "log")}, multiprocessing.active_children()
    with WorkerGrid("shop_app:build", log, nodes=2, workers=2, threads=3) as grid:
        (alive,) = grid.send_and_receive([message(grid, "who", 0)])
        assert alive.content["who"]["threads"] == 3
        pattern = rf"worker 2 of 2 \(process {grid.processes[1]}\) was killed by SIGKILL .*lower runtime\.workers"
        with pytest.raises(TrainingError, match=pattern):
            grid.send_and_receive([message(grid, "die", 1)])
        with pytest.raises(TrainingError, match=pattern):
            grid.send_and_receive([message(grid, "who", 0)])
        grid.push_messages([message(grid, "hang", 0)])
        processes = grid.processes
    assert gone(processes)
    assert set(multiprocessing.active_children()) == set(before)


def test_an_app_that_cannot_be_made_is_said(shop, capfd):
    with (
        WorkerGrid("shop_app:broken", {}, nodes=1, workers=1) as grid,
        pytest.raises(TrainingError, match=r"worker 1 of 1 \(process \d+\) ended with exit code 1 before it answered"),
    ):
        grid.send_and_receive([message(grid, "who")])
    assert "no shop here" in capfd.readouterr().err


def test_a_worker_takes_its_share_of_the_threads_that_torch_would_take_alone(grid):
    alone = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"],
        env={**os.environ, **FOUR_THREADS}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (reply,) = grid.send_and_receive([message(grid, "who")])
    assert reply.content["who"]["threads"] == max(1, int(alone.stdout) // 2)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes that are not its children")
def test_workers_end_when_the_parent_is_killed_also_in_the_middle_of_work(shop):
    script = shop / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(shop), *filter(None, sys.path)])}
    arguments = [sys.executable, str(script), str(shop / "log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        workers = [int(process) for process in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(signal.SIGKILL)
    assert gone(workers)
