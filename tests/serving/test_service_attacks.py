"""Hostile requests get the right 4xx in one shape, and nothing that they say reaches a log."""

import asyncio
import gzip
import json
import logging
import string

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_distill.serving.api_keys import key_hash
from fed_distill.serving.service import build_service
from tests.serving.services import TITLES, config_of, serving

JSON = {"content-type": "application/json"}
GOOD = {"query": "usb", "titles": ["hub"]}


@pytest.fixture(scope="module")
def client(exported):
    with serving(config_of(exported("two-tower")[1], limits={"body_bytes": 20_000, "titles": 50})) as found:
        yield found


def assert_refused(answer, status, error):
    """Assert the status and the shape of an error."""
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert set(answer.json()) == {"error", "detail", "request_id"}
    assert "\n" not in answer.json()["detail"]
    return answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe{}",
        b'{"query": "\xff", "titles": ["x"]}',
        b"[" * 19_000,
        b'{"query":' * 2_000,
        b'{"query": ' + b"9" * 10_000 + b', "titles": ["x"]}',
        b'{"query": NaN, "titles": ["x"]}',
        b'{"query": "a", "titles": [NaN, Infinity]}',
        b'{"query": "a", "titles": "x"}',
        b'{"query": "a", "titles": []}',
        b'{"query": "a", "titles": [null]}',
        b'{"query": "a", "titles": [["x"]]}',
        b'{"query": 1, "titles": ["x"]}',
        b'{"query": true, "titles": ["x"]}',
        b'{"query": "", "titles": ["x"]}',
        b'{"query": " \\n\\t ", "titles": ["x"]}',
        b'{"query": "\\ud800", "titles": ["x"]}',
        b'{"query": "a", "titles": ["x"], "admin": true}',
        b'{"query": "a", "titles": ["x"], "\\ud800\\r\\nX: 1": 1}',
        b'{"query": "a", "titles": ["x"], "session": ""}',
        b'{"query": "a", "titles": ["x"], "products": ["../../etc/passwd"]}',
        b'{"query": "a", "products": ["../../etc/passwd"]}',
        b'{"query": "a", "titles": ["' + b"x" * 301 + b'"]}',
        json.dumps({"query": "a", "titles": ["x"] * 51}).encode(),
    ],
)
def test_a_wrong_body_is_invalid(client, body):
    assert_refused(client.post("/rank", content=body, headers=JSON), 422, "invalid")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "a\u00a0b", ""]
)
def test_what_a_web_page_can_send_without_a_preflight_is_refused(client, kind):
    headers = {"content-type": kind.encode("latin-1")}
    assert_refused(client.post("/rank", content=json.dumps(GOOD), headers=headers), 422, "invalid")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "cp037"])
def test_a_body_in_another_encoding_is_refused(client, encoding):
    headers = {"content-type": f"application/json; charset={encoding}"}
    assert_refused(client.post("/rank", content=json.dumps(GOOD).encode(encoding), headers=headers), 422, "invalid")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_not_expanded(client, coding):
    """Nothing is allocated for what it would become."""
    bomb = gzip.compress(json.dumps({"query": "x" * 10_000_000, "titles": ["y"]}).encode())
    assert len(bomb) < 20_000
    headers = {**JSON, "content-encoding": coding}
    assert_refused(client.post("/rank", content=bomb, headers=headers), 422, "invalid")


@pytest.mark.parametrize("number", ["1e400", "-1", "0", "1001", "9" * 400, "1.5", "10.0", "true", '"10"', "1e1", "-0"])
def test_a_count_is_a_whole_number_within_its_bounds(client, number):
    body = f'{{"query": "usb", "k": {number}}}'
    assert_refused(client.post("/search", content=body, headers=JSON), 422, "invalid")


@pytest.mark.parametrize("id", ["../../p0", "..\\p0", "/etc/passwd", "p0\x00", "%2e%2e/p0", "\u202ep0", "a" * 257, ""])
def test_an_id_names_a_product_and_never_a_file(client, id):
    refused = client.post("/rank", json={"query": "usb", "products": [id]})
    assert_refused(refused, 422, "invalid")
    assert not id or id not in refused.json()["detail"]


