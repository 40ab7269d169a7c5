"""``fed-distill sites check`` finds what would stop the first round, and says what to do."""

import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.node_pb2 import NodeInfo

from fed_distill.deploy import checks
from fed_distill.deploy.bundle import bundle_hash
from fed_distill.deploy.identity import make_authority, make_server_certificate, make_site_key
from fed_distill.deploy.registered import door, nodes, presences
from fed_distill.errors import ConfigError
from fed_distill.merchant.manifest import Manifest
from fed_distill.privacy.accounting import Spend
from fed_distill.privacy.ledger import Charge, Ledgers
from fed_distill.storage.files import as_file_name


class Answer(BaseHTTPRequestHandler):
    """Answers as Flower's server does to who asks for nothing of its own: not found, and what time it is there.

    statuses: what it says of sites, by the public key, in a message as Flower's own.
    """

    statuses: ClassVar[dict[bytes, str]] = {}

    def do_HEAD(self):
        self.send_error(404)

    def do_POST(self):
        assert self.path == "/v1/control/list-nodes"
        nodes = [NodeInfo(node_id=7, public_key=key, status=status) for key, status in self.statuses.items()]
        answer = ListNodesResponse(nodes_info=nodes).SerializeToString()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def listening(folder, answer=Answer, host="localhost"):
    """A TLS server at ``host`` with the certificate in ``folder``; gives its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")

    class Quiet(HTTPServer):
        allow_reuse_address = True

        def get_request(self):
            plain, address = super().get_request()
            return context.wrap_socket(plain, server_side=True), address

        def handle_error(self, request, client_address):
            """A client that hangs up is no fault of the server."""

    with Quiet((host, 0), answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"{host}:{server.server_address[1]}"
        server.shutdown()


def pem(path):
    """A public key in OpenSSH's format as Flower's server has it."""
    key = serialization.load_ssh_public_key(path.read_bytes())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def checked(command, deployment, monkeypatch):
    """A function that checks the deployment, or a part of it, while its server runs; gives exit code and output.

    statuses: of sites, by name, where they are not all there; a key in PEM under another name: it is online too.
    """
    monkeypatch.setenv("COLUMNS", "400")

    def check(part=".", **statuses):
        keys = {status: "online" for status in statuses.values() if isinstance(status, bytes)}
        for name in ("north", "south", "west"):
            if status := statuses.get(name, "online"):
                keys[pem(deployment / "server" / "keys" / f"{name}.pub")] = status
        with listening(deployment / "server", type("Knowing", (Answer,), {"statuses": keys})) as address:
            files = (deployment / "address", *deployment.glob("sites/*/site.toml"), *deployment.glob("*/flwr/*.toml"))
            here = [("localhost:1", address), ("127.0.0.1:1", address.replace("localhost", "127.0.0.1"))]
            with replaced(files, here):
                done = command("check", deployment / part)
        return done.exit_code, done.output

    return check


@contextmanager
def replaced(files, changes):
    """Some texts in files are others for a while."""
    before = {file: file.read_text(encoding="utf-8") for file in files}
    for file, text in before.items():
        for old, new in changes:
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")
    yield
    for file, text in before.items():
        file.write_text(text, encoding="utf-8")


def lines(output, state):
    return [line for line in output.splitlines() if f"  {state} " in line]


def test_a_whole_deployment_and_a_site_alone_pass(checked):
    code, output = checked()
    assert (code, lines(output, "problem")) == (0, [])
    assert len(lines(output, "ok")) == 8 + 3 * (1 + 10)
    assert all("anyone who has the run's seed can subtract its noise" in line for line in lines(output, "warning"))
    assert len(lines(output, "warning")) == 3
    assert output.splitlines()[-1] == "no problems, 3 warnings"
    code, output = checked("sites/north")
    assert (code, len(lines(output, "ok"))) == (0, 11)


def test_an_unreachable_server_is_found(command, deployment, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    done = command("check", deployment)
    (wrong,) = lines(done.output, "problem")
    assert done.exit_code == 1 and "localhost:1 cannot be reached" in wrong
    (wrong,) = lines(command("check", deployment / "sites" / "north").output, "problem")
    assert "localhost:1 cannot be reached" in wrong


def test_sites_that_are_not_registered_or_not_there_are_found(checked):
    code, output = checked(north="", south="offline", west="registered")
    (wrong,) = lines(output, "problem")
    assert code == 1 and "site north" in wrong and "run server/register.sh" in wrong
    south, west = (line for line in lines(output, "warning") if line.startswith("server"))
    assert "site south" in south and "registered, not connected" in south
    assert "site west" in west and "registered, never connected" in west


def test_a_server_that_does_not_tell_which_sites_it_knows_is_a_warning(deployment):
    class Closed(Answer):
        def do_POST(self):
            self.send_error(403)

    class Other(Answer):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

    for answer in (Closed, Other):
        with listening(deployment / "server", answer) as address:
            keys = deployment / "server" / "keys"
            (found,) = presences(address, deployment / "ca" / "ca.crt", keys)
        assert (found.what, found.state) == ("sites", "warning")
        assert "registered sites are unknown" in found.detail


class Refusing(Answer):
    def do_POST(self):
        self.send_error(403)


class Broken(Answer):
    def do_POST(self):
        self.send_error(502)


@pytest.mark.parametrize(
    ("answer", "state", "told"),
    [(Answer, "problem", "can admit sites and start runs: shut it"), (Refusing, "ok", "denies access"),
     (Broken, "warning", "could not be checked")],
)  # fmt: skip
def test_an_open_door_is_a_problem_and_one_that_cannot_be_seen_a_warning(deployment, monkeypatch, answer, state, told):
    monkeypatch.setattr("fed_distill.deploy.registered.LOCAL", ())
    with listening(deployment / "server", answer) as address:
        found = door("north", address, deployment / "ca" / "ca.crt", "shut it")
    assert found.state == state and told in found.detail
    gone = door("north", address, deployment / "ca" / "ca.crt", "shut it")
    assert gone.state == "warning" and "could not be checked" in gone.detail
    closed = door("north", address, deployment / "ca" / "ca.crt", "shut it", published=False)
    assert closed.state == "ok" and "is not reachable" in closed.detail


@pytest.mark.parametrize("part", [".", "sites/north"])
def test_an_open_door_is_exit_code_1_at_the_operators_and_at_a_site(checked, monkeypatch, part):
    """The server answers all it is asked at the address that sites know, as it does where it listens to the world."""
    assert checked(part)[0] == 0
    monkeypatch.setattr("fed_distill.deploy.registered.LOCAL", ())
    code, output = checked(part)
    wrong = lines(output, "problem")
    assert code == 1 and [line.split()[1] for line in wrong] == ["door"]
    assert "can admit sites and start runs" in wrong[0]


def test_a_server_that_listens_to_the_world_behind_its_proxy_is_found(command, tmp_path, monkeypatch):
    """The proxy lets nobody start runs, and the server's own port of the same address does."""
    monkeypatch.setenv("COLUMNS", "400")
    command("init", tmp_path, "--host", "127.0.0.2", "--port", 1)
    with (
        listening(tmp_path / "server", Refusing, "127.0.0.2") as published,
        listening(tmp_path / "server", Answer, "0.0.0.0") as own,
    ):
        (tmp_path / "address").write_text(published, encoding="utf-8")
        config = tmp_path / "server" / "flwr" / "config.toml"
        config.write_text(config.read_text(encoding="utf-8").replace("127.0.0.1:8001", own), encoding="utf-8")
        done = command("check", tmp_path)
    doors = [line for line in done.output.splitlines() if line.split()[1:2] == ["door"]]
    assert done.exit_code == 1 and ["  ok  " in line for line in doors] == [True, False]
    assert f"127.0.0.2:{own.rpartition(':')[2]} can admit sites" in doors[1]


