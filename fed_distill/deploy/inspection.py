"""The findings of `sites check`: certificates, keys, permissions, server, versions, data and ledgers."""

from collections.abc import Iterator
from pathlib import Path

from fed_distill.deploy import checks
from fed_distill.deploy.admission import Admission
from fed_distill.deploy.checks import Finding
from fed_distill.deploy.folders import ADDRESS, is_operators_copy
from fed_distill.deploy.joining import KEY
from fed_distill.deploy.registered import door, presences
from fed_distill.errors import ConfigError, FedDistillError
from fed_distill.merchant.answers import answered
from fed_distill.merchant.manifest import Manifest


def findings(folder: Path) -> Iterator[Finding]:
    """Yield all findings for a site's folder, or for the operator's folder and the sites' folders in it.

    :raises ConfigError: the folder is neither
    """
    if (folder / "site.toml").exists():
        yield from _site_findings(folder)
        return
    if not (folder / ADDRESS).exists():
        raise ConfigError(f"{folder} is neither a deployment nor a site: create one with fed-distill sites init")
    address, authority = (folder / ADDRESS).read_text(encoding="utf-8").strip(), folder / "ca" / "ca.crt"
    if (folder / "ca" / "ca.key").exists():  # it may be stored offline
        yield checks.secret("operator", folder / "ca" / "ca.key")
    yield checks.certificate("operator", authority)
    yield checks.certificate("server", folder / "server" / "server.crt", authority)
    yield checks.secret("server", folder / "server" / "server.key")
    yield checks.server_key("server", folder / "server" / "server.key", folder / "server" / "server.crt")
    reached, control = list(_reached("server", address, authority)), Admission(folder).control
    yield from reached
    there = reached[0].state == "ok"
    if there:
        yield from _doors(address, control, authority)
        yield from presences(control, authority, folder / "server" / "keys")
    for site in sorted(path.parent for path in (folder / "sites").glob("*/site.toml")):
        yield from _site_findings(site, folder / "server" / "keys" / f"{site.name}.pub", there)


def _site_findings(folder: Path, public: Path | None = None, there: bool = True) -> Iterator[Finding]:
    """``public``: the operator's copy of the site's public key. ``there``: whether to try the server again."""
    place, key = folder.resolve().name, folder / KEY
    try:
        manifest = Manifest.read(folder / "site.toml")
    except ConfigError as error:
        yield Finding(place, "site.toml", "problem", str(error))
        return
    place = manifest.name
    if not manifest.rehearsal and is_operators_copy(folder):
        yield _operators_copy(place, key, public)
        return
    if not key.exists():
        told = f"not made yet: fed-distill sites join {folder}"
        yield Finding(place, f"key {KEY}", "problem", told)
        return
    yield checks.secret(place, key)
    yield checks.site_key(place, key, public)
    yield _noise_finding(manifest, public is None)
    yield checks.certificate(place, folder / "ca.crt")
    if there:
        address, authority = manifest.server.address, folder / "ca.crt"
        server, *more = _reached(place, address, authority)
        yield from (server, *more)
        if public is None and server.state == "ok":
            yield door(place, address, authority, "have the operator close it")
    yield checks.installed(place, manifest.server.versions)
    yield checks.app(place, manifest.server.app)
    try:
        merchants = manifest.read_data().merchants
    except FedDistillError as error:
        yield Finding(place, "data", "problem", str(error))
        return
    rows = sum(len(merchant.train) for merchant in merchants.values())
    told = f"{checks.counted(len(merchants), 'merchant')}, {checks.counted(rows, 'training example')}"
    yield Finding(place, "data", "ok", told)
    partly, paid, rules = bool(manifest.data.merchants), manifest.ledgers, manifest.limits.rules
    yield checks.ledgers(place, paid, merchants, partly, answered(paid))
    yield checks.limits(place, rules.methods, rules.imports, manifest.limits.merchants, merchants, rules.texts)


def _operators_copy(place: str, key: Path, public: Path | None) -> Finding:
    """Check a site's folder at the operator. ``public``: location of the site's key once it is admitted."""
    if key.exists():
        told = f"the operator has it, but only the site may: create another at the site, and remove {key}"
        return Finding(place, f"key {key.name}", "problem", told)
    if public is None or public.exists():
        return Finding(place, f"key {key.name}", "ok", "admitted; everything else is checked at the site")
    told = "not admitted: run `fed-distill sites join` at the site and send its line to `fed-distill sites admit`"
    if list((public.parent.with_name("revoked")).glob(f"{place}.*.pub")):
        told = "revoked: to admit the site again, run `fed-distill sites join . --new-keys` there"
    return Finding(place, f"key {key.name}", "warning", told)


def _reached(place: str, address: str, authority: Path) -> Iterator[Finding]:
    """Check that the server answers; if so, compare the clocks."""
    server = checks.server(place, address, authority)
    yield server
    if server.state == "ok":
        yield checks.clock(place, address, authority)


def _doors(address: str, control: str, authority: Path) -> Iterator[Finding]:
    """Check whether the control API is reachable from other machines: at the sites' address, or at the same host and
    the server's own port."""
    remedy = (
        "let server/start.sh listen on 127.0.0.1 alone, and publish it with server/proxy.sh (`fed-distill sites init "
        "FOLDER --overwrite` writes both, INSTRUCTIONS.md says how)"
    )
    yield door("server", address, authority, remedy)
    host, own = address.rpartition(":")[0], control.rpartition(":")[2]
    if f"{host}:{own}" != address:
        yield door("server", f"{host}:{own}", authority, remedy, published=False)


def _noise_finding(manifest: Manifest, here: bool) -> Finding:
    """Check whether the site's noise can be reproduced from the run's seed. ``here``: the check runs at the site."""
    if manifest.secret is None and manifest.rehearsal:
        told = "a rehearsal without a secret: anyone who has the run's seed can subtract its noise"
        return Finding(manifest.name, "noise", "warning", told)
    if manifest.secret is None:
        return checks.checked(manifest.name, "noise", manifest.read_secret)
    path = manifest.folder / manifest.secret
    if not here and not path.exists():
        return Finding(manifest.name, "noise", "ok", "a secret that the site will create")
    known = checks.checked(manifest.name, "noise", lambda: f"a secret of {len(manifest.read_secret())} characters")
    kept = checks.secret(manifest.name, path)
    if kept.state == "problem":
        return kept
    return known if manifest.rehearsal else checks.made_here(known, manifest.folder, path)
