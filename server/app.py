"""The Flower ServerApp: runs the experiment in the run config over whatever grid it is given."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fed_distill.config import Experiment
from fed_distill.runtime.callbacks import CallbackList
from server.conduct import conduct

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment; the results are in its run folder."""
    experiment = Experiment.from_run_config(context.run_config)
    with CallbackList.from_names(experiment.runtime.callbacks) as callbacks:
        conduct(experiment, grid, callbacks)
