"""Audit a finished run and add the results to its summary and report."""

from pathlib import Path
from typing import Any

from fed_distill.audit.auditing import Auditing
from fed_distill.config import Experiment
from fed_distill.data.examples import FederatedData
from fed_distill.errors import ConfigError
from fed_distill.experiment.grid import InProcessGrid
from fed_distill.mechanisms.account import bounded
from fed_distill.merchant.app import build_app
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.report import write_report
from fed_distill.reporting.store import RunStore, read_experiment, read_summary
from fed_distill.storage.files import strict_json
from fed_distill.storage.parts import CHECKPOINT, check_layout

AUDIT = "audit.json"


def audit_run(folder: Path, callbacks: Callback, shadows: int = 16, canaries: int = 400) -> dict[str, Any]:
    """Attack the run in ``folder``; write ``audit.json`` and add the results to the summary and the report.

    :param folder: folder of the run
    :param callbacks: receive the progress
    :param shadows: even number of shadow students for LiRA, 0 for none
    :param canaries: number of canaries
    :returns: the audit, JSON-serializable
    :raises CheckpointError: the run is not finished, or of another version of fed-distill
    :raises ConfigError: the run cannot be audited
    """
    summary, experiment = read_summary(folder), read_experiment(folder)
    check_layout(folder / CHECKPOINT)
    if shadows % 2:
        raise ConfigError(f"--shadows must be an even number, not {shadows}: each example is in half of them")
    if experiment.data.clients == "elsewhere":
        raise ConfigError("an audit requires the merchants' data, which are at this run's sites")
    if experiment.student.by_merchant:
        raise ConfigError("an audit requires a single student model: student.by_merchant of this run assigns several")
    result, epsilon = Auditing(folder, experiment, make_grid, callbacks).run(shadows, canaries)
    found = {**result.to_json(), "epsilon_of_accountant": None if epsilon is None else bounded(epsilon)}
    brief = {key: value for key, value in found.items() if key not in ("attacks", "canaries", "label_shares")}
    brief["white_box"] = None if result.white_box is None else result.white_box.brief()
    brief["asked"] = {"shadows": shadows, "canaries": canaries}
    brief["attacks"] = {name: attack["auc"] for name, attack in found["attacks"].items()}
    brief["label_shares"] = {key: found["label_shares"][key] for key in ("error", "baseline")}
    with RunStore.opened(folder) as store:
        store.write(AUDIT, strict_json(found, AUDIT, indent=1) + "\n")
        store.write_summary({**summary, "privacy": {**summary["privacy"], "audit": brief}})
    write_report(folder)
    return found


def make_grid(experiment: Experiment, data: FederatedData) -> InProcessGrid:
    """Return a grid in this process with the merchants of ``data``."""
    return InProcessGrid(build_app(data), experiment.to_run_config())
