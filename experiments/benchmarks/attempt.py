"""One contender in a process of its own: clean memory, clean threads, nothing imported that it does not need.

``python -m experiments.benchmarks.attempt`` is started by ``run.py`` and writes its measurements as one JSON file.
"""

import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.benchmarks.contenders import CONTENDERS, Clock, Settings


def attempt(name: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """Let the contender ``name`` train the workload in ``folder``; see ``results.Attempt`` for what is returned."""
    import torch

    torch.set_num_threads(settings.threads)
    from experiments.benchmarks.ceiling import matrix_product_rate
    from experiments.benchmarks.workload import Cohort

    contender = next(known for known in CONTENDERS if known.name == name)
    cohort = Cohort.open(folder)
    clock = Clock(settings.device)
    contender.function()(cohort, settings, clock, **contender.options)
    return {
        "ends": clock.ends,
        "compile_seconds": clock.compile_seconds,
        "device_peak": sum(clock.device_peaks.values()) or None,
        "ceiling": matrix_product_rate(settings.device),
        "loss_before": cohort.mean_loss(cohort.workload.new_student().state_dict()),
        "loss_after": cohort.mean_loss(clock.weights()),
        "settings": asdict(settings),
        "machine": {
            "device": torch.cuda.get_device_name() if settings.device != "cpu" else _processor(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    _name, _folder, _settings, _result = sys.argv[1:]
    measured = attempt(_name, Path(_folder), Settings(**json.loads(_settings)))
    Path(_result).write_text(json.dumps(measured), encoding="utf-8")
