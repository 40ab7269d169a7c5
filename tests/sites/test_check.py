"""``fed-distill sites check`` finds what would stop the first round, and says what to do."""

import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.node_pb2 import NodeInfo

from clients.manifest import Manifest
from fed_distill.errors import ConfigError
from fed_distill.privacy.accounting import Spend
from fed_distill.privacy.ledger import Charge, Ledgers
from fed_distill.results.files import as_file_name
from fed_distill.sites import checks
from fed_distill.sites.identity import make_authority, make_server_certificate, make_site_key
from fed_distill.sites.registered import door, presences, statuses


class Answer(BaseHTTPRequestHandler):
    """Answers as Flower's server does to who asks for nothing of its own: not found, and what time it is there.

    statuses: what it says of sites, by the public key, in a message as Flower's own.
    """

    statuses: ClassVar[dict[bytes, str]] = {}

    def do_HEAD(self):
        self.send_error(404)

    def do_POST(self):
        assert self.path == "/v1/control/list-nodes"
        nodes = [NodeInfo(public_key=key, status=status) for key, status in self.statuses.items()]
        answer = ListNodesResponse(nodes_info=nodes).SerializeToString()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def listening(folder, answer=Answer):
    """A TLS server with the certificate in ``folder``; gives its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")

    class Quiet(HTTPServer):
        allow_reuse_address = True

        def get_request(self):
            plain, address = super().get_request()
            return context.wrap_socket(plain, server_side=True), address

        def handle_error(self, request, client_address):
            """A client that hangs up is no fault of the server."""

    with Quiet(("127.0.0.1", 0), answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"localhost:{server.server_address[1]}"
        server.shutdown()


def pem(path):
    """A public key in OpenSSH's format as Flower's server has it."""
    key = serialization.load_ssh_public_key(path.read_bytes())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def checked(command, deployment, monkeypatch):
    """A function that checks the deployment, or a part of it, while its server runs; gives exit code and output.

    statuses: of sites, by name, where they are not all there.
    """
    monkeypatch.setenv("COLUMNS", "400")

    def check(part=".", **statuses):
        said = {"north": "online", "south": "online", "west": "online", **statuses}
        keys = {pem(deployment / "server" / "keys" / f"{name}.pub"): status for name, status in said.items() if status}
        with listening(deployment / "server", type("Knowing", (Answer,), {"statuses": keys})) as address:
            for file in (deployment / "address", *deployment.glob("sites/*/site.toml")):
                file.write_text(file.read_text(encoding="utf-8").replace("localhost:1", address), encoding="utf-8")
            done = command("check", deployment / part)
            for file in (deployment / "address", *deployment.glob("sites/*/site.toml")):
                file.write_text(file.read_text(encoding="utf-8").replace(address, "localhost:1"), encoding="utf-8")
        return done.exit_code, done.output

    return check


def lines(output, state):
    return [line for line in output.splitlines() if f"  {state} " in line]


def test_a_whole_deployment_and_a_site_alone_pass(checked):
    code, output = checked()
    assert (code, lines(output, "problem")) == (0, [])
    assert len(lines(output, "ok")) == 7 + 3 * (1 + 9)
    assert all("whoever knows the run's seed can subtract its noise" in line for line in lines(output, "warning"))
    assert len(lines(output, "warning")) == 3
    assert output.splitlines()[-1] == "no problems, 3 warnings"
    code, output = checked("sites/north")
    assert (code, len(lines(output, "ok"))) == (0, 9)


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
    assert "site south" in south and "registered, and not there now" in south
    assert "site west" in west and "registered, and never there yet" in west


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
        assert "does not tell which sites it knows" in found.detail


def test_a_site_is_warned_that_finds_the_door_open(deployment):
    class Closed(Answer):
        def do_POST(self):
            self.send_error(403)

    class Broken(Answer):
        def do_POST(self):
            self.send_error(502)

    for answer, state, told in (
        (Answer, "warning", "can start runs there"),
        (Closed, "ok", "lets nobody here"),
        (Broken, "warning", "cannot be seen"),
    ):
        with listening(deployment / "server", answer) as address:
            found = door("north", address, deployment / "ca" / "ca.crt")
        assert found.state == state and told in found.detail
    gone = door("north", address, deployment / "ca" / "ca.crt")
    assert gone.state == "warning" and "cannot be seen" in gone.detail


def test_a_proxy_of_the_machine_is_not_asked(deployment, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with listening(deployment / "server") as address:
        assert statuses(address, deployment / "ca" / "ca.crt") == {}


def test_so_many_are_told_in_words():
    assert [checks.counted(number, "problem") for number in (0, 1, 2)] == ["no problems", "1 problem", "2 problems"]


def test_a_public_key_that_is_none_is_a_problem(deployment):
    with listening(deployment / "server") as address:
        path = deployment / "server" / "keys" / "south.pub"
        path.write_text("ssh-rsa nonsense")
        found = {one.what: one for one in presences(address, deployment / "ca" / "ca.crt", path.parent)}
    assert found["site south"].state == "problem" and "is not a public key" in found["site south"].detail


def test_a_server_by_another_authority_is_not_trusted(checked, deployment, tmp_path):
    make_authority(tmp_path)
    (deployment / "sites" / "north" / "ca.crt").write_bytes((tmp_path / "ca.crt").read_bytes())
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1
    assert line.startswith("north") and "is not to be trusted" in line


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
    assert found.state == "problem" and "is this clock right?" in found.detail


@pytest.mark.parametrize(
    ("ahead", "problem"),
    [(0.0, ""), (4.0, ""), (8.0, "ahead of"), (-290.0, ""), (-400.0, "behind"), (7200.0, "ahead of")],
)
def test_a_clock_that_flower_would_not_believe_is_found(deployment, ahead, problem):
    """The tolerances are those of Flower's server for the time that a site signs: 5 s ahead, 305 s behind."""
    with listening(deployment / "server") as address:
        found = checks.clock("north", address, deployment / "ca" / "ca.crt", now=lambda: time.time() + ahead)
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
    assert found.state == "problem" and "put both from one deployment" in found.detail


