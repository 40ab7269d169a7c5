"""The service serves its search page to everybody, and the browser's student to keys that may rank."""

import pytest

from fed_distill.serving.api_keys import key_hash
from fed_distill.serving.export import export_student
from fed_distill.serving.page import HEADERS, page_files, student_paths
from tests.serving.services import config_of, serving


@pytest.fixture(scope="module")
def client(exported, tmp_path_factory):
    web = tmp_path_factory.mktemp("web") / "export"
    export_student(exported("two-tower")[0], web, ["float32"], quality=False, web="int8")
    keys = [
        {"name": "shop", "sha256": key_hash("s" * 40), "scopes": ["rank"]},
        {"name": "watch", "sha256": key_hash("w" * 40), "scopes": ["metrics"]},
    ]
    with serving(config_of(web, keys=keys)) as found:
        yield found


def bearer(letter):
    return {"authorization": f"Bearer {letter * 40}"}


@pytest.mark.parametrize("path", sorted(page_files()))
def test_the_page_is_public_and_may_load_nothing_else(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("path", student_paths())
def test_the_browsers_student_requires_a_key_that_may_rank(client, path):
    assert client.get(path).status_code == 401
    assert client.get(path, headers=bearer("w")).status_code == 403
    answer = client.get(path, headers=bearer("s"))
    assert answer.status_code == 200 and answer.content


@pytest.mark.parametrize("path", ["/page/student/%2e%2e%2fexport.json", "/page/x"])
def test_other_files_are_not_served(client, path):
    assert client.get(path, headers=bearer("s")).status_code in (401, 404)
    assert b"sha256" not in client.get(path, headers=bearer("s")).content


def test_an_export_without_web_files_has_the_page_alone(exported):
    with serving(config_of(exported("two-tower")[1])) as plain:
        assert plain.get("/").status_code == 200
        assert plain.get(student_paths()[0]).status_code == 404
