"""``fed-distill sites``: write what a deployment needs, and look whether all of it is right.

What takes long to import is imported inside the commands.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from clients.manifest import Manifest
    from fed_distill.data.examples import FederatedData
    from fed_distill.sites.checks import Finding
    from fed_distill.sites.folders import Deployment

sites_app = typer.Typer(help="Run across real sites: keys, folders, checks.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="folder of the deployment, or of one site", show_default=False)
]
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@sites_app.command(epilog="Example: fed-distill sites init deployment --sites north,south --host fed.example.org")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of the deployment", show_default=False)],
    sites: Annotated[str, typer.Option(help="names of the sites to add, separated by commas")] = "",
    host: Annotated[
        str | None, typer.Option(help="name or address by which sites reach the server; localhost if new")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="its port; 8000 if new")] = None,
    experiment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="give sites the task and the proxy set of this experiment")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="also deal its merchants' data to the sites, to try it all out")
    ] = False,
    renew: Annotated[bool, typer.Option("--renew", help="make the server a new certificate")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="write files anew that are there; keys are kept in any case")
    ] = False,
) -> None:
    """Write certificates, keys, start scripts and instructions: for the server, and a folder for each site."""
    from clients.spread import spread
    from fed_distill.config import Experiment
    from fed_distill.data import load
    from fed_distill.sites.allowance import allowance
    from fed_distill.sites.checks import counted
    from fed_distill.sites.public_part import PublicPart

    names = [name.strip() for name in sites.split(",") if name.strip()]
    if rehearse and experiment is None:
        raise ConfigError("--rehearse deals the data of an experiment: name it with --experiment FILE")
    planned = None if experiment is None else Experiment.read(experiment)
    data = None if planned is None else load(planned.data)
    if rehearse and data is not None and not data.merchants:
        raise ConfigError(f"{experiment} has data.clients = 'elsewhere', so there are no merchants to deal")
    deployment = _deployment(folder, host, port, overwrite, data if rehearse else None)
    if planned is not None and data is not None:
        deployment.allowed = allowance(planned, len(data.merchants), len(data.proxy))
    deployment.write(names, renew)
    if data is not None:
        deployment.share(PublicPart(data.task, data.proxy), names)
        if rehearse:
            sizes = {name: len(merchant.train) for name, merchant in data.merchants.items()}
            deployment.deal(data, dict(zip(names, spread(sizes, len(names)), strict=True)))
    Console().print(
        f"{counted(len(deployment.written), 'file')} written, {len(deployment.kept)} kept as they were; "
        f"read {escape(str(folder / 'INSTRUCTIONS.md'))}",
        soft_wrap=True,
    )
    for path in deployment.aside:
        Console().print(f"what was filled in before is in {escape(str(path))}", soft_wrap=True)
    if renew:
        Console().print("restart the server: until then it shows the certificate that it had")


@sites_app.command(epilog="Example: fed-distill sites check deployment")
def check(folder: Folder) -> None:
    """Look at certificates, keys, permissions, server, versions, data and ledgers; exit code 1 if anything is wrong."""
    from fed_distill.sites.checks import counted

    found = list(_findings(folder))
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


@sites_app.command(epilog="Example: fed-distill sites metrics deployment/sites/north --port 9465")
def metrics(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of one site", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 9465,
    address: Annotated[
        str, typer.Option(help="of which of this machine's addresses; nobody is asked for a password")
    ] = "127.0.0.1",
) -> None:
    """Serve a site's counts and its merchants' budgets to Prometheus, until interrupted; the server sees none of it."""
    from clients.manifest import Manifest
    from clients.observing import metrics_of
    from fed_distill.observing.endpoint import Endpoint

    manifest = Manifest.read(folder / "site.toml")
    if not manifest.observing.metrics:
        raise ConfigError(f"{folder / 'site.toml'} keeps no metrics: set metrics = true in its [observing]")
    with Endpoint(metrics_of(manifest).registry(), port, address) as endpoint:
        Console().print(f"metrics of {escape(manifest.name)}: http://{address}:{endpoint.port}/metrics", soft_wrap=True)
        try:
            endpoint.wait()
        except KeyboardInterrupt:
            Console().print("stopped")


def _deployment(
    folder: Path, host: str | None, port: int | None, overwrite: bool, dealt: "FederatedData | None"
) -> "Deployment":
    """The deployment in ``folder`` as it is, or a new one; ConfigError for another address than it has."""
    from fed_distill.methods import METHODS
    from fed_distill.sites.folders import ADDRESS, Deployment

    path = folder / ADDRESS
    known = path.read_text(encoding="utf-8").strip() if path.exists() else None
    known_host, _, known_port = (known or "localhost:8000").rpartition(":")
    task = None if dealt is None else dealt.task
    made = Deployment(
        folder, host or known_host.strip("[]"), port or int(known_port), tuple(METHODS), task, overwrite=overwrite
    )
    if known is not None and not overwrite and known != made.address:
        raise ConfigError(f"{folder} is of a server at {known}: take another folder, or --overwrite and --renew")
    return made


def _findings(folder: Path) -> "Iterator[Finding]":
    """Of a site's folder, or of the operator's with all sites' folders in it."""
    from fed_distill.sites import checks
    from fed_distill.sites.folders import ADDRESS
    from fed_distill.sites.registered import presences

    if (folder / "site.toml").exists():
        yield from _site_findings(folder)
        return
    if not (folder / ADDRESS).exists():
        raise ConfigError(f"{folder} is neither a deployment nor a site: fed-distill sites init makes one")
    address, authority = (folder / ADDRESS).read_text(encoding="utf-8").strip(), folder / "ca" / "ca.crt"
    if (folder / "ca" / "ca.key").exists():  # it may lie in a safe
        yield checks.secret("operator", folder / "ca" / "ca.key")
    yield checks.certificate("operator", authority)
    yield checks.certificate("server", folder / "server" / "server.crt", authority)
    yield checks.secret("server", folder / "server" / "server.key")
    yield checks.server_key("server", folder / "server" / "server.key", folder / "server" / "server.crt")
    reached = list(_reached("server", address, authority))
    yield from reached
    there = reached[0].state == "ok"
    if there:
        # Flower's control API, which sites cannot reach where the door is closed: see INSTRUCTIONS.md.
        yield from presences(f"127.0.0.1:{address.rpartition(':')[2]}", authority, folder / "server" / "keys")
    for site in sorted(path.parent for path in (folder / "sites").glob("*/site.toml")):
        yield from _site_findings(site, folder / "server" / "keys" / f"{site.name}.pub", there)


