"""Randomness from (run seed, merchant, round, purpose), never from global state.

Every draw in a run comes from a generator made here, so the result does not depend on the runtime, on the
order of merchants or on what else the process drew before.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit seed from the run's seed and whatever tells this draw from all others."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *parts: str | int) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive(seed, *parts))


def torch_stream(seed: int, *parts: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose; another device draws other numbers."""
    return torch.Generator(device).manual_seed(derive(seed, *parts))


@contextmanager
def scope(seed: int, *parts: str | int) -> Iterator[None]:
    """Give code that can only draw from torch's global state (initialisation, dropout) a stream of its own.

    The global state is put back afterwards, as if nothing had been drawn.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *parts))
        yield
