"""Server and clients in one process on this machine."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.experiment.grid import InProcessGrid
from fed_distill.logs import logged
from fed_distill.reporting.callbacks import Callback, CallbackList

if TYPE_CHECKING:
    from fed_distill.data.frames import DataFrame
    from fed_distill.reporting.result import Result


def run(experiment: Experiment, callbacks: Iterable[Callback] = (), *, table: "DataFrame | None" = None) -> "Result":
    """Run ``experiment`` on this machine and return its results.

    :param callbacks: callbacks in addition to the experiment's
    :param table: data frame of pandas, polars or Arrow for ``data.dataset = "table"``, in place of
        ``data.options.path``. It is written to the cache (``runtime.cache``) as Parquet, whose path the run's
        ``experiment.toml`` has.
    :raises FedDistillError: an error that the user can correct: a wrong name or option, unreadable data, a loss that is
        not finite, an existing run, merchants at real sites
    """
    check_merchants(experiment)
    with logged(experiment.runtime.logs, run=experiment.name):
        from fed_distill.data import DataReader  # imports torch; errors above are reported before
        from fed_distill.data.frames import with_table
        from fed_distill.experiment.run import run_experiment
        from fed_distill.experiment.teaching import cache_folder
        from fed_distill.merchant.app import build_app
        from fed_distill.reporting.result import Result

        if table is not None:
            experiment = with_table(experiment, table, cache_folder(experiment))
        reader = DataReader()  # server and merchants read the data once
        app = build_app(reader=reader)
        grid = InProcessGrid(app, experiment.to_run_config(), sites=experiment.runtime.sites)
        named = CallbackList.of(experiment)
        with CallbackList([named, *callbacks]) as followers:
            return Result(run_experiment(experiment, grid, followers, read=reader))


def check_merchants(experiment: Experiment) -> None:
    """Raise ConfigError if the merchants are at real sites."""
    if experiment.data.clients == "elsewhere":
        raise ConfigError(
            "data.clients = 'elsewhere' has no merchants to simulate: use `fed-distill sites run`, or set "
            "data.clients = 'here'"
        )