def _site_findings(folder: Path, public: Path | None = None, there: bool = True) -> "Iterator[Finding]":
    """``public``: the operator's copy of the site's public key. ``there``: whether the server is worth another try."""
    from clients.answers import answered
    from clients.manifest import Manifest
    from fed_distill.errors import FedDistillError
    from fed_distill.sites import checks

    place = folder.resolve().name
    try:
        manifest = Manifest.read(folder / "site.toml")
    except ConfigError as error:
        yield checks.Finding(place, "site.toml", "problem", str(error))
        return
    place = manifest.name
    if public is not None and not (folder / "site.key").exists():
        yield checks.Finding(place, "key site.key", "ok", "handed out: the rest is looked at there")
        return
    yield checks.secret(place, folder / "site.key")
    yield checks.site_key(place, folder / "site.key", public)
    yield _noise_finding(manifest, public is None)
    yield checks.certificate(place, folder / "ca.crt")
    if there:
        yield from _reached(place, manifest.server.address, folder / "ca.crt", public is None)
    yield checks.installed(place, manifest.server.versions)
    try:
        merchants = manifest.read_data().merchants
    except FedDistillError as error:
        yield checks.Finding(place, "data", "problem", str(error))
        return
    rows = sum(len(merchant.train) for merchant in merchants.values())
    told = f"{checks.counted(len(merchants), 'merchant')}, {checks.counted(rows, 'training example')}"
    yield checks.Finding(place, "data", "ok", told)
    partly, paid = bool(manifest.data.merchants), manifest.ledgers
    yield checks.ledgers(place, paid, merchants, partly, answered(paid))
    yield checks.limits(place, manifest.limits.rules.methods, manifest.limits.merchants, merchants)


def _reached(place: str, address: str, authority: Path, at_site: bool = False) -> "Iterator[Finding]":
    """Whether the server answers; if it does, whether its clock is like this one and its door closed to a site."""
    from fed_distill.sites import checks
    from fed_distill.sites.registered import LOCAL, door

    server = checks.server(place, address, authority)
    yield server
    if server.state == "ok":
        yield checks.clock(place, address, authority)
        if at_site and address.rpartition(":")[0] not in LOCAL:
            yield door(place, address, authority)


def _noise_finding(manifest: "Manifest", here: bool) -> "Finding":
    """Whether the site's noise can be taken off by who knows the run's seed. ``here``: the site looks itself."""
    from fed_distill.sites import checks

    if manifest.secret is None and manifest.rehearsal:
        told = "a rehearsal without a secret: whoever knows the run's seed can subtract its noise"
        return checks.Finding(manifest.name, "noise", "warning", told)
    if manifest.secret is None:
        return checks.checked(manifest.name, "noise", manifest.read_secret)
    path = manifest.folder / manifest.secret
    if not here and not path.exists():
        return checks.Finding(manifest.name, "noise", "ok", "a secret that the site will make itself")
    known = checks.checked(manifest.name, "noise", lambda: f"a secret of {len(manifest.read_secret())} characters")
    kept = checks.secret(manifest.name, path)
    return kept if kept.state == "problem" else known
