"""``fed-distill sites init``: no secret and no program for a site, nothing overwritten unasked, sites added later."""

import os
import re
import stat
import subprocess
import tomllib

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from cryptography.x509 import DNSName, SubjectAlternativeName

from fed_distill.deploy.bundle import bundle_hash
from fed_distill.deploy.identity import is_signed_by, public_half, read_certificate
from fed_distill.errors import ConfigError
from fed_distill.merchant.manifest import Manifest

SECRETS = {"ca/ca.key", "server/server.key"} | {f"sites/{name}/site.key" for name in ("north", "south", "west")}


HANDED_OUT = {"INSTRUCTIONS.md", "ca.crt", "site.toml", "proxy.json"}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def invited(command, experiment, tmp_path):
    """Folder of a deployment for sites elsewhere, as its operator hands their folders out."""
    file, folder = tmp_path / "experiment.toml", tmp_path / "invited"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    command("init", folder, "--sites", "north,south", "--host", "fed.example.org", "--experiment", file)
    return folder


def test_a_site_is_handed_data_and_neither_a_secret_nor_a_program(invited):
    for site in invited.glob("sites/*"):
        assert set(contents(site)) == HANDED_OUT
        assert not any(path.stat().st_mode & 0o111 for path in site.iterdir())
    secret = {name for name, content in contents(invited).items() if b"PRIVATE KEY" in content}
    assert secret == {"ca/ca.key", "server/server.key"}
    assert not list((invited / "server" / "keys").iterdir())


def test_secrets_of_a_rehearsal_are_for_their_owner_alone_and_in_no_other_folder(deployment):
    files = contents(deployment)
    assert {name for name, content in files.items() if b"PRIVATE KEY" in content} == SECRETS
    for name in SECRETS:
        assert stat.S_IMODE((deployment / name).stat().st_mode) == 0o600
        middle = len(files[name].splitlines()) // 2
        body = files[name].splitlines()[middle]
        assert [other for other, content in files.items() if body in content] == [name]
    for site in deployment.glob("sites/*"):
        assert stat.S_IMODE(site.stat().st_mode) == 0o700
        assert stat.S_IMODE((site / "data.jsonl").stat().st_mode) == 0o600


def test_certificates_chain_and_name_the_host(command, tmp_path):
    assert command("init", tmp_path / "made", "--sites", "a", "--host", "fed.example.org").exit_code == 0
    authority = read_certificate(tmp_path / "made" / "ca" / "ca.crt")
    certificate = read_certificate(tmp_path / "made" / "server" / "server.crt")
    assert is_signed_by(certificate, authority)
    names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    assert names.get_values_for_type(DNSName) == ["fed.example.org", "localhost"]
    assert (tmp_path / "made" / "sites" / "a" / "ca.crt").read_bytes() == (
        tmp_path / "made" / "ca" / "ca.crt"
    ).read_bytes()


def test_openssl_verifies_the_server_for_its_host_only(command, tmp_path):
    command("init", tmp_path, "--host", "fed.example.org")
    verify = ["openssl", "verify", "-CAfile", tmp_path / "ca" / "ca.crt", "-purpose", "sslserver", "-verify_hostname"]
    for host, right in (("fed.example.org", True), ("other.example.org", False)):
        done = subprocess.run([*verify, host, tmp_path / "server" / "server.crt"], capture_output=True)
        assert (done.returncode == 0) is right


def test_the_server_has_the_public_half_of_each_sites_key(deployment):
    for site in deployment.glob("sites/*"):
        public = (deployment / "server" / "keys" / f"{site.name}.pub").read_bytes()
        assert public == public_half(site / "site.key").rstrip() + f" {site.name}\n".encode()
        assert load_ssh_public_key(public).curve.name == "secp384r1"


def test_running_it_again_adds_a_site_and_changes_nothing_else(command, deployment):
    before = contents(deployment)
    assert command("init", deployment, "--sites", "north,east").exit_code == 0
    after = contents(deployment)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {f"sites/east/{name}" for name in HANDED_OUT - {"proxy.json"}}
    assert Manifest.read(deployment / "sites" / "east" / "site.toml").server.address == "localhost:1"


def test_overwriting_is_asked_for_and_never_touches_keys(command, deployment):
    (deployment / "server" / "start.sh").write_text("mine")
    before = contents(deployment)
    command("init", deployment, "--sites", "north")
    assert contents(deployment) == before
    command("init", deployment, "--sites", "north", "--overwrite")
    after = contents(deployment)
    assert b"flower-superlink" in after["server/start.sh"]
    assert {name: after[name] for name in SECRETS} == {name: before[name] for name in SECRETS}