def test_on_one_machine_the_door_is_for_who_has_an_account_there(deployment):
    found = door("north", "localhost:1", deployment / "ca" / "ca.crt", "")
    assert found.state == "ok" and "on this machine only" in found.detail


def test_a_proxy_of_the_machine_is_not_asked(deployment, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with listening(deployment / "server") as address:
        assert nodes(address, deployment / "ca" / "ca.crt") == {}


def test_a_key_that_nobody_has_admitted_is_found_at_the_server(checked, deployment, tmp_path):
    """Somebody has found the door open before, and let in a site of his own."""
    (tmp_path / "his.pub").write_bytes(make_site_key(tmp_path))
    code, output = checked(his=pem(tmp_path / "his.pub"))
    (wrong,) = lines(output, "problem")
    assert code == 1 and "node 7" in wrong and "its key is not in server/keys" in wrong
    revoked = deployment / "server" / "revoked"
    revoked.mkdir()
    (tmp_path / "his.pub").rename(revoked / "his.pub")
    (wrong,) = lines(checked(his=pem(revoked / "his.pub"))[1], "problem")
    assert "its key was revoked but is registered at the server: run server/register.sh" in wrong


def test_so_many_are_told_in_words():
    assert [checks.counted(number, "problem") for number in (0, 1, 2)] == ["no problems", "1 problem", "2 problems"]


def test_a_public_key_that_is_none_is_a_problem(deployment):
    with listening(deployment / "server") as address:
        path = deployment / "server" / "keys" / "south.pub"
        path.write_text("ssh-rsa nonsense")
        found = {one.what: one for one in presences(address, deployment / "ca" / "ca.crt", path.parent)}
    assert found["site south"].state == "problem" and "has no elliptic curve key" in found["site south"].detail


def test_a_server_by_another_authority_is_not_trusted(checked, deployment, tmp_path):
    make_authority(tmp_path)
    (deployment / "sites" / "north" / "ca.crt").write_bytes((tmp_path / "ca.crt").read_bytes())
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1
    assert line.startswith("north") and "cannot be trusted" in line


def test_an_expired_certificate_is_found_and_one_that_ends_soon_is_a_warning(checked, deployment):
    def renewed(days_ago):
        now = datetime.now(UTC) - timedelta(days=days_ago)
        make_server_certificate(deployment / "ca", deployment / "server", "localhost", now)
        return checked()

    code, output = renewed(400)
    assert code == 1
    wrong = lines(output, "problem")
    assert "expired on" in wrong[0] and wrong[0].startswith("server")
    assert "certificate has expired" in wrong[1] and len(wrong) == 2
    code, output = renewed(380)
    assert code == 0
    assert "certificate server.crt" in lines(output, "warning")[0]


def test_a_certificate_of_tomorrow_tells_of_a_wrong_clock(deployment):
    path = deployment / "ca" / "ca.crt"
    found = checks.certificate("server", path, now=datetime.now(UTC) - timedelta(days=1))
    assert found.state == "problem" and "check the clock" in found.detail


@pytest.mark.parametrize(
    ("ahead", "problem"),
    [(0.0, ""), (4.9, ""), (5.1, "ahead of"), (-304.9, ""), (-305.1, "behind"), (7200.0, "ahead of")],
)
def test_a_clock_that_flower_would_not_believe_is_found(deployment, ahead, problem):
    """The tolerances are those of Flower's server for the time that a site signs: 5 s ahead, 305 s behind.

    Both clocks stand still; that of the server shows the half of its second on average."""
    stopped = 1_800_000_000

    class Stopped(Answer):
        def date_time_string(self, timestamp=None):
            return formatdate(stopped, usegmt=True)

    with listening(deployment / "server", Stopped) as address:
        authority = deployment / "ca" / "ca.crt"
        found = checks.clock("north", address, authority, seconds=60.0, now=lambda: stopped + 0.5 + ahead)
    assert found.state == ("problem" if problem else "ok")
    assert problem in found.detail


def test_a_server_that_tells_no_time_or_speaks_no_http_is_no_reason_to_stop(deployment):
    class Timeless(Answer):
        def date_time_string(self, timestamp=None):
            return "once upon a time"

    class Mute(Answer):
        def handle(self):
            self.wfile.write(b"220 mail.example.org ESMTP\r\n")

    for answer in (Timeless, Mute):
        with listening(deployment / "server", answer) as address:
            found = checks.clock("north", address, deployment / "ca" / "ca.crt")
        assert found.state == "warning" and "does not answer as Flower's server does" in found.detail


def test_a_certificate_by_another_authority_is_found(deployment, tmp_path):
    make_authority(tmp_path)
    found = checks.certificate("server", deployment / "server" / "server.crt", tmp_path / "ca.crt")
    assert found.state == "problem" and "use both from one deployment" in found.detail


def test_a_secret_that_others_may_read_is_found(checked, deployment):
    key = deployment / "sites" / "south" / "site.key"
    key.chmod(0o640)
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1
    assert line.startswith("south") and f"its mode is 0640: run chmod 600 {key}" in line


def test_a_missing_column_is_found(checked, deployment):
    path = deployment / "sites" / "west" / "site.toml"
    path.write_text(
        path.read_text(encoding="utf-8").replace('\nlabel = "label"', '\nlabel = "grade"'), encoding="utf-8"
    )
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1
    assert line.startswith("west") and "data.jsonl has no column 'grade'" in line


def test_a_foreign_ledger_and_a_damaged_one_are_found(checked, deployment):
    manifest = Manifest.read(deployment / "sites" / "north" / "site.toml")
    own = sorted(manifest.read_data().merchants)[0]
    charge = Charge("run", "fedmd", 0, 1, "example", "training", "a", (Spend(1.0, 0.1, 1),), 1e-3)
    ledgers = Ledgers(manifest.ledgers)
    ledgers.of(own).charge(charge)
    (manifest.ledgers / "answers" / "run" / "seed-0" / "fedmd" / as_file_name(own)).mkdir(parents=True)
    assert checked()[0] == 0
    ledgers.of("hooli").charge(charge)
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and line.startswith("north") and "ledger of 'hooli', which is not a merchant of this site" in line
    ledgers.of("hooli").path.unlink()
    path = ledgers.of(own).path
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2'))
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and "the check fails" in line
    path.unlink()
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and f"answers of '{as_file_name(own)}' are stored" in line and "its ledger is missing" in line


def test_another_key_than_the_server_knows_is_found(checked, deployment):
    make_site_key(deployment / "sites" / "north")
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and "is not its public key" in line
    assert checked("sites/north")[0] == 0  # the site alone cannot know


def test_another_release_is_a_problem_and_another_library_a_warning(checked, deployment):
    path = deployment / "sites" / "north" / "site.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('\ntorch = "', '\ntorch = "0.'), encoding="utf-8")
    code, output = checked()
    assert code == 0 and any("torch 2." in line and "the server has 0." in line for line in lines(output, "warning"))
    path.write_text(text.replace('\nflwr = "', '\nflwr = "0.'), encoding="utf-8")
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and "the server has 0." in line


def test_a_secret_for_noise_is_there_long_and_its_owners(checked, deployment):
    folder = deployment / "sites" / "north"
    text = (folder / "site.toml").read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace("# secret =", "secret ="), encoding="utf-8")
    code, output = checked()
    assert (code, len(lines(output, "warning"))) == (0, 2) and "a secret that the site will create" in output
    assert not (folder / "noise.key").exists()
    code, output = checked("sites/north")
    assert (code, len(lines(output, "warning"))) == (0, 0) and "a secret of 64 characters" in output
    (folder / "noise.key").write_text("short")
    assert "has 5 characters" in lines(checked()[1], "problem")[0]
    (folder / "noise.key").chmod(0o644)
    assert "its mode is 0644" in lines(checked()[1], "problem")[0]


