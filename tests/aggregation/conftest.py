"""Merchants that sent an update of a table in part, and the whole weights that it leads to, by a plain loop."""

import gc

import numpy as np
import pytest
import torch

from fed_distill.payloads.student_update import StudentUpdate
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
                "table": torch.randn(len(rows), 2, generator=draw),
                "bias": torch.randn(3, generator=draw),
                "scale": torch.randn((), generator=draw),
            }
            counts = torch.randint(1, 9, rows.shape, generator=draw)
            made.append(
                Uplink(f"m{number}", EXAMPLES[number], (StudentUpdate(arrays, {"table": rows}, {"table": counts}),))
            )
        return made

    return make


@pytest.fixture
def dense(current):
    """A function: the whole weights that each merchant's update of ``start``, or ``current``, leads to, as float64
    numpy arrays."""

    def whole(uplinks, start=current):
        found = []
        for uplink in uplinks:
            sent = uplink.need(StudentUpdate)
            weights = {name: start[name].numpy().astype(np.float64) for name in sent.arrays}
            for name, change in sent.arrays.items():
                if name == "table":
                    for place, row in enumerate(sent.rows["table"].tolist()):
                        weights["table"][row] += change.numpy()[place]
                else:
                    weights[name] = weights[name] + change.numpy()
            found.append(weights)
        return found

    return whole