def test_of_a_key_that_occurs_twice_the_last_counts(client):
    body = b'{"query": 1, "titles": ["x"], "query": "a"}'
    assert client.post("/rank", content=body, headers=JSON).status_code == 200
    assert_refused(client.post("/rank", content=body.replace(b'"a"', b"2"), headers=JSON), 422, "invalid")


def test_control_characters_are_cleaned_as_in_training(client):
    given = client.post("/rank", json={"query": "usb\r\n\thub\x1f", "titles": ["red\u2028 kettle\x85", "a\x00b"]})
    plain = client.post("/rank", json={"query": "usb hub", "titles": ["red kettle", "a\x00b"]})
    assert given.status_code == 200
    assert given.json() == plain.json()


def test_a_large_body_is_refused_however_it_is_sent(client):
    large = json.dumps({"query": "x" * 1_000_000, "titles": ["y"]}).encode()
    assert_refused(client.post("/rank", content=large, headers=JSON), 413, "too_large")

    def chunks():
        yield from (large[start : start + 1000] for start in range(0, len(large), 1000))

    assert_refused(client.post("/rank", content=chunks(), headers=JSON), 413, "too_large")
    for length in ("-1", "1e3", "9" * 30, "0x10", ""):
        answer = client.post("/rank", content=b"{}", headers={**JSON, "content-length": length})
        assert_refused(answer, 413, "too_large")


def asked(app, *messages, headers=((b"host", b"localhost"),)):
    """Answer of the application to the parts of a body, as the status and the parts that it sent."""

    async def run():
        left, sent = list(messages), []

        async def receive():
            return left.pop(0) if left else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/rank", "query_string": b"", "headers": list(headers)}
        await app({**scope, "http_version": "1.1", "scheme": "http", "raw_path": b"/rank"}, receive, send)
        return sent

    return asyncio.run(run())


def test_a_body_that_does_not_arrive_ends_the_request(exported):
    app = build_service(config_of(exported("two-tower")[1], limits={"body_seconds": 0.05}))
    sent = asked(app, {"type": "http.request", "body": b'{"query"', "more_body": True})
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"] == "timeout"


def test_a_client_that_has_gone_gets_nothing(exported):
    app = build_service(config_of(exported("two-tower")[1]))
    assert asked(app, {"type": "http.disconnect"}) == []


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/rank/..%2f..%2fetc", "/rank//", "/rank/", "/%00", "/health%0d%0aX: 1"]
)
def test_other_paths_do_not_exist(client, path):
    assert_refused(client.get(path), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "INVENTED"])
def test_other_methods_are_refused(client, method):
    assert_refused(client.request(method, "/rank"), 405, "method_not_allowed")