def real(deployment, *names):
    """The sites are no rehearsal any more."""
    for name in names:
        path = deployment / "sites" / name / "site.toml"
        text = path.read_text(encoding="utf-8").replace("rehearsal = true ", 'secret = "noise.key" ')
        path.write_text(text, encoding="utf-8")


def test_a_folder_that_is_handed_out_is_looked_at_where_its_site_is(checked, deployment):
    real(deployment, "north", "south")
    for name in ("north", "south"):
        (deployment / "sites" / name / "site.key").unlink()
        (deployment / "sites" / name / "data.jsonl").unlink()
    (deployment / "server" / "keys" / "south.pub").rename(deployment / "server" / "keys" / "gone")
    code, output = checked(south="")
    assert (code, lines(output, "problem")) == (0, []) and "everything else is checked at the site" in output
    (not_yet,) = (line for line in lines(output, "warning") if line.startswith("south"))
    assert "not admitted" in not_yet


def test_a_private_key_that_the_operator_has_is_a_problem_but_in_a_rehearsal(checked, deployment):
    assert checked()[0] == 0
    real(deployment, "north")
    for part in (".", "sites/north"):
        code, output = checked(part)
        (wrong,) = lines(output, "problem")
        assert code == 1 and wrong.startswith("north") and "the operator has it, but only the site may" in wrong


