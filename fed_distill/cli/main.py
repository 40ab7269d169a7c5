"""The command line: ``fed-distill run`` and related commands.

A user's mistake gives one message and exit code 2, never a traceback. Slow imports are inside the commands, so that
``--help`` is fast.
"""

import difflib
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.cli.audit import audit
from fed_distill.cli.compare import compare
from fed_distill.cli.evaluate import evaluate
from fed_distill.cli.experiments import experiments_app
from fed_distill.cli.explain import explain
from fed_distill.cli.export import export
from fed_distill.cli.index import index
from fed_distill.cli.init import init
from fed_distill.cli.keys import keys
from fed_distill.cli.ledger import ledger_app
from fed_distill.cli.load import load_test
from fed_distill.cli.prune import prune
from fed_distill.cli.serve import serve
from fed_distill.cli.sites import sites_app
from fed_distill.cli.study import study
from fed_distill.cli.tune import tune
from fed_distill.errors import ConfigError, FedDistillError

if TYPE_CHECKING:
    from fed_distill.config import Experiment
    from fed_distill.registry import Registry

STOPPED = 130
"""Exit code of an interrupted run."""
app = typer.Typer(
    name="fed-distill",
    no_args_is_help=True,
    suggest_commands=False,  # click does
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: fed-distill init TABLE, then data describe, run --tiny, run.",
)
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from fed_distill import __version__

        sys.stdout.write(f"fed-distill {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit"),
    ] = False,
) -> None:
    """Federated distillation for e-commerce search and recommendation."""


File = Annotated[Path, typer.Argument(metavar="FILE", help="experiment, a TOML file", show_default=False)]
Part = Annotated[str | None, typer.Argument(metavar="[NAME]", help="describe this one in full", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a key, for example federation.rounds=3")
]


def run(
    file: File,
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="name of the run's folder instead of the file's")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a stopped run of this name")] = False,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny", help="test the file: few merchants, small teacher, two rounds, except for keys in --set"
        ),
    ] = False,
) -> None:
    """Run an experiment in this process and write its report.

    A run whose folder exists is refused without --resume; a tiny one gets a number: NAME-tiny-2.
    """
    experiment = _experiment(file, settings, name, resume, tiny)
    if tiny and name is None and not experiment.runtime.resume:
        experiment = _under_free_name(experiment)
    _announce(experiment)
    from fed_distill.experiment.simulation import run as simulate
    from fed_distill.reporting.store import EXPERIMENT
    from fed_distill.reporting.terminal import show

    try:
        result = simulate(experiment)
    except KeyboardInterrupt:
        written = experiment.runtime.folder / experiment.name / EXPERIMENT
        again = f"fed-distill run {written} --resume" if tiny else "the same command and --resume"
        Console(stderr=True).print(f"stopped; continue with {again}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(STOPPED) from None
    show(result.folder)


def config(
    file: File,
    settings: Settings = None,
    flower: Annotated[
        bool,
        typer.Option(
            "--flower",
            help="as a run config for `flwr run . --run-config`; relative paths become absolute, except the "
            "default of runtime.folder, which is in the server's own folder",
        ),
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="the version that `fed-distill run --tiny` would run")] = False,
) -> None:
    """Print the complete experiment, defaults included."""
    import tomli_w

    experiment = _experiment(file, settings, tiny=tiny)
    if flower:
        from fed_distill.experiment.absolute import absolute

        sys.stdout.write(tomli_w.dumps(absolute(experiment).to_run_config()))
    else:
        sys.stdout.write(experiment.to_toml())


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run", show_default=False)],
    markdown: Annotated[bool, typer.Option("--markdown", help="print the comparison as a Markdown table too")] = False,
) -> None:
    """Write the HTML report of a finished run again, from its files."""
    from fed_distill.reporting.report import write_report
    from fed_distill.reporting.store import read_summary
    from fed_distill.reporting.tables import markdown_table

    path = write_report(folder)
    if markdown:
        sys.stdout.write(markdown_table(read_summary(folder)) + "\n")
    Console(stderr=markdown).print(f"report: {escape(str(path))}", soft_wrap=True)


