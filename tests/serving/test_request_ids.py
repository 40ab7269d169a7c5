"""Each request has an id: in its answer, in an error's body and in its line of the log."""

import logging
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.serving.api_keys import key_hash
from fed_distill.serving.request_ids import request_id
from tests.serving.services import TITLES, config_of, serving

BODY = {"query": "usb hub", "titles": TITLES}
PLAIN = "0123456789abcdef0123456789abcdef"
OWN = re.compile("[0-9a-f]{32}")


@given(st.uuids().filter(lambda one: re.search("[a-f]", one.hex)))
def test_a_uuid_is_taken_with_and_without_hyphens(one):
    for text in (str(one), one.hex):
        assert request_id([(b"host", b"x"), (b"x-request-id", text.encode())]) == text


@given(st.binary(max_size=64).filter(lambda one: not re.search(rb"^[0-9a-f-]+$", one)))
def test_anything_else_is_replaced(text):
    assert OWN.fullmatch(request_id([(b"x-request-id", text)]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        PLAIN.upper(),
        PLAIN[:-1],
        PLAIN + "0",
        PLAIN + "\n",
        f" {PLAIN}",
        "4111111111111111" * 2,
        "41111111-1111-1111-0000-491701234567",
        f"{PLAIN[:8]}-{PLAIN[8:]}",
        "deadbeef",
        "jane.doe@example.org",
    ],
)
def test_what_only_resembles_an_id_is_replaced(text):
    found = request_id([(b"x-request-id", text.encode())])
    assert OWN.fullmatch(found) and found != text


def test_two_ids_are_none_and_new_ones_differ():
    assert request_id([(b"x-request-id", PLAIN.encode())] * 2) != PLAIN
    assert len({request_id([]) for _ in range(100)}) == 100


def test_answers_errors_and_the_log_have_the_id(exported, caplog):
    """Of routes, pages, what the gate refuses, what a route refuses, and what nobody has foreseen."""
    key = {"name": "shop", "sha256": key_hash("k"), "scopes": ["rank"]}
    caplog.set_level(logging.INFO, "fed_distill.serving")
    with serving(config_of(exported("two-tower")[1], keys=[key])) as client:
        headers = {"authorization": "Bearer k"}
        asked = [
            ("POST", "/rank", BODY, 200),
            ("POST", "/rank", {"query": "x"}, 422),
            ("POST", "/rank", {"query": "x", "titles": ["y" * 400]}, 422),
            ("POST", "/score", BODY, 403),
            ("GET", "/rank", None, 405),
            ("GET", "/nothing", None, 404),
            ("GET", "/page/nothing.js", None, 404),
            ("GET", "/", None, 200),
            ("GET", "/ready", None, 200),
        ]
        seen = []
        for method, path, body, status in asked:
            one = str(uuid.uuid4())
            answer = client.request(method, path, json=body, headers={**headers, "x-request-id": one})
            seen.append((answer, status, one))
        client.app.state.students.current()._clean = None
        broken = client.post("/rank", json=BODY, headers={**headers, "x-request-id": PLAIN})
        unnamed = client.post("/rank", json=BODY)
    seen += [(broken, 500, PLAIN), (unnamed, 401, unnamed.headers["x-request-id"])]
    assert OWN.fullmatch(unnamed.headers["x-request-id"])
    lines = [record.getMessage() for record in caplog.records if record.name == "fed_distill.serving.access"]
    for answer, status, one in seen:
        assert answer.status_code == status, answer.text
        assert answer.headers.get_list("x-request-id") == [one]
        assert [line for line in lines if line.endswith(f" id={one}") and f" {status} " in line]
        if status >= 400:
            assert answer.json()["request_id"] == one
    assert f"unforeseen TypeError in request {PLAIN}" in caplog.text