def test_a_site_that_has_not_joined_is_told_to_and_gets_no_key_by_being_looked_at(command, deployment, tmp_path):
    real(deployment, "north")
    site = tmp_path / "north"
    (deployment / "sites" / "north").rename(site)
    (site / "site.key").unlink()
    done = command("check", site)
    assert done.exit_code == 1 and "fed-distill sites join" in done.output.replace("\n", "")
    assert not (site / "noise.key").exists()


def test_another_app_than_the_pinned_one_is_a_problem(checked, deployment):
    path = deployment / "sites" / "north" / "site.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'app = "{bundle_hash()}"', f'app = "{"0" * 64}"'), encoding="utf-8")
    code, output = checked("sites/north")
    (line,) = lines(output, "problem")
    assert code == 1 and "site.toml pins 000000000000" in line and f'app = "{bundle_hash()}"' in line
    path.write_text(text.replace(f'app = "{bundle_hash()}"', ""), encoding="utf-8")
    assert checked("sites/north")[0] == 0  # the site takes its own all the same


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"fedavg-kd"', '"fedavg-dk"', "unknown method 'fedavg-dk'; did you mean fedavg-kd"),
        ('"fedavg-kd"', '"own.methods:Mine"', "allows method 'own.methods:Mine', which is missing in its imports"),
        ("imports = []", 'imports = ["nowhere.methods:Mine"]', "no package 'nowhere' is installed here"),
        ('# [limits.merchants."NAME"]', '[limits.merchants."NAME"]', "[limits.merchants] names 'NAME'"),
    ],
)
def test_limits_that_name_what_there_is_not_are_found(checked, deployment, old, new, told):
    path = deployment / "sites" / "north" / "site.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new), encoding="utf-8")
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and told in line


