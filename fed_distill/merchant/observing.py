"""Logs and metrics of each message from the server, for the site's staff only.

Sites of a simulation log as the run does, and have no metrics of their own.
"""

import logging
import time
from collections.abc import Callable

from flwr.app import Context, Message

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError, NotAllowed, TrainingError, UplinkRejected
from fed_distill.logs import log_as, observed
from fed_distill.merchant.manifest import Manifest
from fed_distill.merchant.metrics import SiteMetrics, Tally

Answering = Callable[[Message, Context], Message]
REPORTED = (NotAllowed, UplinkRejected)
"""Errors with a text about the request and the site's rules only, which the server may see."""

_log = logging.getLogger(__name__)


def metrics_of(manifest: Manifest) -> SiteMetrics:
    """Return the metrics of a site, in its state folder."""
    folder = manifest.folder / manifest.state / "metrics"
    return SiteMetrics(folder, manifest.name, manifest.ledgers, lambda name: manifest.limits.of(name).max_epsilon)


def hidden(error: Exception) -> TrainingError:
    """Log an error of a real site, and return one with its type only: Flower sends the text, which could contain a path
    or a row."""
    _log.error("a message failed", exc_info=error)
    return TrainingError(f"{type(error).__name__}; see the site's log and `fed-distill sites check`")


def watched(message: Message, context: Context, tally: Tally, manifest: Manifest | None, answer: Answering) -> Message:
    """Answer a message, with logs and metrics.

    The server receives errors of a real site as ``hidden`` returns them, except those in ``REPORTED``. Failures to
    write metrics are logged and do not affect the answer.

    :param tally: counts of the site, which are increased
    :param manifest: the site's settings; None for a site of a simulation
    """
    if manifest is None:
        experiment = Experiment.from_run_config(context.run_config)
        run = experiment.name
        log_as(experiment.runtime.logs)
        site = str(context.node_config.get("partition-id", context.node_id))
    else:
        log_as(manifest.observing.logs, private=True)
        run, site = _run_name(context), manifest.name
    began = time.perf_counter()
    with observed(run=run, site=site):
        _log.info("received a message of type %s", message.metadata.message_type)
        try:
            return answer(message, context)
        except Exception as error:
            tally.errors += 1
            if manifest is None or isinstance(error, REPORTED):
                raise
            raise hidden(error) from None
        finally:
            tally.messages += 1
            tally.seconds += time.perf_counter() - began
            if manifest is not None and manifest.observing.metrics:
                _count(metrics_of(manifest), tally)


def _count(metrics: SiteMetrics, tally: Tally) -> None:
    """Write ``tally`` and reset it; it is kept if that fails."""
    try:
        metrics.add(tally)
        tally.taken()
    except Exception as error:  # a failure of metrics must not affect the answer
        _log.error("metrics could not be written to %s: %s: %s", metrics.folder, type(error).__name__, error)


def _run_name(context: Context) -> str:
    """Return the name of the server's run; empty if its experiment is invalid, which the app refuses."""
    try:
        return Experiment.from_run_config(context.run_config).name
    except ConfigError:
        return ""
