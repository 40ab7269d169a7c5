"""What `sites check` finds in a folder: certificates, keys, permissions, the server, versions, data and ledgers."""

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
    """All findings, of a site's folder or of the operator's with all sites' folders in it.

    ConfigError for a folder that is neither.
    """
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
    reached, control = list(_reached("server", address, authority)), Admission(folder).control
    yield from reached
    there = reached[0].state == "ok"
    if there:
        yield from _doors(address, control, authority)
        yield from presences(control, authority, folder / "server" / "keys")
    for site in sorted(path.parent for path in (folder / "sites").glob("*/site.toml")):
        yield from _site_findings(site, folder / "server" / "keys" / f"{site.name}.pub", there)


def _site_findings(folder: Path, public: Path | None = None, there: bool = True) -> Iterator[Finding]:
    """``public``: the operator's copy of the site's public key. ``there``: whether the server is worth another try."""
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
    yield checks.limits(place, rules.methods, rules.imports, manifest.limits.merchants, merchants)


def _operators_copy(place: str, key: Path, public: Path | None) -> Finding:
    """Of a site's folder as it is handed out. ``public``: where the site's key is once it is admitted."""
    if key.exists():
        told = f"the operator has it, and nobody may but the site: have its people make another, and remove {key}"
        return Finding(place, f"key {key.name}", "problem", told)
    if public is None or public.exists():
        return Finding(place, f"key {key.name}", "ok", "admitted; everything else is checked at the site")
    told = "not admitted yet: its people run `fed-distill sites join`, and send a line for `fed-distill sites admit`"
    if list((public.parent.with_name("revoked")).glob(f"{place}.*.pub")):
        told = "revoked: to let it in again, its people make new keys (`fed-distill sites join . --new-keys`)"
    return Finding(place, f"key {key.name}", "warning", told)


def _reached(place: str, address: str, authority: Path) -> Iterator[Finding]:
    """Whether the server answers; if it does, whether its clock is like this one."""
    server = checks.server(place, address, authority)
    yield server
    if server.state == "ok":
        yield checks.clock(place, address, authority)


def _doors(address: str, control: str, authority: Path) -> Iterator[Finding]:
    """Whether others than this machine can reach what is for the operator alone: by the address that sites know, or by
    the same host at the server's own port."""
    remedy = (
        "let server/start.sh listen on 127.0.0.1 alone, and publish it with server/proxy.sh (`fed-distill sites init "
        "FOLDER --overwrite` writes both, INSTRUCTIONS.md says how)"
    )
    yield door("server", address, authority, remedy)
    host, own = address.rpartition(":")[0], control.rpartition(":")[2]
    if f"{host}:{own}" != address:
        yield door("server", f"{host}:{own}", authority, remedy, published=False)


def _noise_finding(manifest: Manifest, here: bool) -> Finding:
    """Whether the site's noise can be taken off by who knows the run's seed. ``here``: the site looks itself."""
    if manifest.secret is None and manifest.rehearsal:
        told = "a rehearsal without a secret: whoever knows the run's seed can subtract its noise"
        return Finding(manifest.name, "noise", "warning", told)
    if manifest.secret is None:
        return checks.checked(manifest.name, "noise", manifest.read_secret)
    path = manifest.folder / manifest.secret
    if not here and not path.exists():
        return Finding(manifest.name, "noise", "ok", "a secret that the site will make itself")
    known = checks.checked(manifest.name, "noise", lambda: f"a secret of {len(manifest.read_secret())} characters")
    kept = checks.secret(manifest.name, path)
    if kept.state == "problem":
        return kept
    return known if manifest.rehearsal else checks.made_here(known, manifest.folder, path)
