"""``fed-distill sites``: write a deployment, admit sites, check and run it.

Slow imports are inside the commands.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from fed_distill.data.examples import FederatedData
    from fed_distill.deploy.admission import Admission
    from fed_distill.deploy.folders import Deployment
    from fed_distill.deploy.identity import SiteKey

sites_app = typer.Typer(help="Run across real sites: keys, folders, checks, runs.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="folder of the deployment, or of one site", show_default=False)
]
SiteFolder = Annotated[Path, typer.Argument(metavar="DIR", help="folder of one site", show_default=False)]
OperatorsFolder = Annotated[Path, typer.Argument(metavar="DIR", help="folder of the deployment", show_default=False)]
_WAIT = 30.0
"""Seconds to wait for a server that is starting."""
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@sites_app.command(epilog="Example: fed-distill sites init deployment --sites north,south --host fed.example.org")
def init(
    folder: OperatorsFolder,
    sites: Annotated[str, typer.Option(help="names of the sites to add, separated by commas")] = "",
    host: Annotated[
        str | None, typer.Option(help="name or address of the server for the sites; localhost if new")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="its port; 8000 if new")] = None,
    experiment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="give sites the task and the proxy set of this experiment")
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="private runs on the same data, such as retrainings, that sites' budgets allow")
    ] = 1,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="act as the sites too: assign merchants' data, make keys, admit them")
    ] = False,
    renew: Annotated[bool, typer.Option("--renew", help="make a new certificate for the server")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="overwrite existing files, except keys")] = False,
) -> None:
    """Write the server's files and a folder for each site, without any secret in it."""
    from fed_distill.config import Experiment
    from fed_distill.data import load
    from fed_distill.data.public_part import PublicPart
    from fed_distill.deploy.checks import counted
    from fed_distill.merchant.allowance import allowance
    from fed_distill.merchant.assignment import assign_merchants

    names = [name.strip() for name in sites.split(",") if name.strip()]
    if rehearse and experiment is None:
        raise ConfigError("--rehearse assigns the data of an experiment: add --experiment FILE")
    if runs > 1 and experiment is None:
        raise ConfigError("--runs multiplies the runs of an experiment: add --experiment FILE")
    planned = None if experiment is None else Experiment.read(experiment)
    if runs > 1 and planned is not None and not planned.privacy.protects:
        raise ConfigError(f"--runs has no effect, as {experiment} has no private releases: remove it")
    data = None if planned is None else load(planned.data)
    if rehearse and data is not None and not data.merchants:
        raise ConfigError(f"{experiment} has data.clients = 'elsewhere', so there are no merchants to assign")
    deployment = _deployment(folder, host, port, overwrite, data if rehearse else None)
    if planned is not None and data is not None:
        deployment.allowed = allowance(planned, len(data.merchants), len(data.proxy), runs)
        methods = [federation.method for federation in planned.federations() if ":" in federation.method]
        models = [model for model in planned.student.models() if ":" in model]
        deployment.imports = tuple(dict.fromkeys([*methods, *models]))
    deployment.write(names, renew)
    if data is not None:
        deployment.share(PublicPart(data.task, data.proxy), names)
        if rehearse:
            sizes = {name: len(merchant.train) for name, merchant in data.merchants.items()}
            deployment.deal(data, dict(zip(names, assign_merchants(sizes, len(names)), strict=True)))
            deployment.rehearse(names)
    Console().print(
        f"{counted(len(deployment.written), 'file')} written, {len(deployment.kept)} unchanged; "
        f"read {escape(str(folder / 'INSTRUCTIONS.md'))}",
        soft_wrap=True,
    )
    if data is not None and not rehearse:
        told = (
            f"proxy.json has the texts of {len(data.proxy):,} proxy examples and goes to all sites: they must be public"
        )
        Console().print(told, soft_wrap=True, highlight=False)
    if deployment.imports:
        Console().print(
            escape(f"sites may import {', '.join(deployment.imports)}: install the package at each site, too"),
            soft_wrap=True,
            highlight=False,
        )
    for name, methods in deployment.unallowed(names).items():
        file, what = deployment.site(name) / "site.toml", ", ".join(methods)
        Console().print(
            escape(f"{file} was kept and does not allow {what}: add to methods in its [limits.rules]"),
            soft_wrap=True,
            highlight=False,
        )
    for path in deployment.aside:
        Console().print(f"the previous version is in {escape(str(path))}", soft_wrap=True)
    if renew:
        Console().print("restart the server: until then it uses the previous certificate")


