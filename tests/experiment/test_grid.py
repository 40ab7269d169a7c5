"""The in-process grid is a Flower grid: Flower's own strategy runs over it as over any other."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fed_distill.experiment.grid import CLIENT_APP_CRASHED, InProcessGrid

ROUNDS = 3


@pytest.fixture
def app():
    """Adds its site's number + 1 to the weights, as if it had that many examples; counts its calls in its state."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"]) + 1
        calls = int(context.state["calls"]["n"]) + 1 if "calls" in context.state else 1
        context.state["calls"] = MetricRecord({"n": calls})
        weights = message.content["arrays"]["w"].numpy() + number
        content = {
            "arrays": ArrayRecord({"w": Array(weights)}),
            "metrics": MetricRecord({"num-examples": number, "n": calls}),
        }
        return Message(RecordDict(content), reply_to=message)

    @app.query("crash")
    def crash(message: Message, context: Context) -> Message:
        raise RuntimeError(
            f"site {context.node_config['partition-id']} of {context.node_config['num-partitions']} is ill"
        )

    @app.query("config")
    def config(message: Message, context: Context) -> Message:
        return Message(RecordDict({"config": ConfigRecord({"x": context.run_config["x"]})}), reply_to=message)

    return app


def test_flowers_own_fedavg_runs_over_it_unchanged(app):
    grid = InProcessGrid(app, {}, sites=2)
    assert isinstance(grid, Grid)
    strategy = FedAvg(fraction_evaluate=0.0)
    result = strategy.start(grid, ArrayRecord({"w": Array(np.zeros(2))}), num_rounds=ROUNDS)
    step = (1 * 1 + 2 * 2) / (1 + 2)  # sites add 1 and 2, weighted by 1 and 2 examples
    np.testing.assert_allclose(result.arrays["w"].numpy(), [ROUNDS * step] * 2)
    assert [metrics["n"] for metrics in result.train_metrics_clientapp.values()] == [1, 2, 3]  # a site's state lives on


def ask(grid, kind, node):
    return grid.create_message(RecordDict(), kind, node, group_id="1")


def test_an_app_that_raises_is_an_error_reply_and_others_answer(app):
    grid = InProcessGrid(app, {"x": 5}, sites=2)
    first, second = grid.get_node_ids()
    failed, answered = grid.send_and_receive([ask(grid, "query.crash", first), ask(grid, "query.config", second)])
    assert failed.has_error()
    assert failed.error.code == CLIENT_APP_CRASHED
    assert failed.error.reason.endswith("site 0 of 2 is ill")
    assert failed.metadata.src_node_id == first
    assert answered.content["config"]["x"] == 5
    assert answered.metadata.src_node_id == second


def test_each_reply_is_given_once(app):
    grid = InProcessGrid(app, {"x": 1})
    (node,) = grid.get_node_ids()
    keys = grid.push_messages([ask(grid, "query.config", node), ask(grid, "query.config", node)])
    assert len(set(keys)) == 2
    replies = grid.pull_messages(keys)
    assert [reply.metadata.reply_to_message_id for reply in replies] == keys
    assert grid.pull_messages(keys) == []
    assert grid.pull_messages(["unknown"]) == []


def test_a_message_runs_when_its_reply_is_pulled(app):
    grid = InProcessGrid(app, {})
    (node,) = grid.get_node_ids()

    def message():
        content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(1))})})
        return grid.create_message(content, "train", node, group_id="1")

    first, second, third = grid.push_messages([message() for _ in range(3)])
    (last,) = grid.pull_messages([third])
    others = grid.pull_messages([first, second])
    assert last.content["metrics"]["n"] == 1
    assert [reply.content["metrics"]["n"] for reply in others] == [2, 3]


def test_it_belongs_to_the_run_that_is_set(app):
    grid = InProcessGrid(app, {})
    run = grid.run
    grid.set_run(run)
    assert grid.run is run
