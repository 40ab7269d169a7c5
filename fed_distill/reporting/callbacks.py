"""What follows a run while it happens: progress in the terminal, TensorBoard, Weights & Biases, metrics, or your own.

A callback sees what happens and changes nothing. It is named in ``runtime.callbacks``, or by import path, or
passed to ``run``; all of its methods are optional.
"""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
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
        "log": "fed_distill.reporting.run_log:RunLog",
        "prometheus": "fed_distill.reporting.run_metrics:RunMetrics",
    },
)


class Callback:
    """Base of all callbacks; every method does nothing until it is overridden."""

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Before anything is trained; ``folder`` is the run's. On resume it is called again."""

    def on_stage(self, title: str, total: int | None) -> None:
        """A stretch of work begins: ``total`` steps or rounds, None where that is not known."""

    def on_step(self, done: int, metrics: Mapping[str, float]) -> None:
        """``done`` steps of the stage are done; a metric ``steps`` is its total, where that became known only now."""

    def on_round(self, record: Mapping[str, Any]) -> None:
        """A federated round has ended; ``record`` is its line of ``metrics.jsonl``."""

    def on_message(self, text: str) -> None:
        """Something that the user should read."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The run has ended well and ``summary.json`` and the report are written."""

    def close(self) -> None:
        """Always called last, also when the run failed: let go of terminals, files and connections."""


class CallbackList(Callback):
    """Several callbacks as one, called in order. Use it with ``with``, so that all are closed when a run fails."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> Self:
        """Build callbacks by short name or import path; ConfigError for one that is not a ``Callback``."""
        return cls([_build(name) for name in names])

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """Those that the experiment names. Where its logs are JSON, ``log`` takes the place of ``progress``, so that
        nothing but JSON lines is on stderr."""
        names = experiment.runtime.callbacks
        if experiment.runtime.logs == "json":
            names = list(dict.fromkeys("log" if name == "progress" else name for name in names))
        return cls.from_names(names)

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_start(experiment, folder)

    def on_stage(self, title: str, total: int | None) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_stage(title, total)

    def on_step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_step(done, metrics)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_round(record)

    def on_message(self, text: str) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_message(text)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_end(summary)

    def close(self) -> None:
        """Close all, the last one first."""
        for callback in reversed(self.callbacks):
            callback.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorBoard(Callback):
    """Writes every round's scalars as TensorBoard events into ``tensorboard/FEDERATION/seed-N`` of the run's folder.

    A resumed run's rounds purge those that the killed one had written beyond its last checkpoint.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writers: dict[tuple[str, int], Any] = {}

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Remember where to write; files are made when there is something to write."""
        self._folder = folder / "tensorboard"

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Write the record's scalars at the record's round."""
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
            raise RuntimeError("on_round before on_start: there is no folder yet to write events into")
        key = (federation, seed)
        if key not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run asks for it

            folder = self._folder / _readable_name(federation) / f"seed-{seed}"
            self._writers[key] = SummaryWriter(str(folder), purge_step=round)
        return self._writers[key]


class WeightsAndBiases(Callback):
    """Follows a run in Weights & Biases, with the extra ``wandb``; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self) -> None:
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                "callback 'wandb' needs the package wandb: pip install fed-distill[wandb], "
                "or take it out of runtime.callbacks"
            ) from error
        self._run: Any = None

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Begin a run named after the experiment, or go on with it, its files in the run's folder."""
        self._run = self._wandb.init(
            project="fed-distill",
            name=experiment.name,
            id=f"{experiment.name}-{folder.stat().st_ino}",
            resume="allow",
            dir=str(folder),
            config=json.loads(experiment.model_dump_json()),
        )

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Log the record's scalars as ``FEDERATION/seed-N/NAME`` against the round of the same prefix."""
        prefix = f"{record['federation']}/seed-{record['seed']}"
        values = {f"{prefix}/{name}": value for name, value in scalars(record).items()}
        self._run.log({**values, f"{prefix}/round": record["round"]})

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Keep the main results in the run's summary."""
        shown = ("retention", "gap_closed", "student", "teacher", "bytes")
        self._run.summary.update({name: summary[name] for name in shown})

    def close(self) -> None:
        """End the run, so that nothing is left to send."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A record's measured numbers by path (``valid/auc``), what tells the record from others left out."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and (prefix or name not in ("seed", "round", "rounds")):
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
        raise ConfigError(f"callback {name!r} must be a class that is made without arguments: {error}") from error
    if not isinstance(callback, Callback):
        raise ConfigError(f"callback {name!r} must be a subclass of fed_distill.reporting.callbacks.Callback")
    return callback
