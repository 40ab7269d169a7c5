"""Log a run: the callback ``log``, which replaces ``progress`` if logs are JSON."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_distill.config import Experiment
from fed_distill.logs import observed
from fed_distill.reporting.callbacks import Callback, scalars
from fed_distill.reporting.store import REPORT

_log = logging.getLogger(__name__)


class RunLog(Callback):
    """Logs stages, rounds with their metrics, messages and the end at level INFO, but not steps."""

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Log the federations and the folder."""
        self._folder = folder.absolute()
        federations = ", ".join(federation.title for federation in experiment.federations())
        _log.info("run started: %s; folder %s", federations, folder)

    def on_stage(self, title: str, total: int | None) -> None:
        """Log the title."""
        _log.info("%s", title)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Log the end of a round, with its metrics as facts."""
        with observed(federation=record["federation"], seed=record["seed"], round=record["round"]):
            text = "round %d of %d finished"
            _log.info(text, record["round"], record["rounds"], extra={"facts": scalars(record)})

    def on_message(self, text: str) -> None:
        """Log the message."""
        _log.info("%s", text)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Log the main results and the path of the report."""
        names = ("retention", "gap_closed", "seconds")
        facts = {name: summary[name] for name in names if summary.get(name) is not None}
        _log.info("run finished", extra={"facts": {"report": str(self._folder / REPORT), **facts}})
