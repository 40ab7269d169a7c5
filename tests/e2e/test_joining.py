"""A deployment whose sites make their own keys: a real server lets them in by one line, a later one too, and one no
more. No key but the server's is ever in the operator's folder. The proxy that publishes the server is tried where there
is an nginx."""

import os
import shutil
import socket
import ssl

import pytest
from typer.testing import CliRunner

from fed_distill.cli.main import app
from fed_distill.deploy.admission import Admission
from fed_distill.deploy.registered import NoAnswer, nodes
from fed_distill.errors import ConfigError
from tests.e2e.test_sites import Deployment, answers, free_ports, wait_until

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = pytest.mark.e2e


def sites(*arguments):
    """What ``fed-distill sites`` prints."""
    done = CliRunner().invoke(app, ["sites", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def is_online(folder, name):
    """Whether the server has the site there by the key that is admitted; False while it is too busy to answer."""
    admission = Admission(folder)
    (key,) = (key for key in admission.admitted() if key.name == name)
    try:
        return nodes(admission.control, admission.authority)[key.pem].status == "online"
    except NoAnswer:
        return False


@pytest.fixture
def deployment(tmp_path):
    """The operator's folder, its server started, with two sites invited and nobody let in."""
    (port,) = free_ports(1)
    deployment = Deployment(tmp_path / "deployment", port)
    sites("init", deployment.folder, "--sites", "north,south", "--port", port)
    try:
        deployment.start_server()
        yield deployment
    finally:
        deployment.stop()


@pytest.fixture
def arrive(deployment, tmp_path):
    """A function: a site's people get its folder, and join; gives the folder and the line that they send."""

    def join(name):
        folder = shutil.copytree(deployment.folder / "sites" / name, tmp_path / "elsewhere" / name)
        return folder, sites("join", folder).splitlines()[-1]

    return join


@pytest.fixture
def start(deployment):
    """A function: start sites by their folders, and wait until all are there; gives their processes."""

    def start(*folders):
        running = {folder.name: deployment.start_site(folder, *free_ports(1)) for folder in folders}
        for name, process in running.items():
            wait_until(lambda name=name: is_online(deployment.folder, name), process, name)
        return running

    return start


def test_sites_join_by_a_line_a_later_one_too_and_one_leaves_for_good(deployment, arrive, start):
    folder = deployment.folder
    (north, line), (south, other) = arrive("north"), arrive("south")
    assert sites("admit", folder, line).splitlines()[0] == "north: registered"
    assert sites("admit", folder, other).splitlines()[0] == "south: registered"
    running = start(north, south)

    sites("revoke", folder, "north")
    wait_until(lambda: running["north"].poll() is not None, deployment.server, "the revoked site")
    again = deployment.start_site(north, *free_ports(1))
    sites("init", folder, "--sites", "west")
    west, line_of_west = arrive("west")
    sites("admit", folder, line_of_west)
    start(west)
    wait_until(lambda: again.poll() is not None, deployment.server, "the revoked site, started again")
    assert again.returncode != 0 and "SuperNode ID" not in deployment.log("north")
    with pytest.raises(ConfigError, match="was revoked"):
        sites("admit", folder, line)
    assert sites("admit", folder).splitlines() == ["south: registered before", "west: registered before"]

    sites("admit", folder, sites("join", north, "--new-keys").splitlines()[-1])
    start(north)
    assert "no problems" in sites("check", folder)
    assert is_online(folder, "south") and is_online(folder, "west")
    secrets = [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in secrets} == {"ca.key", "server.key"}


TRICKS = (
    "/v1/control/list-nodes",
    "//v1/control/list-nodes",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes",
    "/v1/fleet/%252e%252e/control/list-nodes",
    "/v1/fleet/..;/control/list-nodes",
    "/v1/fleet/..\\control\\list-nodes",
    "/v1/control/list-nodes/../../fleet/get-run",
    "/v1/control/list-nodes#/../../fleet/get-run",
    "/v1/control/list-nodes?/v1/fleet/get-run",
    "https://127.0.0.1/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/openapi.json",
    "/",
)
HIDDEN = b"POST /v1/control/list-nodes HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.skipif(NGINX is None, reason="there is no nginx")
def test_the_proxy_shows_the_fleet_api_and_nothing_else_and_the_server_itself_is_not_reached(tmp_path):
    """127.0.0.2 is the address that sites know; by 127.0.0.1 the operator asks."""
    (port,) = free_ports(1)
    folder = tmp_path / "deployment"
    sites("init", folder, "--sites", "north", "--host", "127.0.0.2", "--port", port)
    authority, control = folder / "ca" / "ca.crt", Admission(folder).control
    deployment = Deployment(folder, int(control.rpartition(":")[2]))
    try:
        deployment.start_server()
        user = ["-g", "user root;"] if os.getuid() == 0 else []
        path = f"{os.path.dirname(NGINX)}:{deployment.environment['PATH']}"
        proxy = deployment.start("proxy", folder / "server" / "proxy.sh", *user, PATH=path)
        wait_until(lambda: answers(port, None), proxy, "proxy")
        home = shutil.copytree(folder / "sites" / "north", tmp_path / "north")
        sites("admit", folder, sites("join", home).splitlines()[-1])
        process = deployment.start_site(home, *free_ports(1))
        wait_until(lambda: is_online(folder, "north"), process, "north")
        doors = [line for line in sites("check", folder).splitlines() if line.split()[1:2] == ["door"]]
        assert len(doors) == 2 and all(" ok " in line for line in doors)
        for trick in TRICKS:
            status, *more = told(port, authority, trick, b"")
            assert status in (b"401", b"403", b"404") and not more, trick
        chunked = b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % (len(HIDDEN) + 5)
        assert told(port, authority, "/v1/fleet/get-run", chunked, b"0\r\n\r\n" + HIDDEN) == [b"400"]
    finally:
        deployment.stop()


def told(port, authority, path, headers, body=b""):
    """Statuses of all answers to one request."""
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.2", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.2") as secured,
    ):
        first = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/protobuf\r\n"
        secured.sendall(first.encode() + (headers or b"Content-Length: 0\r\n") + b"\r\n" + body)
        answer = b"".join(iter(lambda: secured.recv(65536), b""))
    return [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