@sites_app.command(epilog="Example: fed-distill sites join .")
def join(
    folder: SiteFolder,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="replace the existing keys; the operator must admit the new ones")
    ] = False,
) -> None:
    """At a site: create its keys and start scripts, and print the line for its operator."""
    from fed_distill.deploy.folders import is_operators_copy
    from fed_distill.deploy.identity import certificate_fingerprint
    from fed_distill.deploy.joining import join as make
    from fed_distill.merchant.manifest import Manifest

    manifest = Manifest.read(folder / "site.toml")
    if is_operators_copy(folder) and not manifest.rehearsal:
        raise ConfigError(
            f"{folder} is the operator's copy, and a site creates its keys itself: give the folder to its staff"
        )
    noise = None if manifest.secret is None else manifest.folder / manifest.secret
    authority = certificate_fingerprint(folder / "ca.crt")
    joined = make(manifest.folder, manifest.name, noise, new_keys)
    made = f"created {' and '.join(joined.made)}" if joined.made else "keys unchanged"
    print(f"site {manifest.name}: {made}; the SHA-256 of its key is\n  {joined.key.fingerprint}")
    for path in joined.aside:
        print(f"the previous version is in {path}")
    address = ascii(manifest.server.address)[1:-1]  # control characters could display another SHA-256 than that below
    print(f"server {address}: ask the operator to confirm the SHA-256 of ca.crt:\n  {authority}")
    print(f"send the operator this line, which is not secret (it is in {joined.path} too):\n{joined.key.line}")


@sites_app.command(epilog="Example: fed-distill sites admit deployment north.pub")
def admit(
    folder: OperatorsFolder,
    line: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LINE]", help="output of `sites join`, or files with it; default: all admitted sites"),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="revoke the site's previous key")] = False,
) -> None:
    """Admit a site by its join line, and register admitted sites at the running server."""
    from fed_distill.deploy.registered import NoAnswer

    admission = _admission(folder)
    keys = _join_lines(line or [])
    for key in keys:
        admission.admit(key, replace)
    try:
        for told in admission.settle([key.name for key in keys] or None, 0.0 if keys else _WAIT):
            print(told)
    except NoAnswer as error:
        if not keys:
            raise
        for key in keys:
            print(f"{key.name}: admitted, but not registered yet: {error}")
        print(f"start the server, then run {folder / 'server' / 'register.sh'}")
    for key in keys:
        print(f"confirm with the staff of {key.name} that their key is {key.fingerprint}")


@sites_app.command(epilog="Example: fed-distill sites revoke deployment north")
def revoke(
    folder: OperatorsFolder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the site", show_default=False)],
) -> None:
    """Revoke the key of a site and disconnect it from the running server."""
    from fed_distill.deploy.registered import NoAnswer

    admission = _admission(folder)
    admission.revoke(name)
    try:
        for told in admission.settle([]):
            print(told)
    except NoAnswer as error:
        print(f"{name}: revoked, but not disconnected yet: {error}")
        print(f"start the server, then run {folder / 'server' / 'register.sh'}")
        raise typer.Exit(1) from error