@data_app.command(epilog="Example: fed-distill data describe pricerunner --out pictures")
def describe(
    dataset: Annotated[
        str, typer.Argument(metavar="NAME", help="a dataset, or an experiment file", show_default=False)
    ],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for a figure of the merchants' sizes and label skew", show_default=False)
    ] = None,
) -> None:
    """Print how a dataset is cleaned and split, and who has what."""
    from fed_distill.config import Experiment, parse_setting
    from fed_distill.data import load
    from fed_distill.data.describe import describe as describe_data

    changes = dict(parse_setting(text) for text in settings or ())
    path = Path(dataset)
    if path.suffix == ".toml" or (path.suffix and path.is_file()):  # a table is refused by what it is
        experiment = Experiment.read(dataset, changes)
    else:
        experiment = Experiment(controls=[]).with_changes({"data.dataset": dataset, **changes})
    sys.stdout.write(describe_data(load(experiment.data), out) + "\n")


@data_app.command(epilog="Example: fed-distill data proxy experiments/quickstart.toml --out proxy.csv")
def proxy(
    file: File,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="a .csv file, which is replaced")] = Path("proxy.csv"),
) -> None:
    """Write the texts of the proxy set to a table, to be labelled by people or by a language model.

    With columns of probabilities or of labels it is what the teacher "labels-file" reads. If the teacher selects the
    proxy set (data.proxy_choice = "uncertainty"), these are its candidates.
    """
    from fed_distill.config import Experiment, parse_setting
    from fed_distill.data import load
    from fed_distill.data.label_table import write_texts

    experiment = Experiment.read(file, dict(parse_setting(text) for text in settings or ()))
    examples = load(experiment.data).proxy
    write_texts(out, examples)
    sys.stdout.write(f"{len(examples):,} examples of the proxy set: {out}\n")


@data_app.command(epilog="Example: fed-distill data sample --to sample")
def sample(
    to: Annotated[Path, typer.Option(help="folder of the files")] = Path("."),
) -> None:
    """Write tables of a generated marketplace, to try the commands on.

    grades.csv and reviews.csv to train on, products.csv to search in, and catalogue.csv with public queries and titles.
    """
    from fed_distill.data.sample import write_sample

    for path, rows in write_sample(to).items():
        sys.stdout.write(f"{path}: {rows:,} rows\n")
    sys.stdout.write(f"begin with: fed-distill init {shlex.quote(str(to / 'grades.csv'))}\n")


@data_app.command("list", epilog="Example: fed-distill data list")
def list_datasets(name: Part = None) -> None:
    """List the built-in datasets and their options, or describe one."""
    from fed_distill.data import DATASETS

    _print_parts([DATASETS], name)


def methods(name: Part = None) -> None:
    """List the federated methods, aggregators, codec stages and attacks of Byzantine merchants, with their options; or
    describe one, with its paper."""
    from fed_distill.adversaries import ATTACKS
    from fed_distill.aggregation import AGGREGATORS
    from fed_distill.methods import METHODS
    from fed_distill.transport.coding import SOFT_LABEL_STAGES, UPDATE_STAGES

    _print_parts([METHODS, AGGREGATORS, UPDATE_STAGES, SOFT_LABEL_STAGES, ATTACKS], name)


def models(name: Part = None) -> None:
    """List the teachers and students, with their options, or describe one."""
    from fed_distill.models import STUDENTS, TEACHERS

    _print_parts([TEACHERS, STUDENTS], name)


_COMMANDS: dict[str, dict[Callable[..., None], str]] = {
    "Train": {
        init: "init reviews.csv",
        run: "run experiments/quickstart.toml --set federation.rounds=3 --name short",
        study: "study experiments/privacy_marketplace.toml --set seeds=1",
        tune: "tune experiments/tune.toml --set trials=40",
        config: "config experiments/quickstart.toml --flower > run.toml",
        keys: "keys federation.rounds",
        methods: "methods expert-fd",
        models: "models",
    },
    "Look at results": {
        report: "report runs/quickstart --markdown",
        compare: "compare runs/quickstart runs/short",
        audit: "audit runs/quickstart",
        explain: "explain runs/quickstart --query 'usb c hub' --title 'Anker 555 USB-C Hub'",
    },
    "Use the student": {
        evaluate: "evaluate judged.csv --student runs/quickstart --text-column query --pair-column title",
        export: "export runs/quickstart --to exported",
        prune: "prune runs/bert --layers 2 --neurons 256 --to runs/bert-pruned",
        index: "index catalogue.csv --student runs/quickstart --to index",
        serve: "serve exported",
        load_test: "load-test http://localhost:8080 --p99-ms 20",
    },
}
"""Commands by panel of ``--help``, in its order, each with an example."""
for _panel, _commands in _COMMANDS.items():
    for _command, _example in _commands.items():
        app.command(_example.split()[0], epilog=f"Example: fed-distill {_example}", rich_help_panel=_panel)(_command)