def test_what_the_limits_allow_is_listed(checked, deployment):
    path = deployment / "sites" / "north" / "site.toml"
    text = path.read_text(encoding="utf-8")
    opened = text.replace("imports = []", 'imports = ["pytest:Item"]').replace("texts = false", "texts = true")
    path.write_text(opened, encoding="utf-8")
    code, output = checked()
    north = next(line for line in lines(output, "ok") if line.startswith("north") and " limits " in line)
    assert code == 0
    assert "fedavg-kd" in north and "code of other packages: pytest:Item" in north
    south = next(line for line in lines(output, "ok") if line.startswith("south") and " limits " in line)
    assert "texts of training examples may be sent" in north and "texts" not in south


def test_a_broken_site_file_is_one_problem_among_others(checked, deployment):
    (deployment / "sites" / "north" / "site.toml").write_text("name = ", encoding="utf-8")
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and line.startswith("north") and "is not valid TOML" in line


def test_a_folder_that_is_no_deployment_is_a_mistake(command, tmp_path):
    with pytest.raises(ConfigError, match="is neither a deployment nor a site"):
        command("check", tmp_path)


def test_a_server_key_of_another_certificate_is_found(checked, deployment, tmp_path):
    assert checked()[0] == 0
    key = deployment / "server" / "server.key"
    make_authority(tmp_path)
    key.write_bytes((tmp_path / "ca.key").read_bytes())
    found = checks.server_key("server", key, deployment / "server" / "server.crt")
    assert found.state == "problem" and "does not match" in found.detail
    key.write_text("no key", encoding="utf-8")
    assert "is not a private key" in checks.server_key("server", key, deployment / "server" / "server.crt").detail
