"""What the machine could do at best, and what a step asks of it: the two sides of "share of the ceiling".

The ceiling is measured, not looked up: the best rate of one large float32 matrix product in the contender's own
process, on its threads. Counted are the matrix products of a plain training step, so that a contender gains nothing by
doing arithmetic that the plain loop need not do.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.workload import Cohort

SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices that are multiplied, by kind of device."""


def matrix_product_rate(device: str, seconds: float = 1.0) -> float:
    """Best floating-point operations per second of float32 products on ``device``, tried for so many seconds."""
    side = SIDE["cpu" if device == "cpu" else "cuda"]
    left, right = torch.full((2, side, side), 0.5, device=device)
    end = time.perf_counter() + seconds
    best = float("inf")
    while time.perf_counter() < end or best == float("inf"):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def step_flops(cohort: Cohort) -> int:
    """Floating-point operations in the matrix products of one plain training step on a full batch.

    Counted on the CPU without oneDNN, whose fused LSTM would hide its products from the counter.
    """
    student, batch_size = cohort.workload.new_student(), cohort.workload.batch_size
    shop = max(cohort.shops, key=len)
    index = torch.arange(batch_size) % len(shop)
    with _without_onednn(), FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(student(student.collate(shop.encoded, index)).logits, shop.labels[index])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return int(counter.get_total_flops())


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of Intel GPUs whenever a oneDNN flag is set
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