def test_a_secret_that_others_may_read_is_found(checked, deployment):
    key = deployment / "sites" / "south" / "site.key"
    key.chmod(0o640)
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1
    assert line.startswith("south") and f"its mode is 0640: chmod 600 {key}" in line


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
    assert code == 1 and line.startswith("north") and "ledger of 'hooli', who is no merchant of this site" in line
    ledgers.of("hooli").path.unlink()
    path = ledgers.of(own).path
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2'))
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and "the check fails" in line
    path.unlink()
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and f"answers of '{as_file_name(own)}' are kept" in line and "its ledger is gone" in line


def test_another_key_than_the_server_knows_is_found(checked, deployment):
    make_site_key(deployment / "sites" / "north")
    code, output = checked()
    (line,) = lines(output, "problem")
    assert code == 1 and "is not its public half" in line
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
    assert (code, len(lines(output, "warning"))) == (0, 2) and "a secret that the site will make itself" in output
    assert not (folder / "noise.key").exists()
    code, output = checked("sites/north")
    assert (code, len(lines(output, "warning"))) == (0, 0) and "a secret of 64 characters" in output
    (folder / "noise.key").write_text("short")
    assert "has 5 characters" in lines(checked()[1], "problem")[0]
    (folder / "noise.key").chmod(0o644)
    assert "its mode is 0644" in lines(checked()[1], "problem")[0]


def test_what_was_handed_out_is_no_problem_at_the_operators(checked, deployment):
    (deployment / "sites" / "north" / "site.key").unlink()
    (deployment / "sites" / "north" / "data.jsonl").unlink()
    code, output = checked()
    assert (code, lines(output, "problem")) == (0, []) and "handed out" in output
    assert checked("sites/north")[0] == 1


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"fedavg-kd", ', '"fedavg-dk", ', "unknown method 'fedavg-dk'; did you mean fedavg-kd"),
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
    assert found.state == "problem" and "is not the key of" in found.detail
    key.write_text("no key", encoding="utf-8")
    assert "is not a private key" in checks.server_key("server", key, deployment / "server" / "server.crt").detail