@sites_app.command(epilog="Example: fed-distill sites check deployment")
def check(folder: Folder) -> None:
    """Check certificates, keys, permissions, server, versions, data and ledgers; exit code 1 if there is a problem."""
    from fed_distill.deploy.checks import counted
    from fed_distill.deploy.inspection import findings

    found = list(findings(folder))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("where", "what", "state", ""):
        table.add_column(title, overflow="fold")
    for one in found:
        state = f"[{_COLOURS[one.state]}]{one.state}[/]"
        table.add_row(escape(one.place), escape(one.what), state, escape(one.detail))
    Console().print(table)
    wrong, doubtful = (sum(one.state == state for one in found) for state in ("problem", "warning"))
    Console().print(f"{counted(wrong, 'problem')}, {counted(doubtful, 'warning')}", soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


@sites_app.command(epilog="Example: fed-distill sites run experiments/quickstart.toml deployment")
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="experiment, a TOML file", show_default=False)],
    folder: OperatorsFolder,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change a key, for example federation.rounds=3"),
    ] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="sites to wait for; default: all admitted ones")] = None,
    name: Annotated[str | None, typer.Option(help="name of the run's folder instead of the file's")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a stopped run of this name")] = False,
) -> None:
    """On the server's machine: run an experiment across the sites and follow it; exit code 2 if it fails."""
    from fed_distill.config import Experiment, parse_setting
    from fed_distill.deploy.submit import Deployed

    chosen = dict(parse_setting(text) for text in settings or ())
    named = {} if name is None else {"name": name}
    resumed = {"runtime.resume": True} if resume else {}
    deployed = Deployed(folder)
    experiment = deployed.planned(Experiment.read(file, {**chosen, **named, **resumed}), sites)
    try:
        done = deployed.run(experiment, _write)
    except KeyboardInterrupt:
        Console().print("no longer followed: the run continues at the server; the first line above says how to stop it")
        raise typer.Exit(130) from None
    Console().print(f"run folder: {escape(str(done))}", soft_wrap=True)


def _write(text: str) -> None:
    """Print a piece of a run's log and flush it."""
    sys.stdout.write(text)
    sys.stdout.flush()


@sites_app.command(epilog="Example: fed-distill sites metrics deployment/sites/north --port 9465")
def metrics(
    folder: SiteFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port")] = 9465,
    address: Annotated[
        str, typer.Option(help="address of this machine to listen on; there is no authentication")
    ] = "127.0.0.1",
) -> None:
    """Serve a site's counts and its merchants' budgets to Prometheus until interrupted; not visible to the server."""
    from fed_distill.endpoint import Endpoint
    from fed_distill.merchant.manifest import Manifest
    from fed_distill.merchant.observing import metrics_of

    manifest = Manifest.read(folder / "site.toml")
    if not manifest.observing.metrics:
        raise ConfigError(f"{folder / 'site.toml'} has no metrics: set metrics = true in its [observing]")
    with Endpoint(metrics_of(manifest).registry(), port, address) as endpoint:
        Console().print(f"metrics of {escape(manifest.name)}: http://{address}:{endpoint.port}/metrics", soft_wrap=True)
        try:
            endpoint.wait()
        except KeyboardInterrupt:
            Console().print("stopped")


def _deployment(
    folder: Path, host: str | None, port: int | None, overwrite: bool, assigned: "FederatedData | None"
) -> "Deployment":
    """Return the deployment in ``folder``, or a new one; raise ConfigError if its address differs."""
    from fed_distill.deploy.folders import ADDRESS, Deployment

    path = folder / ADDRESS
    known = path.read_text(encoding="utf-8").strip() if path.exists() else None
    known_host, _, known_port = (known or "localhost:8000").rpartition(":")
    task = None if assigned is None else assigned.task
    made = Deployment(folder, host or known_host.strip("[]"), port or int(known_port), task, overwrite=overwrite)
    if known is not None and not overwrite and known != made.address:
        raise ConfigError(f"{folder} is of a server at {known}: use another folder, or --overwrite and --renew")
    return made


def _admission(folder: Path) -> "Admission":
    from fed_distill.deploy.admission import Admission
    from fed_distill.deploy.folders import ADDRESS

    if not (folder / ADDRESS).exists():
        raise ConfigError(f"{folder} is not a deployment: create one with fed-distill sites init")
    return Admission(folder)


def _join_lines(given: list[str]) -> "list[SiteKey]":
    """Parse keys in files, or in a line that a shell may have split into words."""
    from fed_distill.deploy.identity import SiteKey

    paths = [Path(one) for one in given if len(one) < 256 and Path(one).is_file()]
    if not given or len(paths) < len(given):
        text = " ".join(given)
    else:
        text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    if "PRIVATE KEY" in text:
        return [SiteKey.parse(text)]
    return [SiteKey.parse(line) for line in text.splitlines() if line.strip()]
