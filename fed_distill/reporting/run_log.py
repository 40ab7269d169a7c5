"""A run as log lines: the callback ``log``, which takes the place of ``progress`` where logs are JSON."""

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
    """Logs stages, rounds with their figures, messages and the end; not steps, which are many. All at level INFO."""

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Say what is run and where it is kept."""
        self._folder = folder.absolute()
        federations = ", ".join(federation.title for federation in experiment.federations())
        _log.info("the run begins: %s; kept in %s", federations, folder)

    def on_stage(self, title: str, total: int | None) -> None:
        """Say what begins."""
        _log.info("%s", title)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Say that a round has ended, with the record's numbers as facts."""
        with observed(federation=record["federation"], seed=record["seed"], round=record["round"]):
            text = "round %d of %d has ended"
            _log.info(text, record["round"], record["rounds"], extra={"facts": scalars(record)})

    def on_message(self, text: str) -> None:
        """Pass it on."""
        _log.info("%s", text)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Say how the run ended, and where its report is."""
        names = ("retention", "gap_closed", "seconds")
        facts = {name: summary[name] for name in names if summary.get(name) is not None}
        _log.info("the run has ended", extra={"facts": {"report": str(self._folder / REPORT), **facts}})
