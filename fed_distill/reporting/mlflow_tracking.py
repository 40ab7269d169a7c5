"""MLflow tracking of a run: the callback ``mlflow``.

It logs what the callback ``wandb`` does, the configuration, each round's scalars and the final results, and the
complete experiment as an artifact. No student, report or figure of a single merchant is logged.
"""

import importlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from fed_distill import __version__
from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.reporting.callbacks import Callback, scalars
from fed_distill.reporting.store import EXPERIMENT
from fed_distill.storage.files import write_atomic

FILE = "mlflow.json"
"""File in a run's folder that says which MLflow run continues when it is resumed."""
RESULTS = ("accuracy", "macro_f1", "auc", "ndcg@10", "mrr@10", "recall@20", "qini", "retention", "gap_closed")
"""Results of a control or federation that are logged at the end, where the task has them."""
_BATCH = 100
"""Parameters in one request: MLflow's limit."""
_LONGEST = 150
"""Maximum length of a federation's name, with room for a seed and a metric in MLflow's 250 characters."""
_NOT_IN_KEYS = re.compile(r"[^/\w.\- :]")


class MLflowTracking(Callback):
    """Logs a run to MLflow; requires the extra ``mlflow``.

    The server or database is MLflow's own choice, by ``MLFLOW_TRACKING_URI``; the MLflow experiment is called
    ``fed-distill`` unless ``MLFLOW_EXPERIMENT_NAME`` is set. A resumed run continues its MLflow run, and a round that
    was logged before is not logged again. MLflow's usage statistics are off unless ``MLFLOW_DISABLE_TELEMETRY`` is set.
    """

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read on import
        try:
            self._mlflow = importlib.import_module("mlflow")
            self._entities = importlib.import_module("mlflow.entities")
            self._error: type[Exception] = importlib.import_module("mlflow.exceptions").MlflowException
        except ImportError as error:
            raise ConfigError(
                "callback 'mlflow' requires the package mlflow-skinny: pip install fed-distill[mlflow], "
                "or remove it from runtime.callbacks"
            ) from error
        self._uri = self._mlflow.get_tracking_uri()
        self._place = without_secrets(self._uri, self._uri)
        self._client: Any = None
        self._run = ""
        self._logged: dict[tuple[str, int], int] = {}
        self._status = "FAILED"

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Start or continue the MLflow run.

        :raises ConfigError: MLflow cannot be reached, two federations would have the same metrics, or MLflow does not
            allow the name of one
        :raises CheckpointError: MLflow does not have the run that is to be continued
        """
        prefixes = [_key(name) for name in experiment.arms()]
        if double := next((name for name in prefixes if prefixes.count(name) > 1), None):
            raise ConfigError(
                f"callback 'mlflow': two federations are called {double!r} in MLflow, whose names have letters, "
                "digits and ./:_- only: give one of them another label"
            )
        if wrong := next((name for name in prefixes if name in (".", "..") or len(name) > _LONGEST), None):
            raise ConfigError(
                f"callback 'mlflow': MLflow allows no metrics of a federation that is called {wrong!r}: give it "
                f"another label, of at most {_LONGEST} characters"
            )
        with self._reported():
            self._client = self._mlflow.MlflowClient()
            if (folder / FILE).is_file():
                self._continue(folder / FILE)
            else:
                self._create(experiment, folder)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Log the record's scalars as ``FEDERATION/seed-N/NAME``; the step is the round."""
        federation, seed, number = record["federation"], record["seed"], record["round"]
        values = scalars(record, f"{federation}/seed-{seed}/")
        with self._reported():
            if (federation, seed) not in self._logged:
                known = self._client.get_metric_history(self._run, _key(f"{federation}/seed-{seed}/seconds"))
                self._logged[federation, seed] = max((one.step for one in known), default=0)
            if number > self._logged[federation, seed]:
                self._log(values, number)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Log the results of the teacher, the controls and the federations as ``NAME/final/METRIC``; a federation that
        is called like another row is ``federation:NAME``."""
        rows = {"teacher": summary["teacher"], **summary["controls"]}
        rows |= {f"federation:{name}" if name in rows else name: row for name, row in summary["federations"].items()}
        values = {
            f"{name}/final/{key}": float(row[key])
            for name, row in rows.items()
            for key in RESULTS
            if row.get(key) is not None
        }
        with self._reported():
            self._log(values, 0)
        self._status = "FINISHED"

    def close(self) -> None:
        """End the MLflow run, as failed unless the run has ended."""
        if self._run:
            with self._reported():
                self._client.set_terminated(self._run, status=self._status)
            self._run = ""

    def _create(self, experiment: Experiment, folder: Path) -> None:
        """Start an MLflow run; its identity is stored last, so that a run without its parameters is not continued."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fed-distill"
        there = self._client.get_experiment_by_name(name)
        place = there.experiment_id if there else self._client.create_experiment(name)
        tags = {
            "fed_distill.version": __version__,
            "fed_distill.dataset": experiment.data.dataset,
            "fed_distill.task": experiment.data.task,
            "fed_distill.method": experiment.federation.method,
            "fed_distill.privacy_unit": experiment.privacy.unit,
        }
        run = self._client.create_run(place, run_name=experiment.name, tags=tags)
        found = [self._entities.Param(key, value) for key, value in parameters(experiment).items()]
        for first in range(0, len(found), _BATCH):
            self._client.log_batch(run.info.run_id, params=found[first : first + _BATCH])
        self._client.log_artifact(run.info.run_id, str(folder / EXPERIMENT))
        write_atomic(folder / FILE, json.dumps({"run_id": run.info.run_id, "tracking_uri": self._place}) + "\n")
        self._run = run.info.run_id

    def _continue(self, path: Path) -> None:
        stored = json.loads(path.read_text(encoding="utf-8"))
        try:
            self._client.update_run(stored["run_id"], status="RUNNING")
        except self._error as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise CheckpointError(
                f"{path}: MLflow at {self._place} has no run {stored['run_id']}, which was logged to "
                f"{stored['tracking_uri']}: set MLFLOW_TRACKING_URI to that, or delete the file to start another one"
            ) from error
        self._run = stored["run_id"]

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_key(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn MLflow's errors into ConfigError, with the place and what to do."""
        try:
            yield
        except (self._error, ImportError) as error:  # the latter where a local database lacks its packages
            told = without_secrets(str(error), self._uri)
            raise ConfigError(
                f"callback 'mlflow' cannot log to {self._place}: {told}: correct MLFLOW_TRACKING_URI and continue with "
                "--resume, or remove mlflow from runtime.callbacks"
            ) from error


def parameters(table: BaseModel, prefix: str = "") -> dict[str, str]:
    """Return the keys of a configuration by dotted path: texts as they are, other values as JSON."""
    found: dict[str, str] = {}
    plain = table.model_dump(mode="json")
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            found |= parameters(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = plain[name] if isinstance(plain[name], str) else json.dumps(plain[name])
    return found


def without_secrets(text: str, uri: str) -> str:
    """Return ``text`` without what can be secret in ``uri``: name and password of the user, and the query."""
    parts = urlsplit(uri)
    user, at, _ = parts.netloc.rpartition("@")
    shown = text.replace(user + at, "") if at else text
    for secret in filter(None, (parts.query, parts.password)):
        shown = shown.replace(secret, "***")
    return shown


def _key(name: str) -> str:
    """Return a metric's name as MLflow allows it, with ``_at_`` for ``@`` and an underscore for other characters."""
    return _NOT_IN_KEYS.sub("_", name.replace("@", "_at_"))
