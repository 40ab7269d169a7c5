"""Both sides in this process: the server's conductor over an in-process grid of the clients' app."""

from collections.abc import Iterable

from clients.app import build_app
from fed_distill.config import Experiment
from fed_distill.results.result import Result
from fed_distill.runtime.callbacks import Callback, CallbackList
from fed_distill.runtime.grid import InProcessGrid
from server.conduct import conduct


def run(experiment: Experiment, callbacks: Iterable[Callback] = ()) -> Result:
    """Run ``experiment`` in this process and return its results.

    ``callbacks`` follow the run beside those that the experiment names. Raises FedDistillError for whatever the
    user can mend: a wrong name or option, unreadable data, a loss that is not finite, a run that exists already.
    """
    named = CallbackList.from_names(experiment.runtime.callbacks)
    grid = InProcessGrid(build_app(), experiment.to_run_config(), sites=experiment.runtime.sites)
    with CallbackList([named, *callbacks]) as followers:
        return Result(conduct(experiment, grid, followers))