def test_overwriting_keeps_what_a_site_has_filled_in(command, deployment):
    path = deployment / "sites" / "north" / "site.toml"
    path.write_text(path.read_text(encoding="utf-8") + "# our own\n", encoding="utf-8")
    filled_in = path.read_bytes()
    done = command("init", deployment, "--sites", "north", "--overwrite")
    assert "# our own" not in path.read_text(encoding="utf-8")
    assert path.with_name("site.toml.old").read_bytes() == filled_in
    assert "site.toml.old" in done.output.replace("\n", "")
    assert "site.toml.old" not in command("init", deployment, "--sites", "north", "--overwrite").output
    assert path.with_name("site.toml.old").read_bytes() == filled_in


def test_another_experiments_proxy_set_is_written_over_the_one_before_and_nothing_else_is(
    command, deployment, experiment, tmp_path
):
    before, file = contents(deployment), tmp_path / "other.toml"
    arguments = ("init", deployment, "--sites", "north,south,west", "--experiment", file)
    file.write_text(experiment.to_toml(), encoding="utf-8")
    assert "no files written" in command(*arguments).output
    file.write_text(experiment.with_changes({"data.proxy_size": 30}).to_toml(), encoding="utf-8")
    assert "3 files written" in command(*arguments).output
    after = contents(deployment)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"sites/{name}/proxy.json" for name in ("north", "south", "west")}
    (deployment / "sites" / "west" / "proxy.json").write_text("torn", encoding="utf-8")
    assert "1 file written" in command(*arguments).output
    assert contents(deployment) == after


def test_a_new_certificate_is_by_the_same_authority(command, deployment):
    before = contents(deployment)
    assert "restart the server" in command("init", deployment, "--renew").output
    after = contents(deployment)
    assert {name for name in after if after[name] != before[name]} == {"server/server.key", "server/server.crt"}
    assert is_signed_by(
        read_certificate(deployment / "server" / "server.crt"), read_certificate(deployment / "ca" / "ca.crt")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sites", "a,../b"], r"not '\.\./b'"),
        (["--sites", "a,a"], "site 'a' is named twice"),
        (["--host", "fed example"], "--host requires a name"),
        (["--rehearse"], "add --experiment"),
    ],
)
def test_a_mistake_is_named(command, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        command("init", tmp_path / "made", *arguments)


def test_another_address_needs_another_folder(command, deployment):
    with pytest.raises(ConfigError, match="is of a server at localhost:1: use another folder"):
        command("init", deployment, "--host", "fed.example.org")


def test_what_is_written_can_be_read_by_those_it_is_for(deployment, invited):
    for script in (*deployment.glob("**/*.sh"), *invited.glob("**/*.sh")):
        assert subprocess.run(["sh", "-n", script]).returncode == 0
        assert stat.S_IMODE(script.stat().st_mode) == 0o755
    composed = {
        folder: yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))["services"]
        for folder in (deployment / "server", invited / "server", deployment / "sites" / "north")
    }
    assert [set(services) for services in composed.values()] == [{"server"}, {"server", "proxy"}, {"site"}]
    for folder, services in composed.items():
        for service in services.values():
            assert (folder / (service.get("command") or service["entrypoint"])).is_file()
    for site in deployment.glob("sites/*"):
        manifest = Manifest.read(site / "site.toml")
        assert (manifest.name, manifest.limits.rules.methods) == (site.name, ("fedavg-kd",))
        assert manifest.limits.default.max_epsilon == 8.0


def test_a_site_file_pins_the_installed_app_and_bounds_what_a_request_may_cost(invited):
    manifest = Manifest.read(invited / "sites" / "north" / "site.toml")
    assert manifest.server.app == bundle_hash()
    rules = manifest.limits.rules
    assert (rules.max_model_mib, rules.max_steps, rules.max_seconds, rules.max_memory_gib) == (256, 100_000, 3600, 16)
    assert rules.imports == ()


