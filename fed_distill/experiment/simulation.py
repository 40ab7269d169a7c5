"""Both sides on this machine: the server's conductor, and the clients' app in this process or in worker processes.

What takes long to import is imported after the workers have been started, so that they import at the same time.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.experiment.grid import InProcessGrid, LocalGrid
from fed_distill.logs import logged
from fed_distill.reporting.callbacks import Callback, CallbackList

if TYPE_CHECKING:
    from fed_distill.reporting.result import Result


def run(experiment: Experiment, callbacks: Iterable[Callback] = ()) -> "Result":
    """Run ``experiment`` on this machine and return its results.

    ``callbacks`` follow the run beside those that the experiment names. With ``runtime.workers`` above 1, a script that
    calls this needs ``if __name__ == "__main__":``, because worker processes import it. Raises FedDistillError for
    whatever the user can mend: a wrong name or option, unreadable data, a loss that is not finite, a run that exists
    already, merchants that are elsewhere.
    """
    check_merchants(experiment)
    with logged(experiment.runtime.logs, run=experiment.name), _grid(experiment) as grid:
        from fed_distill.experiment.run import run_experiment
        from fed_distill.reporting.result import Result

        named = CallbackList.of(experiment)
        with CallbackList([named, *callbacks]) as followers:
            return Result(run_experiment(experiment, grid, followers))


def check_merchants(experiment: Experiment) -> None:
    """ConfigError if the merchants are elsewhere, which leaves none to simulate."""
    if experiment.data.clients == "elsewhere":
        raise ConfigError(
            "data.clients = 'elsewhere' has its merchants at real sites, and none to simulate: run it there by "
            "`fed-distill sites run`, or take data.clients = 'here'"
        )


def _grid(experiment: Experiment) -> LocalGrid:
    """As many nodes as there are sites, and at least one for each worker."""
    runtime, run_config = experiment.runtime, experiment.to_run_config()
    if runtime.workers == 1:
        from fed_distill.merchant.app import build_app

        return InProcessGrid(build_app(), run_config, sites=runtime.sites)
    from fed_distill.experiment.workers import WorkerGrid

    nodes = max(runtime.sites, runtime.workers)
    return WorkerGrid("fed_distill.merchant.app:build_app", run_config, nodes, runtime.workers, runtime.threads)