app.add_typer(data_app, name="data", rich_help_panel="Train")
app.add_typer(experiments_app, name="experiments", rich_help_panel="Train")
app.add_typer(sites_app, name="sites", rich_help_panel="Sites and privacy")
app.add_typer(ledger_app, name="ledger", rich_help_panel="Sites and privacy")


def main() -> None:
    """Run the command line; print a user's mistake and exit with code 2."""
    try:
        app()
    except FedDistillError as error:
        _complain(str(error))
    except OSError as error:
        if error.filename is None:  # not about a file of the user
            raise
        _complain(f"cannot use {error.filename}: {error.strerror}")
    except MemoryError as error:
        _complain(f"not enough memory for this{f': {error}' if str(error) else ''}")


def _complain(problem: str) -> NoReturn:
    from fed_distill.text.words import one_line

    shown = "\n".join(one_line(line) for line in problem.split("\n"))  # a terminal's commands from data are not obeyed
    Console(stderr=True, emoji=False).print(f"[bold red]error:[/] {escape(shown)}", soft_wrap=True)
    sys.exit(2)


def _experiment(
    file: Path, settings: list[str] | None, name: str | None = None, resume: bool = False, tiny: bool = False
) -> "Experiment":
    from fed_distill.config import Experiment, parse_setting
    from fed_distill.config.keys import leaf_keys
    from fed_distill.experiment.names import check_names

    chosen = dict(parse_setting(text) for text in settings or ())
    named = {} if name is None else {"name": name}
    resumed = {"runtime.resume": True} if resume else {}
    experiment = Experiment.read(file, {**chosen, **named, **resumed})
    check_names(experiment)
    return experiment.tiny(leaf_keys(chosen)) if tiny else experiment


def _under_free_name(experiment: "Experiment") -> "Experiment":
    """Number the experiment if a run of its name exists, so that a file can be tested again and again."""
    numbered = (f"{experiment.name}-{number}" for number in itertools.count(2))
    names = itertools.chain([experiment.name], numbered)
    free = next(name for name in names if not (experiment.runtime.folder / name).exists())
    return experiment.with_changes({"name": free})


def _announce(experiment: "Experiment") -> None:
    """Print that a run starts, before imports and data that take seconds, where its progress is printed."""
    if "progress" in experiment.runtime.callbacks and experiment.runtime.logs != "json":
        text = f"run {experiment.name}: loading libraries and the data ({experiment.data.dataset})"
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _print_parts(registries: Sequence["Registry"], name: str | None) -> None:
    """Print the tables of registries, or what is called ``name`` in any of them."""
    from fed_distill.cli.listing import description

    if name is None:
        for registry in registries:
            _print_registry(registry)
        return
    if ":" in name:
        found = [description(registries[0], name)]
    else:
        found = [description(registry, name) for registry in registries if name in registry]
    if not found:
        names = sorted({known for registry in registries for known in registry})
        near = difflib.get_close_matches(name, names, n=3)
        meant = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"nothing is called {name!r}{meant}")
    sys.stdout.write("\n\n\n".join(found) + "\n")


def _print_registry(registry: "Registry") -> None:
    from fed_distill.cli.listing import option_rows

    table = Table(title=f"{registry.kind}s", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in (registry.kind, "options", "description"):
        table.add_column(column, overflow="fold")
    for name in registry:
        table.add_row(*map(escape, option_rows(registry, name)))
    Console().print(table)


if __name__ == "__main__":
    main()
