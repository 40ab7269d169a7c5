"""``fed-distill study``: run a grid of experiments in parallel, and report on it.

Slow imports are inside the command.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fed_distill.sweeps.cells import Cell
    from fed_distill.sweeps.grid import Study
    from fed_distill.sweeps.places import Places
    from fed_distill.sweeps.row_trials import TuningPlan
    from fed_distill.sweeps.runner import Resources
    from fed_distill.sweeps.sampler import Sampler

SIMULATE, ATTACK = "fed_distill.experiment.simulation:run", "fed_distill.audit.finished_run:audit_run"
STOPPED, INCOMPLETE = 130, 1
DISPENSABLE = (
    "δ", "server alone: AUC", "in all", "time", "retention", "in AUC", "AUC", "ε at least (text)", "cells",
    "worst merchant", "attack AUC", "gap closed", "p (fedavg)", "above fedavg", "worst tenth", "own students",
    "above global", "sent",
)  # fmt: skip
"""Columns of the summary that a narrow terminal omits, in this order."""


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="study, a TOML file", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change a key of the base experiment, or name, title, seeds"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=LABEL", help="only cells with this label, as if there were no others; repeatable"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the study instead of runs/studies/NAME")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="maximum number of concurrent cells; default: fill the cores, 1 on a GPU")
    ] = None,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="test the file: one seed of each cell's tiny version, except for keys in --set"),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check the study and list its cells; run nothing")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="write the results of finished cells; run nothing")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the summary as a Markdown table")] = False,
) -> None:
    """Run the unfinished cells of a study, and write its tables, figures and report.

    The same command continues a stopped study. Exit code 1: a cell has failed or is missing.
    """
    from fed_distill.config import parse_setting
    from fed_distill.config.keys import leaf_keys
    from fed_distill.reporting.terminal import TINY_RESULTS, print_table
    from fed_distill.sweeps.cells import expand
    from fed_distill.sweeps.cells import only as chosen
    from fed_distill.sweeps.grid import Study
    from fed_distill.sweeps.places import Places
    from fed_distill.sweeps.report import write_findings
    from fed_distill.sweeps.row_trials import plan_of
    from fed_distill.sweeps.table import markdown as as_markdown

    changes = dict(parse_setting(text) for text in settings or ())
    kept = leaf_keys(changes)
    given = Study.read(file, changes)
    cells = expand(given, tiny, kept)
    _check_names(expand(given) if tiny else cells)
    _check(cells)
    if only:
        cells = chosen(given, cells, only)
    places = Places(out or given.base.runtime.folder / "studies" / f"{given.name}{'-tiny' if tiny else ''}")
    plan = plan_of(given, cells, places, tiny, kept)
    if plan is not None:
        _check([trial.cell for trial in plan.preview()])
    resources = _resources(given, parallel)
    if plan is not None and not report_only and not dry_run:
        _tune(given, plan, places, resources)
    if plan is not None and (plan.has_all_trials or not dry_run):
        cells = expand(given, tiny, kept, plan.chosen())
        cells = chosen(given, cells, only) if only else cells
    if dry_run:
        Console().print(_listing(cells, places, plan))
        return
    if not report_only:
        _run(given, cells, places, resources)
    part = "".join(f" --only {shlex.quote(text)}" for text in only or ())
    if tiny:
        part = " --tiny" + "".join(f" --set {shlex.quote(text)}" for text in settings or ()) + part
    again = f"fed-distill study {places.folder / 'study.toml'} --out {places.folder}{part}"
    found = write_findings(given, cells, places, again, plan)
    if tiny:
        Console(stderr=markdown).print(TINY_RESULTS)
    if markdown:
        sys.stdout.write("\n".join(as_markdown(table, names) for table, names in found.tables(len(given.axes))))
    else:
        for table, names in found.tables(len(given.axes)):
            print_table(
                table,
                names,
                DISPENSABLE,
                f"{places.folder / 'summary.csv'}, in the report, and by --markdown",
                Console(),
            )
    Console(stderr=markdown).print(f"report: {escape(str(found.report))}", soft_wrap=True)
    if not found.complete:
        raise typer.Exit(INCOMPLETE)


def _check_names(cells: Sequence["Cell"]) -> None:
    """Check the names of all parts as they are in the file: a tiny version has another teacher."""
    from fed_distill.errors import ConfigError
    from fed_distill.experiment.names import check_names
    from fed_distill.sweeps.cells import distinct

    for cell in distinct(cells).values():
        try:
            check_names(cell.experiment)
        except ConfigError as error:
            raise ConfigError(f"cell {cell.title}: {error}") from error


def _check(cells: Sequence["Cell"]) -> None:
    """Validate names and options of all cells before the first one is run."""
    from fed_distill.errors import ConfigError
    from fed_distill.experiment.preflight import check_settings
    from fed_distill.experiment.simulation import check_merchants
    from fed_distill.sweeps.cells import distinct

    for cell in distinct(cells).values():
        try:
            check_merchants(cell.experiment)
            check_settings(cell.experiment)
        except ConfigError as error:
            raise ConfigError(f"cell {cell.title}: {error}") from error


def _resources(given: "Study", parallel: int | None) -> "Resources":
    import torch

    from fed_distill.sweeps.runner import Resources

    device = given.base.runtime.device
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return Resources.of(given.base, len(os.sched_getaffinity(0)), parallel, gpu)


def _tune(given: "Study", plan: "TuningPlan", places: "Places", resources: "Resources") -> None:
    """Run the missing trials, those of the server first; raise CheckpointError if a trial of it failed."""
    from fed_distill.sweeps.row_sampler import RowTrialSampler

    for stage in plan.stages():
        sampler = RowTrialSampler(plan.planned(stage), places, plan.log, plan.tuning.objective)
        _sweep(f"study {given.name}: trials of {', '.join(map(str, stage))}", "trial", sampler, places, resources)


def _run(given: "Study", cells: Sequence["Cell"], places: "Places", resources: "Resources") -> None:
    from fed_distill.sweeps.sampler import GridSampler

    _sweep(f"study {given.name}: folder {places.folder}", "cell", GridSampler(cells, places), places, resources)


def _sweep(title: str, noun: str, sampler: "Sampler", places: "Places", resources: "Resources") -> None:
    from fed_distill.sweeps.progress import SweepProgress
    from fed_distill.sweeps.runner import Runner

    progress = SweepProgress(noun=noun)
    progress.say(title)
    try:
        Runner(places, sampler, SIMULATE, resources, progress, ATTACK).run()
    except KeyboardInterrupt:
        progress.close()
        progress.say("stopped; continue with the same command")
        raise typer.Exit(STOPPED) from None
    finally:
        progress.close()


def _listing(cells: Sequence["Cell"], places: "Places", plan: "TuningPlan | None" = None) -> Table:
    """List the trials of each row and the cells, whose settings and fingerprints are not known before all trials."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("fingerprint", "state"):
        table.add_column(title, no_wrap=True)
    table.add_column("cell", overflow="fold")
    counts = {} if plan is None else plan.counts()
    waiting = plan is not None and not plan.has_all_trials
    for row, count in counts.items():
        table.add_row("", f"{count} finished", escape(f"trials of {row}"))
    seen: set[str] = set()
    for cell in cells:
        finished = "finished" if places.is_finished(cell.fingerprint) else "to run"
        state = "equal to one above" if cell.fingerprint in seen else finished
        seen.add(cell.fingerprint)
        shown = ("", "after the trials") if waiting else (cell.fingerprint[:8], state)
        table.add_row(*shown, escape(cell.title))
    table.caption = f"{len(cells):,} cells, {len(seen):,} of them distinct; {places.folder}"
    if plan is not None:
        total = plan.trials * len(counts)
        table.caption = f"{total:,} trials, {sum(counts.values()):,} of them finished; {table.caption}"
    table.caption_justify = "left"
    return table
