"""The Flower ServerApp: run the experiment in the run config on the given grid."""

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fed_distill.config import Experiment
from fed_distill.coordinator.released import NOISE_KEY
from fed_distill.errors import FedDistillError
from fed_distill.experiment.grid import is_simulated
from fed_distill.experiment.run import run_experiment
from fed_distill.logs import log_as, observed
from fed_distill.privacy.secret import read_secret
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.reporting.terminal import show
from fed_distill.storage.files import make_folder

app = ServerApp()
_log = logging.getLogger(__name__)


OPTIONS = " (under `flwr run`, --resume is runtime.resume = true in the run config, and --name NAME is name = 'NAME')"
"""Appended to errors that name an option of the command line, which does not exist here."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment; the results are in its run folder."""
    try:
        experiment = Experiment.from_run_config(context.run_config)
        log_as(experiment.runtime.logs)
        with observed(run=experiment.name), CallbackList.of(experiment) as callbacks:
            folder = run_experiment(experiment, grid, callbacks, "" if is_simulated(grid) else _secret(experiment))
    except FedDistillError as error:
        named = any(option in str(error) for option in ("--resume", "--name"))
        _log.error("%s%s", error, OPTIONS if named else "")  # Flower goes on with a traceback
        raise
    if experiment.runtime.logs == "text":
        show(folder.absolute())  # the server may have been started in another folder


def _secret(experiment: Experiment) -> str:
    """Return the server's secret in the folder of its runs; it is generated on first use."""
    make_folder(experiment.runtime.folder)
    return read_secret(experiment.runtime.folder / NOISE_KEY)
