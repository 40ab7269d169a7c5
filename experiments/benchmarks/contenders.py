"""Who takes part: a name, the function that trains, and what it needs to be installed.

A contender is a function ``train(cohort, settings, clock, **options)`` that trains ``settings.rounds`` federated
rounds and calls ``clock.round_done`` at the end of each. It runs in a process of its own.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.benchmarks.workload import Cohort, Weights


@dataclass(frozen=True)
class Settings:
    """How a contender's process runs.

    rounds: all rounds, the first of which is for warming up. threads: CPU cores it may use. device: torch's name.
    """

    rounds: int
    threads: int
    device: str = "cpu"


class Clock:
    """Notes when rounds end, what was compiled and how much GPU memory was used."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._weights: Callable[[], Weights] | None = None
        self.ends: list[float] = []
        self.compile_seconds: float | None = None
        self.device_peaks: dict[int, int] = {}

    def round_done(self, weights: "Callable[[], Weights]") -> None:
        """A round has ended; ``weights`` gives the merged state dict, and is called only after the last round."""
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()
        self.ends.append(time.monotonic())
        self._weights = weights

    def compiled(self, seconds: float) -> None:
        """So many seconds of the warm-up went into compiling; they add up."""
        self.compile_seconds = (self.compile_seconds or 0.0) + seconds

    def device_memory(self, peak: int, process: int | None = None) -> None:
        """A process (this one if None) has allocated at most ``peak`` bytes of GPU memory so far."""
        process = os.getpid() if process is None else process
        self.device_peaks[process] = max(peak, self.device_peaks.get(process, 0))

    def weights(self) -> "Weights":
        """The merged weights of the last round."""
        if self._weights is None:
            raise RuntimeError("the contender ended without a single round")
        return self._weights()


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    train: ``module:function``. needs: modules that must be importable. install: what to do where they are not.
    private: whether it trains with differential privacy. own_python: whether it runs in the interpreter given by
    ``--pfl-python``. options: keyword arguments for the function.
    """

    name: str
    title: str
    train: str
    needs: tuple[str, ...] = ()
    install: str = ""
    private: bool = False
    own_python: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def function(self) -> "Callable[[Cohort, Settings, Clock], None]":
        """Import and return the training function; its options are still to be passed."""
        module, name = self.train.split(":")
        function: Callable[[Cohort, Settings, Clock], None] = getattr(import_module(module), name)
        return function

    def missing(self, python: str) -> list[str]:
        """Which of ``needs`` the interpreter ``python`` cannot find."""
        look = "import sys, importlib.util as i; print(*[n for n in sys.argv[1:] if i.find_spec(n) is None])"
        found = subprocess.run([python, "-c", look, *self.needs], capture_output=True, text=True, check=True)
        return found.stdout.split()


_HERE = "experiments.benchmarks"

CONTENDERS = (
    Contender("plain", "plain PyTorch loop", f"{_HERE}.plain:train"),
    Contender("sequential", "fed-distill, one after another", f"{_HERE}.ours:train", options={"trainer": "sequential"}),
    Contender("cohort", "fed-distill, cohorts", f"{_HERE}.ours:train"),
    Contender("bfloat16", "fed-distill, cohorts in bfloat16", f"{_HERE}.ours:train", options={"precision": "bfloat16"}),
    Contender(
        "pfl",
        "Apple pfl",
        f"{_HERE}.pfl_research:train",
        needs=("pfl", "torch", "transformers"),
        install="pip install 'fed-distill[bench]', or --pfl-python with an interpreter that has it",
        own_python=True,
    ),
    Contender(
        "flower",
        "Flower + Ray",
        f"{_HERE}.flower_ray:train",
        needs=("flwr", "ray"),
        install="pip install 'fed-distill[ray]'",
    ),
    Contender(
        "opacus",
        "sequential + Opacus hooks (DP)",
        f"{_HERE}.opacus_hooks:train",
        needs=("opacus",),
        install="pip install opacus",
        private=True,
    ),
    Contender(
        "opacus-ghost",
        "sequential + Opacus ghost (DP)",
        f"{_HERE}.opacus_hooks:train",
        needs=("opacus",),
        install="pip install opacus",
        private=True,
        options={"mode": "ghost"},
    ),
    Contender(
        "cohort-dp",
        "fed-distill, cohorts (DP)",
        f"{_HERE}.ours:train",
        private=True,
        options={"private": True, "submodel": False},
    ),
    Contender(
        "cohort-dp-submodel",
        "fed-distill, cohorts, public rows only (DP)",
        f"{_HERE}.ours:train",
        private=True,
        options={"private": True},
    ),
)
"""In the order of the table; the first is what the others are compared with."""
