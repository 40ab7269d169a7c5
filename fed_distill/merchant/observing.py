"""What a site tells its own people of each message from the server: log lines in its own style, and its metrics.

The server learns nothing of it. A simulation's sites log as the run does, and have no metrics of their own.
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
TOLD = (NotAllowed, UplinkRejected)
"""Errors whose text says nothing but of the request and the site's rules."""

_log = logging.getLogger(__name__)


def metrics_of(manifest: Manifest) -> SiteMetrics:
    """Where a site keeps its metrics."""
    folder = manifest.folder / manifest.state / "metrics"
    return SiteMetrics(folder, manifest.name, manifest.ledgers, lambda name: manifest.limits.of(name).max_epsilon)


def hidden(error: Exception) -> TrainingError:
    """What the server is told of an error at a real site: its kind, since Flower sends the whole text, which may quote
    a path or a row. The site's log has the rest."""
    _log.error("a message ended by an error", exc_info=error)
    return TrainingError(f"{type(error).__name__}; the site's log and `fed-distill sites check` say more")


def watched(message: Message, context: Context, tally: Tally, manifest: Manifest | None, answer: Answering) -> Message:
    """The answer, logged and counted as ``manifest`` says; None: a simulation's site. ``tally``: grows meanwhile.

    Of an error at a real site the server is told as ``hidden`` says, but for one of its own request (``TOLD``). Metrics
    that cannot be written are an error in the log and change no answer.
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
        _log.info("asked for %s", message.metadata.message_type)
        try:
            return answer(message, context)
        except Exception as error:
            tally.errors += 1
            if manifest is None or isinstance(error, TOLD):
                raise
            raise hidden(error) from None
        finally:
            tally.messages += 1
            tally.seconds += time.perf_counter() - began
            if manifest is not None and manifest.observing.metrics:
                _count(metrics_of(manifest), tally)


def _count(metrics: SiteMetrics, tally: Tally) -> None:
    """Add ``tally``, which is kept for the next time if that fails."""
    try:
        metrics.add(tally)
        tally.taken()
    except Exception as error:  # whatever is wrong with metrics may cost no answer
        _log.error("metrics could not be written to %s: %s: %s", metrics.folder, type(error).__name__, error)


def _run_name(context: Context) -> str:
    """The run that a server names; nothing where its experiment cannot be read, which the app refuses."""
    try:
        return Experiment.from_run_config(context.run_config).name
    except ConfigError:
        return ""