@pytest.mark.parametrize(
    ("host", "port", "inner", "published"),
    [
        ("localhost", 8000, 8000, False),
        ("127.0.0.1", 8000, 8000, False),
        ("fed.example.org", 8000, 8001, True),
        ("fed.example.org", 443, 8001, True),
        ("2001:db8::1", 65535, 8001, True),
    ],
)
def test_the_server_listens_to_its_own_machine_alone(command, tmp_path, host, port, inner, published):
    command("init", tmp_path, "--host", host, "--port", port)
    server = tmp_path / "server"
    assert re.search(rf'--host "\$\{{LISTEN:-127.0.0.1\}}" --port {inner} ', (server / "start.sh").read_text())
    connection = tomllib.loads((server / "flwr" / "config.toml").read_text(encoding="utf-8"))["superlink"]["prod"]
    assert connection == {"address": f"127.0.0.1:{inner}", "root-certificates": str(server / "ca.crt")}
    assert (server / "nginx.conf").exists() is (server / "proxy.sh").exists() is published
    if published:
        proxy = (server / "nginx.conf").read_text(encoding="utf-8")
        locations = re.findall(r"location (\S+) \{([^}]*)\}", proxy)
        assert [where for where, _ in locations] == ["/v1/fleet/", "/"]
        assert f"proxy_pass https://127.0.0.1:{inner}/v1/fleet/;" in locations[0][1]
        assert locations[1][1].split() == ["return", "403;"] and proxy.count("proxy_pass ") == 1
        assert re.findall(r"(?m)^ +listen (\S+) ", proxy) == [f"{port}", *([f"[::]:{port}"] if ":" in host else [])]


def test_a_relative_folder_does_from_anywhere(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("init", "made", "--host", "fed.example.org", "--sites", "a")
    monkeypatch.chdir("/")
    for name in ("INSTRUCTIONS.md", "server/flwr/config.toml", "server/fed-distill-proxy.service"):
        text = (tmp_path / "made" / name).read_text(encoding="utf-8")
        paths = re.findall(r"[\w./-]*made/[\w./-]*", text)
        assert paths and all(path.startswith(f"{tmp_path}/made/") for path in paths)
    outcome = subprocess.run(
        [tmp_path / "made" / "server" / "start.sh"],
        env={"PATH": f"{_stub(tmp_path, 'flower-superlink')}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert outcome.stdout.split() == ["in", str(tmp_path / "made" / "server")]


def _stub(folder, program):
    """A folder with a program that only says where it was started."""
    path = folder / "stubs" / program
    path.parent.mkdir()
    path.write_text('#!/bin/sh\necho in "$PWD"\n')
    path.chmod(0o755)
    return path.parent


def test_a_site_without_a_secret_takes_part_in_nothing_unless_it_is_a_rehearsal(deployment):
    path = deployment / "sites" / "north" / "site.toml"
    rehearsed = path.read_text(encoding="utf-8")
    path.write_text(rehearsed.replace("rehearsal = true", "rehearsal = false"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"site\.toml has no secret, .* add secret = \"noise.key\""):
        Manifest.read(path).read_secret()
    path.write_text(rehearsed, encoding="utf-8")


def test_the_texts_leave_nothing_unfilled(deployment, invited):
    for folder in (deployment, invited):
        for name in ("INSTRUCTIONS.md", "server/fed-distill-server.service", "sites/north/INSTRUCTIONS.md"):
            assert "$" not in (folder / name).read_text(encoding="utf-8")
    assert "$" not in (deployment / "sites" / "north" / "fed-distill-site.service").read_text(encoding="utf-8")


def test_the_instructions_of_a_rehearsal_begin_with_it(deployment, invited):
    text = (deployment / "INSTRUCTIONS.md").read_text(encoding="utf-8")
    section = text[text.index("## Rehearse") : text.index("## Set up")]
    programs = re.findall(rf"{deployment.absolute()}/(server/\w+\.sh)", section)
    assert programs == ["server/start.sh", "server/register.sh"]
    assert all(os.access(deployment / program, os.X_OK) for program in programs)
    assert f"PORT=9101 {deployment.absolute()}/sites/NAME/start.sh" in section
    assert os.access(deployment / "sites" / "north" / "start.sh", os.X_OK)
    assert "Rehearse" not in (invited / "INSTRUCTIONS.md").read_text(encoding="utf-8")


def test_parts_of_ones_own_are_in_the_rules_of_the_sites(command, experiment, tmp_path):
    own = "fed_distill.methods.fedavg:FedAvg"
    file, folder = tmp_path / "own.toml", tmp_path / "made"
    changed = experiment.with_changes(
        {"federation.method": own, "federation.options": {}, "controls": ["server", "local"]}
    )
    file.write_text(changed.to_toml(), encoding="utf-8")
    out = command("init", folder, "--sites", "a,b", "--experiment", file, "--rehearse")
    rules = Manifest.read(folder / "sites" / "a" / "site.toml").limits.rules
    assert (rules.imports, rules.methods) == ((own,), (own, "local"))
    assert f"sites may import {own}: install the package at each site, too" in out.output
    assert "was kept" not in out.output
    file.write_text(
        experiment.with_changes({"federation.method": "fedmd", "federation.options": {}}).to_toml(), encoding="utf-8"
    )
    out = command("init", folder, "--sites", "a,b", "--experiment", file)
    assert out.output.count("was kept and does not allow fedmd: add to methods in its [limits.rules]") == 2
