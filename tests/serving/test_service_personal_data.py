"""What requests say of people is in no log at any level, in no output, no metric and no error.

The client of these tests runs in the same process, so its loggers are silent.
"""

import json
import logging
import socket

import httpx
import pytest

from fed_distill.serving.api_keys import key_hash
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import save_index
from fed_distill.serving.service_files import SCOPES, write_serve_file
from fed_distill.serving.student import load_student
from tests.serving.processes import answer_of, served
from tests.serving.services import TITLES, config_of, serving

MAIL, PHONE, CARD = "jane.doe@example.org", "+49 170 1234567", "4111 1111 1111 1111"
TEXT = f"{MAIL} {PHONE} {CARD}"
FRAGMENTS = ("jane.doe", "jane%2Edoe", "170 1234567", "1701234567", "4111 1111", "4111111111111111")
KEY = "fdk_test-key"
_CLIENT = ("httpx", "httpcore")
_SILENT = logging.CRITICAL + 1

BODIES = {
    "/score": [{"texts": [TEXT], "pairs": [TEXT]}, {"texts": TEXT}, {"texts": [TEXT], "pairs": [TEXT] * 2}],
    "/rank": [
        {"query": TEXT, "titles": [TEXT, MAIL]},
        {"query": TEXT, "titles": [TEXT], "session": TEXT},
        {"query": TEXT, "titles": [TEXT], "session": TEXT * 9},
        {"query": TEXT, "products": [MAIL]},
        {"query": TEXT, "products": ["p1", CARD]},
        {"query": TEXT * 9, "titles": ["x"]},
        {"query": "x", "titles": [TEXT * 9]},
        {"query": "x", "titles": [TEXT, 4111111111111111]},
        {"query": 4111111111111111, "titles": [MAIL]},
        {"query": TEXT, "titles": {MAIL: PHONE}},
        {"query": TEXT, "titles": ["x"], MAIL: 1},
        {"query": TEXT, "titles": ["x"], "session": [MAIL]},
        [TEXT],
        TEXT,
        {TEXT: TEXT},
    ],
    "/recommend": [{"history": [TEXT], "titles": [TEXT]}, {"history": TEXT, "titles": [MAIL]}],
    "/search": [{"query": TEXT}, {"query": TEXT, "k": MAIL}, {"query": TEXT, "k": 4111111111111111}, {"query": [MAIL]}],
    "/products/delete": [
        {"products": [CARD, "p4"]},
        {"products": [MAIL] * 2},
        {"products": MAIL},
        {"products": [TEXT * 9]},
    ],
    "/explain": [{"query": TEXT, "title": TEXT}, {"query": MAIL, "title": [PHONE]}, {"query": TEXT * 9, "title": "x"}],
}


@pytest.fixture
def client(exported, tmp_path):
    """Everything that a service may have, with a key of all scopes."""
    trained, export = exported("two-tower")
    student = load_student(trained)
    products = [Product(f"p{place}", title) for place, title in enumerate(TITLES)]
    save_index(ProductIndex.build(student, products), tmp_path / "index", student.digest)
    key = {"name": "shop", "sha256": key_hash(KEY), "scopes": SCOPES}
    canary = {"student": export, "share": 0.5, "trained": trained, "index": tmp_path / "index"}
    with serving(config_of(export, canary=canary, keys=[key], index=tmp_path / "index", trained=trained)) as found:
        found.headers["authorization"] = f"Bearer {KEY}"
        yield found


def assert_nothing_of(fragments, text):
    assert [fragment for fragment in fragments if fragment in text] == []


def requests(client):
    """Send personal data in each part of a request, and return the answers."""
    for path, bodies in BODIES.items():
        for body in bodies:
            yield client.post(path, json=body)
    for products in (
        [{"id": "new", "title": TEXT}],  # a search finds it, masked
        [{"id": MAIL, "title": TEXT}] * 2,
        [{"id": CARD, "title": TEXT * 9}],
        [{"id": PHONE, "title": " "}],
        [{"id": TEXT * 9, "title": "x"}],
        [{"id": MAIL, "title": [PHONE], CARD: 1}],
        MAIL,
    ):
        yield client.put("/products", json={"products": products})
    good = {"query": TEXT, "titles": [TEXT]}
    quoted = f"?mail={MAIL}&phone={PHONE}"
    yield client.post(f"/rank{quoted}", json=good)
    yield client.post("/rank", content=f'{{"query": "{TEXT}", {MAIL}', headers={"content-type": "application/json"})
    yield client.post("/rank", content=TEXT, headers={"content-type": f"text/{MAIL}"})
    for name in ("user-agent", "cookie", "referer", "origin", "x-forwarded-for", "x-request-id", "host", "from"):
        yield client.post("/rank", json=good, headers={name: TEXT})
    for given in (
        MAIL,
        PHONE,
        "1701234567",
        "4111111111111111" * 2,
        "41111111-1111-1111-0000-170123456700",
        "a" * 32 + MAIL,
    ):
        yield client.post("/rank", json=good, headers={"x-request-id": given})
    for given in (f"Bearer {MAIL}", f"Basic {CARD}", TEXT):
        yield client.post("/rank", json=good, headers={"authorization": given})
    for path in (f"/{MAIL}", f"/rank/{MAIL}", f"/page/student/{MAIL}", f"/page/{MAIL}", f"/health/{MAIL}{quoted}"):
        yield client.get(path)
    yield client.request(f"GET{MAIL}", "/rank")


