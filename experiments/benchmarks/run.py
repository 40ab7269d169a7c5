"""Measure what a federated round costs: every contender in its own process, one after another, taking turns.

``python experiments/benchmarks/run.py --student bert-mini --merchants 50`` prints a table, and adds a JSON line for
each attempt to ``results.jsonl`` in the output folder, from which ``chart.py`` draws.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.benchmarks.ceiling import step_flops
from experiments.benchmarks.contenders import CONTENDERS, Contender, Settings
from experiments.benchmarks.results import FAILED, NOT_INSTALLED, OK, Attempt, append, table
from experiments.benchmarks.watch import Watch
from experiments.benchmarks.workload import Cohort, Workload
from fed_distill.errors import FedDistillError
from fed_distill.models import STUDENTS

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0, or 1 if a contender failed, or 2 for a wrong option."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    failed = False
    for merchants in options.merchants:
        try:
            workload = Workload(
                options.student,
                merchants,
                options.texts,
                options.length,
                options.uneven,
                options.seed,
                options.batch_size,
            )
            attempts = measure(workload, options)
        except FedDistillError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"\n{_heading(workload, options)}\n\n{table(attempts)}", flush=True)
        failed |= any(attempt.status == FAILED for attempt in attempts)
    print(f"\nMeasurements and logs: {options.output}")
    return int(failed)


def measure(workload: Workload, options: argparse.Namespace) -> list[Attempt]:
    """All attempts at one workload, each written to the output folder as soon as it is done."""
    chosen = [contender for contender in CONTENDERS if contender.name in options.contenders]
    settings = Settings(options.rounds + 1, options.threads, options.device)
    attempts: list[Attempt] = []
    with tempfile.TemporaryDirectory(prefix="bench") as scratch:
        folder = Path(scratch)
        workload.prepare(folder / "data")
        common: dict[str, Any] = {"workload": asdict(workload), "steps": workload.steps()}
        common["step_flops"] = step_flops(Cohort.open(folder / "data"))
        ready: list[Contender] = []
        for contender in chosen:
            if missing := contender.missing(_python(contender, options)):
                detail = f"no module {missing[0]}: {contender.install}"
                attempts.append(Attempt(contender.name, **common, status=NOT_INSTALLED, detail=detail))
            else:
                ready.append(contender)
        for number in range(max(options.repeats, options.tries)):
            for contender in ready:
                if not _wanted(contender, attempts, options.repeats):
                    continue
                print(f"{contender.title}, attempt {number + 1}", file=sys.stderr, flush=True)
                outcome = _attempt(contender, folder, settings, options)
                attempts.append(Attempt(contender.name, **common, **outcome))
                append(options.output / "results.jsonl", attempts[-1])
    return attempts


def _wanted(contender: Contender, attempts: Sequence[Attempt], repeats: int) -> bool:
    """Whether a contender still lacks attempts that no other process disturbed."""
    good = [each for each in attempts if each.contender == contender.name and not each.disturbed]
    return len(good) < repeats


def _attempt(contender: Contender, folder: Path, settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    log = options.output / f"{contender.name}.log"
    command = [_python(contender, options), "-m", "experiments.benchmarks.attempt", contender.name]
    command += [str(folder / "data"), json.dumps(asdict(settings)), str(result)]
    outcome: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    with log.open("w", encoding="utf-8") as output:
        launched = time.monotonic()
        process = subprocess.Popen(
            command, env=_environment(settings, folder), stdout=output, stderr=output, start_new_session=True
        )
        watch = Watch(process.pid)
        try:
            status = process.wait(options.timeout)
        except subprocess.TimeoutExpired:
            return {**outcome, "status": FAILED, "detail": f"not done after {options.timeout:g} s; see {log}"}
        finally:
            _end(process)
            watch.close()
    if status or not result.exists():
        last = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {**outcome, "status": FAILED, "detail": f"{last[-1] if last else f'exit code {status}'}; see {log}"}
    return {**outcome, "status": OK, **_measured(json.loads(result.read_text(encoding="utf-8")), launched, watch)}


def _measured(raw: dict[str, Any], launched: float, watch: Watch) -> dict[str, Any]:
    """The fields of ``Attempt`` from what the process wrote; the first round only warms up."""
    ends: list[float] = raw.pop("ends")
    rounds = tuple(end - start for start, end in pairwise(ends))
    on_device = raw.pop("device_peak")
    typical = sorted(rounds)[len(rounds) // 2]
    return {
        **raw,
        "round_seconds": rounds,
        "startup_seconds": max(0.0, ends[0] - launched - typical - (raw["compile_seconds"] or 0.0)),
        "others": watch.others(ends[0], ends[-1]),
        "peak_bytes": watch.peak(ends[-1]) if on_device is None else on_device,
    }


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The same for every contender: its threads, nothing sent anywhere, and no state left in the user's home."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": str(settings.threads),
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of an attempt: it leads a process group of its own, which Ray's servers are in."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _python(contender: Contender, options: argparse.Namespace) -> str:
    return str(options.pfl_python) if contender.own_python else sys.executable


def _heading(workload: Workload, options: argparse.Namespace) -> str:
    sizes = f"{workload.texts} texts each" if not workload.uneven else f"{workload.texts} texts on average, uneven"
    return (
        f"{workload.student}: {workload.merchants} merchants, {sizes}, {workload.length} tokens, batches of "
        f"{workload.batch_size}; {options.threads} threads, {options.device}"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    known = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(
        description="What a federated round costs, beside other people's simulators.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--student", default="bert-mini", choices=list(STUDENTS), help="what is trained")
    add("--merchants", type=_positive, nargs="+", default=[50], help="merchants in a round; one table for each number")
    add("--texts", type=_positive, default=64, help="examples of a merchant, on average")
    add("--length", type=_positive, default=32, help="tokens of an example, for students that read tokens")
    add("--uneven", action="store_true", help="merchants' sizes of a heavy tail, with the same sum")
    add("--batch-size", type=_positive, default=16, help="examples in a step")
    add("--seed", type=int, default=0, help="another seed is another workload")
    add("--contenders", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    add("--rounds", type=_positive, default=2, help="timed rounds of an attempt, after one that is not timed")
    add("--repeats", type=_positive, default=3, help="undisturbed attempts of each contender; they take turns")
    add("--tries", type=int, default=0, help="attempts at most, while other processes disturb some; or REPEATS")
    add("--threads", type=_positive, default=os.cpu_count() or 1, help="CPU cores for a contender")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where students are trained")
    add("--timeout", type=float, default=3600.0, help="seconds after which an attempt is given up")
    add("--pfl-python", type=Path, default=Path(sys.executable), help="interpreter that has pfl, if not this one")
    add("--output", type=Path, default=Path("runs/benchmarks"), help="folder for measurements and logs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
