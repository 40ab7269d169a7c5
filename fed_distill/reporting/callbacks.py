"""Callbacks that follow a run: terminal progress, TensorBoard, Weights & Biases, MLflow, metrics, or a custom
one.

A callback observes a run and does not change it. It is named in ``runtime.callbacks`` by short name or import path, or
passed to ``run``; all of its methods are optional.
"""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.registry import Registry
from fed_distill.storage.files import as_file_name

CALLBACKS = Registry(
    "callback",
    {
        "progress": "fed_distill.reporting.terminal_progress:ProgressBars",
        "tensorboard": "fed_distill.reporting.callbacks:TensorBoard",
        "wandb": "fed_distill.reporting.callbacks:WeightsAndBiases",
        "mlflow": "fed_distill.reporting.mlflow_tracking:MLflowTracking",
        "log": "fed_distill.reporting.run_log:RunLog",
        "prometheus": "fed_distill.reporting.run_metrics:RunMetrics",
    },
)


class Callback:
    """Base class of callbacks; all methods do nothing by default."""

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Called before training; ``folder`` is the run's. It is called again on resume."""

    def on_stage(self, title: str, total: int | None) -> None:
        """Called when a stage begins, with ``total`` steps or rounds; None if unknown."""

    def on_step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Called after ``done`` steps of the stage; the metric ``steps`` is the total, if it was unknown before."""

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Called after a federated round; ``record`` is its line of ``metrics.jsonl``."""

    def on_message(self, text: str) -> None:
        """Called with a message for the user."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Called after a successful run, when ``summary.json`` and the report are written."""

    def close(self) -> None:
        """Called last in any case, also after a failure: release terminals, files and connections."""


class CallbackList(Callback):
    """Calls several callbacks in order. Use it with ``with``, so that all are closed if a run fails."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> Self:
        """Build callbacks by short name or import path; raise ConfigError if one is not a ``Callback``."""
        return cls([_build(name) for name in names])

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """Build the experiment's callbacks. With JSON logs, ``log`` replaces ``progress``, so that stderr contains JSON
        lines only."""
        names = experiment.runtime.callbacks
        if experiment.runtime.logs == "json":
            names = list(dict.fromkeys("log" if name == "progress" else name for name in names))
        return cls.from_names(names)

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Call it on all callbacks."""
        for callback in self.callbacks:
            callback.on_start(experiment, folder)

    def on_stage(self, title: str, total: int | None) -> None:
        """Call it on all callbacks."""
        for callback in self.callbacks:
            callback.on_stage(title, total)

    def on_step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Call it on all callbacks."""
        for callback in self.callbacks:
            callback.on_step(done, metrics)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Call it on all callbacks."""
        for callback in self.callbacks:
            callback.on_round(record)

    def on_message(self, text: str) -> None:
        """Call it on all callbacks."""
        for callback in self.callbacks:
            callback.on_message(text)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Call it on all callbacks."""
        for callback in self.callbacks:
            callback.on_end(summary)

    def close(self) -> None:
        """Close all callbacks in reverse order, also those after one that fails."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorBoard(Callback):
    """Writes every round's scalars as TensorBoard events into ``tensorboard/FEDERATION/seed-N`` of the run's folder.

    A resumed run purges events that the killed one wrote after its last checkpoint.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writers: dict[tuple[str, int], Any] = {}

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Store the folder; files are created on the first event."""
        self._folder = folder / "tensorboard"

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Write the record's scalars at its round."""
        writer = self._writer(record["federation"], record["seed"], record["round"])
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record["round"])
        writer.flush()

    def close(self) -> None:
        """Close all event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, federation: str, seed: int, round: int) -> Any:
        if self._folder is None:
            raise RuntimeError("on_round was called before on_start")
        key = (federation, seed)
        if key not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always used

            folder = self._folder / _readable_name(federation) / f"seed-{seed}"
            self._writers[key] = SummaryWriter(str(folder), purge_step=round)
        return self._writers[key]


class WeightsAndBiases(Callback):
    """Logs a run to Weights & Biases; requires the extra ``wandb``. ``WANDB_MODE=offline`` logs to local files only."""

    def __init__(self) -> None:
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                "callback 'wandb' requires the package wandb: pip install fed-distill[wandb], "
                "or remove it from runtime.callbacks"
            ) from error
        self._run: Any = None

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Start or resume a run named after the experiment, with its files in the run's folder."""
        self._run = self._wandb.init(
            project="fed-distill",
            name=experiment.name,
            id=f"{experiment.name}-{folder.stat().st_ino}",
            resume="allow",
            dir=str(folder),
            config=json.loads(experiment.model_dump_json()),
        )

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Log the record's scalars as ``FEDERATION/seed-N/NAME`` over the round with the same prefix."""
        prefix = f"{record['federation']}/seed-{record['seed']}"
        values = {f"{prefix}/{name}": value for name, value in scalars(record).items()}
        self._run.log({**values, f"{prefix}/round": record["round"]})

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Store the main results in the run's summary."""
        shown = ("retention", "gap_closed", "student", "teacher", "bytes")
        self._run.summary.update({name: summary[name] for name in shown})

    def close(self) -> None:
        """Finish the run and upload pending data."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return a record's metrics by ``prefix`` and path (``valid/auc``), without the fields that identify the record."""
    return _scalars({name: value for name, value in record.items() if name not in ("seed", "round", "rounds")}, prefix)


def _scalars(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            found[prefix + name] = float(value)
    return found


def _readable_name(title: str) -> str:
    """The folder of a federation as a reader finds it: its title, or ``as_file_name`` where that can be no folder."""
    return as_file_name(title) if title in (".", "..") or "%" in title or len(title.encode()) > 200 else title


def _build(name: str) -> Callback:
    factory = CALLBACKS.resolve(name)
    try:
        callback = factory()
    except TypeError as error:
        raise ConfigError(f"callback {name!r} must be a class with a constructor without arguments: {error}") from error
    if not isinstance(callback, Callback):
        raise ConfigError(f"callback {name!r} must be a subclass of fed_distill.reporting.callbacks.Callback")
    return callback
