"""Start a run across sites at the server of a deployment, and follow it to its end."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StreamLogsRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fed_distill.config import Experiment, RuntimeConfig
from fed_distill.deploy.admission import Admission
from fed_distill.deploy.bundle import bundle, bundle_hash
from fed_distill.deploy.folders import ADDRESS
from fed_distill.errors import ConfigError, TrainingError
from fed_distill.experiment.absolute import absolute

_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Deployed:
    """The server of the deployment in ``folder``; its control API is reachable from this machine only."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / ADDRESS).is_file():
            raise ConfigError(f"{self.folder} is not a deployment: create one with fed-distill sites init")

    @property
    def _admission(self) -> Admission:
        return Admission(self.folder)

    def planned(self, experiment: Experiment, sites: int | None) -> Experiment:
        """Return ``experiment`` for the server: it waits for ``sites`` (None: all admitted ones), and the default run
        folder is in the server's own."""
        wanted = len(self._admission.admitted()) if sites is None else sites
        if not wanted:
            raise ConfigError(f"no site has been admitted to {self.folder}: see its INSTRUCTIONS.md")
        own = (self.folder / "server" / "runs").absolute()
        usual = experiment.runtime.folder == RuntimeConfig().folder
        changes = {"runtime.sites": wanted, **({"runtime.folder": str(own)} if usual else {})}
        return absolute(experiment.with_changes(changes))

    def run(self, experiment: Experiment, write: Callable[[str], None]) -> Path:
        """Run ``experiment`` and return the run's folder; a KeyboardInterrupt does not stop the run, and its log begins
        with what does.

        :param experiment: result of ``planned``
        :param write: receives the run's log
        :raises ConfigError: the server cannot be reached or rejects the run
        :raises TrainingError: the run failed or was stopped
        """
        with self._client() as client:
            run = self._started(client, experiment)
            home = shlex.quote(str(self.folder / "server" / "flwr"))
            write(f"run {run}: an interrupt ends following it; FLWR_HOME={home} flwr stop {run} ends the run\n")
            with _explained(self._admission.control):
                for part in client.StreamLogs(StreamLogsRequest(run_id=run, after_timestamp=0.0)):
                    write(part.log_output)
                ended = self._end(client, run, write)
        folder = experiment.runtime.folder / experiment.name
        if ended.sub_status != SubStatus.COMPLETED:
            raise TrainingError(
                f"run {run} ended as {ended.sub_status}"
                f"{f' ({ended.details})' if ended.details else ''}; see its log above. If it had begun, --resume "
                f"continues it from {folder}"
            )
        return folder

    def _started(self, client: ControlHttpClient, experiment: Experiment) -> int:
        fab = Fab(hash_str=bundle_hash(), content=bundle())
        settings = user_config_to_proto(experiment.to_run_config())
        with _explained(self._admission.control):
            return int(client.StartRun(StartRunRequest(fab=fab, override_config=settings)).run_id)

    def _end(self, client: ControlHttpClient, run: int, write: Callable[[str], None]) -> "Ended":
        """Return how a run ended. Its log may end earlier: the server detects a killed process with a delay."""
        told = False
        while (status := client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status).status != Status.FINISHED:
            if not told:
                write("The log has ended before the run: waiting for the server to report its end.\n")
            told = True
            time.sleep(_POLL_SECONDS)
        return Ended(status.sub_status, status.details)

    @contextmanager
    def _client(self) -> Iterator[ControlHttpClient]:
        client = ControlHttpClient.from_server_address(
            self._admission.control,
            insecure=False,
            root_certificates=str(self._admission.authority),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fed-distill")],
        )
        try:
            yield client
        finally:
            client.close()


@dataclass(frozen=True)
class Ended:
    """How a run ended: Flower's sub-status and details, if any."""

    sub_status: str
    details: str


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Raise ConfigError for an error of the server, or if it does not answer."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        known = FlowerError.from_json(error.response.text)
        told = known.public_details or str(known) if known else error.response.text.strip() or str(error)
        raise ConfigError(f"the server at {address} rejects this: {told}") from error
    except httpx.HTTPError as error:
        raise ConfigError(
            f"the server at {address} cannot be reached ({error}): start it on this machine with server/start.sh"
        ) from error
