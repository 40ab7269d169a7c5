"""``fed-distill tune``: search an experiment's settings with Optuna, and write the best ones as an experiment.

Slow imports are inside the command.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from fed_distill.sweeps.places import Places
    from fed_distill.sweeps.runner import Resources
    from fed_distill.sweeps.space import Tuning
    from fed_distill.sweeps.tune_findings import TuningFindings

SIMULATE = "fed_distill.experiment.simulation:run"
STOPPED, NOTHING = 130, 1
SHOWN = 10
"""Number of trials in the table of the terminal; ``trials.csv`` has all."""


def tune(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="tuning, a TOML file", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change a key of the base, or name, title, trials, seeds"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the tuning instead of runs/tunings/NAME")] = None,
    parallel: Annotated[
        int, typer.Option(min=1, help="concurrent trials; they do not learn from each other while they run")
    ] = 1,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="test the file: three trials of the base's tiny version, except for keys in --set"),
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="write the results so far; run nothing")] = False,
) -> None:
    """Search the settings with the best score on the validation set, and write them as an experiment, best.toml.

    The same command continues a stopped tuning; --set trials=N adds trials. Exit code 1: no trial is complete.
    """
    from fed_distill.config import parse_setting
    from fed_distill.config.keys import leaf_keys
    from fed_distill.sweeps.places import Places
    from fed_distill.sweeps.space import Tuning
    from fed_distill.sweeps.tune_findings import write_findings

    changes = dict(parse_setting(text) for text in settings or ())
    given = Tuning.read(file, changes)
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("tuning requires the package optuna: pip install 'fed-distill[tune]'")
    _check_names(given, file)
    given = given.tiny(leaf_keys(changes)) if tiny else given
    _check(given, file)
    places = Places(out or given.base.runtime.folder / "tunings" / f"{given.name}{'-tiny' if tiny else ''}")
    if not report_only:
        _run(given, places, _resources(given, parallel))
    found = write_findings(given, places)
    Console().print(_table(found))
    _conclude(found, places)
    if found.best is None:
        raise typer.Exit(NOTHING)


def _check_names(given: "Tuning", file: Path) -> None:
    """Check the names of all parts as they are in the file: a tiny version has another teacher."""
    from fed_distill.experiment.names import check_names

    for title, experiment in given.probes():
        try:
            check_names(experiment)
        except ConfigError as error:
            raise ConfigError(f"{file}, {title}: {error}") from error


def _check(given: "Tuning", file: Path) -> None:
    """Validate names and options at each end of each search, before the first trial is run."""
    from fed_distill.experiment.preflight import check_settings
    from fed_distill.experiment.simulation import check_merchants

    for title, experiment in given.probes():
        try:
            check_merchants(experiment)
            check_settings(experiment)
        except ConfigError as error:
            raise ConfigError(f"{file}, {title}: {error}") from error


def _resources(given: "Tuning", parallel: int) -> "Resources":
    import os

    from fed_distill.sweeps.runner import Resources

    return Resources.of(given.base, len(os.sched_getaffinity(0)), parallel)


def _run(given: "Tuning", places: "Places", resources: "Resources") -> None:
    from fed_distill.sweeps.progress import SweepProgress
    from fed_distill.sweeps.runner import Runner
    from fed_distill.sweeps.trial_sampler import TrialSampler

    progress = SweepProgress(noun="run")
    progress.say(f"tuning {given.name}: {', '.join(given.names)}; folder {places.folder}")
    try:
        Runner(places, TrialSampler(given, places), SIMULATE, resources, progress).run()
    except KeyboardInterrupt:
        progress.close()
        progress.say("stopped; continue with the same command, or write the results so far with --report-only")
        raise typer.Exit(STOPPED) from None
    finally:
        progress.close()


def _table(found: "TuningFindings") -> Table:
    """Return a table of the best trials and the base."""
    header, *rows = found.lines()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, title in enumerate(header):
        table.add_column(escape(title), justify="left" if place == 0 else "right", no_wrap=True)
    for row in [*rows[:-1][:SHOWN], rows[-1]]:
        table.add_row(*map(escape, row))
    return table


def _conclude(found: "TuningFindings", places: "Places") -> None:
    console = Console()
    if found.best is None:
        console.print(f"no trial is complete: {escape(_why(found))}", soft_wrap=True)
        return
    console.print(f"best settings: {escape(str(found.toml))}; fed-distill run has their test scores", soft_wrap=True)
    console.print(f"figures: {escape(str(places.folder / 'figures'))}", soft_wrap=True)


def _why(found: "TuningFindings") -> str:
    return next((one.reason for one in found.tried if one.reason), "none has been run")