def test_nothing_personal_is_logged_counted_or_answered(client, caplog, capfd):
    for name in _CLIENT:
        caplog.set_level(_SILENT, logger=name)
    with caplog.at_level(1):
        answers = list(requests(client))
        before = [answer.status_code for answer in answers]
        for student in client.app.state.students._served.values():
            student._clean = None  # an error that nobody has foreseen, while a text is at hand
            student._explainer.explain = None
        broken = [client.post(path, json=bodies[0]) for path, bodies in BODIES.items()]
        broken.append(client.put("/products", json={"products": [{"id": MAIL, "title": TEXT}]}))
    metrics = client.get("/metrics").text
    assert {200, 401, 404, 405, 422} == set(before)
    assert 500 in {answer.status_code for answer in broken}
    assert any("POST /rank 422" in record.getMessage() for record in caplog.records)
    formatted = "\n".join(logging.Formatter("%(message)s %(args)s").format(record) for record in caplog.records)
    assert "Traceback" in formatted or "unforeseen" in formatted
    assert_nothing_of(FRAGMENTS, formatted)
    assert_nothing_of(FRAGMENTS, "".join(capfd.readouterr()))
    assert_nothing_of(FRAGMENTS, metrics)
    for answer in (*answers, *broken):
        assert_nothing_of(FRAGMENTS, repr(dict(answer.headers)))
        assert_nothing_of(FRAGMENTS, answer.text)
        assert_nothing_of(FRAGMENTS, json.dumps(answer.json()) if answer.text else "")


def raw_requests(key):
    """Requests that clients of Python do not send: malformed, smuggled, in other encodings; with their statuses."""
    head = f"POST /rank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    typed = f"{head}Content-Type: application/json\r\n"
    body = json.dumps({"query": TEXT, "titles": [TEXT]})
    hidden = f"GET /{MAIL} HTTP/1.1\r\nHost: x\r\n\r\n"
    framed = f"{typed}Content-Length: {len(body)}\r\n"
    yield f"{framed}\r\n{body}", b"HTTP/1.1 200"
    yield f"{framed}X-Mail: {MAIL}\r\n folded: {CARD}\r\n\r\n{body}", None
    yield f"{framed}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}", b"HTTP/1.1 400"
    yield f"{typed}Transfer-Encoding: {MAIL}\r\n\r\n{body}", b"HTTP/1.1 400"
    yield f"{typed}Transfer-Encoding: chunked\r\n\r\n{MAIL}\r\n{body}\r\n0\r\n\r\n", b"HTTP/1.1 400"
    yield f"{typed}Content-Length: {CARD}\r\n\r\n{body}", b"HTTP/1.1 400"
    yield f"{framed}{MAIL}: x\r\n\r\n{body}", b"HTTP/1.1 400"
    yield f"{framed}X: {MAIL}\x00{CARD}\r\n\r\n{body}", b"HTTP/1.1 400"
    yield f"GET /{MAIL} {PHONE} HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"
    yield f"{MAIL} /rank HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"
    yield f"GET /rank {MAIL}\r\n\r\n", b"HTTP/1.1 400"
    yield f"GET http://{MAIL}/rank HTTP/1.1\r\nHost: {MAIL}\r\nConnection: close\r\n\r\n", b"HTTP/1.1 401"
    yield f"GET /rank HTTP/1.1\r\nHost: x\r\nUpgrade: {MAIL}\r\nConnection: upgrade, close\r\n\r\n", b"HTTP/1.1 401"


def test_nothing_personal_leaves_a_process_that_is_attacked(exported, tmp_path):
    export = exported("two-tower")[1]
    key = write_serve_file(tmp_path / "service", export)
    path = tmp_path / "service" / "serve.toml"
    path.write_text(path.read_text().replace("[[key]]", "[limits]\nbody_seconds = 0.5\n\n[[key]]"))
    with served(tmp_path / "service") as (_, (host, port), lines):
        for number, (sent, status) in enumerate(raw_requests(key)):
            with socket.create_connection((host, port)) as connection:
                connection.settimeout(60)
                connection.sendall(sent.encode())
                answer = answer_of(connection)
            assert status is None or answer.startswith(status), (number, sent, answer)
            assert b"500" not in answer[:20]
            assert answer.count(b"HTTP/1.1") == 1, (number, answer)  # nothing was read as a second request
            assert_nothing_of(FRAGMENTS, answer.decode())
        headers = {"authorization": f"Bearer {key}"}
        metrics = httpx.get(f"http://{host}:{port}/metrics", headers=headers).text
    assert_nothing_of(FRAGMENTS, metrics)
    text = "".join(lines)
    assert "POST /rank 200" in text
    assert_nothing_of((*FRAGMENTS, key), text)
