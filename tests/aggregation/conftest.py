"""Merchants that sent a table in part, and the same uplinks with the whole table, completed by a plain loop."""

import gc

import numpy as np
import pytest
import torch

from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.messages import Uplink

ROWS = ([0, 2, 3], [0, 3, 5], [0, 1, 3], [0, 4], [0, 2, 5], [0, 3], [0, 1, 5], [0, 2, 4])
EXAMPLES = (10, 30, 5, 20, 35, 1, 7, 12)


@pytest.fixture(scope="module", autouse=True)
def fast_collection():
    """Flower's Bulyan collects garbage for every array: keep it from walking over all that is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def current():
    draw = torch.Generator().manual_seed(1)
    return {
        "table": torch.randn(6, 2, generator=draw),
        "bias": torch.randn(3, generator=draw),
        "scale": torch.randn((), generator=draw),
        "steps": torch.tensor([3, 9]),
    }


@pytest.fixture
def make_uplinks(current):
    """A function: uplinks of the first ``size`` merchants, whose updates are drawn from ``seed``."""

    def make(size, seed=0):
        draw = torch.Generator().manual_seed(seed)
        made = []
        for number in range(size):
            rows = torch.tensor(ROWS[number])
            arrays = {
                "table": current["table"][rows] + torch.randn(len(rows), 2, generator=draw),
                "bias": current["bias"] + torch.randn(3, generator=draw),
                "scale": current["scale"] + torch.randn((), generator=draw),
                "steps": current["steps"] + 1,
            }
            counts = torch.randint(1, 9, rows.shape, generator=draw)
            made.append(
                Uplink(f"m{number}", EXAMPLES[number], (StudentWeights(arrays, {"table": rows}, {"table": counts}),))
            )
        return made

    return make


@pytest.fixture
def dense(current):
    """A function: each merchant's whole weights as float64 numpy arrays, tables completed row by row."""

    def whole(uplinks):
        found = []
        for uplink in uplinks:
            weights = {
                name: value.numpy().astype(np.float64) for name, value in uplink.need(StudentWeights).arrays.items()
            }
            table = current["table"].numpy().astype(np.float64).copy()
            for place, row in enumerate(uplink.need(StudentWeights).rows["table"].tolist()):
                table[row] = weights["table"][place]
            found.append({**weights, "table": table})
        return found

    return whole