def test_no_origin_is_allowed(client):
    answer = client.post("/rank", json=GOOD, headers={"origin": "https://shop.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"]
)
def test_a_page_under_another_name_cannot_use_a_service_without_keys(client, host):
    assert_refused(client.post("/rank", json=GOOD, headers={"host": host}), 403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080"])
def test_this_machine_can_use_it(client, host):
    assert client.post("/rank", json=GOOD, headers={"host": host}).status_code == 200


def test_an_open_service_behind_a_proxy_has_any_name(exported):
    with serving(config_of(exported("two-tower")[1], open=True)) as opened:
        assert opened.post("/rank", json=GOOD, headers={"host": "shop.example"}).status_code == 200


KEY = "fdk_test-key"


@pytest.fixture(scope="module")
def guarded(exported):
    key = {"name": "shop", "sha256": key_hash(KEY), "scopes": ["rank"], "rate": 1e-6, "burst": 40}
    with serving(config_of(exported("two-tower")[1], keys=[key])) as found:
        yield found


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {key_hash(KEY)}",
        "Bearer " + "x" * 10_000,
        "Bearer \u00e9\u00ff",
        KEY,
    ],
)
def test_without_a_valid_key_nothing_is_read(guarded, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = assert_refused(guarded.post("/rank", content=b"{", headers=headers), 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_elsewhere_does_not_count(guarded):
    for answer in (
        guarded.post(f"/rank?key={KEY}&authorization=Bearer%20{KEY}", json=GOOD),
        guarded.post("/rank", json=GOOD, headers={"cookie": f"authorization=Bearer {KEY}", "x-api-key": KEY}),
        guarded.post("/rank", json=GOOD, headers=[("authorization", f"Bearer {KEY}")] * 2),
        guarded.get("/metrics"),
        guarded.post("/admin/reload"),
    ):
        assert_refused(answer, 401, "unauthorized")


def test_a_key_has_scopes_and_a_rate(guarded):
    headers = {"authorization": f"bearer {KEY}"}
    for path in ("/score", "/search", "/explain", "/recommend", "/admin/reload"):
        assert_refused(guarded.post(path, json=GOOD, headers=headers), 403, "forbidden")
    assert_refused(guarded.get("/metrics", headers=headers), 403, "forbidden")
    statuses = [guarded.post("/rank", json=GOOD, headers=headers).status_code for _ in range(40)]
    assert statuses == [200] * 40
    answer = assert_refused(guarded.post("/rank", json=GOOD, headers=headers), 429, "rate_limited")
    assert int(answer.headers["retry-after"]) > 900_000
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200


def test_logs_have_no_text_no_key_and_no_query_string(exported, caplog):
    key = {"name": "shop", "sha256": key_hash(KEY), "scopes": ["rank", "score"]}
    headers = {"authorization": f"Bearer {KEY}"}
    with caplog.at_level(logging.DEBUG), serving(config_of(exported("two-tower")[1], keys=[key])) as client:
        client.post("/rank?q=sekret1", json={"query": "sekret2", "titles": ["sekret3"]}, headers=headers)
        client.post("/rank", json={"query": "sekret4", "titles": 5, "sekret5": 1}, headers=headers)
        client.post("/score", json={"texts": ["sekret6"]}, headers=headers)
        client.post("/sekret7", headers={"authorization": "Bearer sekret8", "user-agent": "sekret9"})
        client.app.state.students.current().predict = None  # an error that nobody has foreseen
        broken = client.post("/score", json={"texts": ["sekretA"], "pairs": ["sekretB"]}, headers=headers)
    assert_refused(broken, 500, "internal")
    ours = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("fed_distill", "uvicorn"))
    )
    assert "POST /rank 200" in ours
    assert "POST /rank 422" in ours
    assert "POST other 404" in ours
    assert "key=shop" in ours
    assert "TypeError" in ours
    assert "sekret" not in ours
    assert KEY not in ours


def test_too_many_requests_at_once_are_refused(exported):
    app = build_service(config_of(exported("two-tower")[1], limits={"in_flight": 2}))
    app.state.students.load()

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await asyncio.gather(*(client.post("/rank", json=GOOD) for _ in range(20)))

    statuses = [answer.status_code for answer in asyncio.run(run())]
    assert set(statuses) == {200, 503}


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("texts", "pairs", "query", "titles", "products", "history", "session", "k", "candidates", "title")
NEAR = st.dictionaries(
    st.sampled_from(FIELDS), st.lists(st.text(max_size=8), max_size=3) | st.text(max_size=8) | ANY_JSON
)
PATHS = st.sampled_from(["/score", "/rank", "/recommend", "/search", "/explain"])


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, body=ANY_JSON | NEAR)
def test_no_body_is_answered_by_a_server_error(client, path, body):
    answer = client.post(path, content=json.dumps(body), headers=JSON)
    assert answer.status_code in (200, 422), (path, body, answer.text)
    if answer.status_code == 422:
        assert set(answer.json()) == {"error", "detail", "request_id"}


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=PATHS,
    body=st.binary(max_size=200),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "authorization", "accept", "range", "expect", "x-forwarded-for"]),
        st.text(string.printable.strip(), max_size=20),
    ),
)
def test_no_bytes_and_headers_are_answered_by_a_server_error(client, path, body, headers):
    assert client.post(path, content=body, headers=headers).status_code < 500


def test_the_service_works_after_all_that(client):
    assert client.post("/rank", json={"query": "usb", "titles": TITLES}).status_code == 200
