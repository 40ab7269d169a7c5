"""Flower's Ray simulation of the same round: a ClientApp and FedAvg as in Flower's PyTorch quickstart.

One virtual node is one merchant; a client takes one CPU core, so that as many train at a time as there are cores. An
actor process opens the data and builds the student once and keeps them. It is started by ``run_simulation``, which is
deprecated for ``flwr run`` but is the same engine: ``flwr run`` would add a SuperLink process and nothing to a round.
Time is taken where the server is called back after each round, so starting Ray is not in it.
"""

import os
import tempfile
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.benchmarks.contenders import Clock, Settings
from experiments.benchmarks.plain import train_locally
from experiments.benchmarks.workload import Cohort
from fed_distill.models import TextModel


def train(cohort: Cohort, settings: Settings, clock: Clock) -> None:
    """Train the cohort round by round."""
    share = 0.0 if settings.device == "cpu" else 1.0 / settings.threads
    with tempfile.TemporaryDirectory(prefix="r", dir=cohort.folder) as scratch:
        run_simulation(
            server_app=_server(cohort, settings, clock),
            client_app=_client(cohort.folder, settings.device),
            num_supernodes=len(cohort.shops),
            backend_config={
                "init_args": {"num_cpus": settings.threads, "include_dashboard": False, "_temp_dir": scratch},
                "client_resources": {"num_cpus": 1, "num_gpus": share},
            },
        )


def _client(folder: Path, device: str) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        cohort, student = _opened(folder, device)
        shop = cohort.shops[int(context.node_config["partition-id"])].to(device)
        student.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        train_locally(student, shop, cohort.workload)
        peak = torch.cuda.max_memory_allocated() if device != "cpu" else 0
        metrics = MetricRecord({"num-examples": len(shop), "process": os.getpid(), "peak": peak})
        reply = RecordDict({"arrays": ArrayRecord(dict(student.state_dict()))})
        reply["metrics"] = metrics
        return Message(reply, reply_to=message)

    return app


@cache
def _opened(folder: Path, device: str) -> tuple[Cohort, TextModel]:
    """What an actor keeps: the memory-mapped data and a student; its one core has one thread."""
    torch.set_num_threads(1)
    cohort = Cohort.open(folder)
    return cohort, cohort.workload.new_student().to(device)


def _server(cohort: Cohort, settings: Settings, clock: Clock) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        def round_done(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number:
                clock.round_done(arrays.to_torch_state_dict)
            return None

        def memory(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
            for reply in replies:
                metrics = reply.metric_records["metrics"]
                clock.device_memory(int(str(metrics["peak"])), int(str(metrics["process"])))
            return MetricRecord()

        nodes = len(cohort.shops)
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_train_nodes=nodes,
            min_available_nodes=nodes,
            train_metrics_aggr_fn=memory if settings.device != "cpu" else None,
        )
        start = ArrayRecord(dict(cohort.workload.new_student().state_dict()))
        strategy.start(grid, start, num_rounds=settings.rounds, timeout=24 * 3600, evaluate_fn=round_done)

    return app
