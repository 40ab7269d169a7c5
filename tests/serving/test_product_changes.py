"""Products are added, replaced and deleted while the service runs: saved, seen by all workers, and by permission."""

import contextlib
import errno
import fcntl
import json
import os
import threading

import numpy as np
import pytest

from fed_distill.serving import index_files, product_changes
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import load_index, save_index
from fed_distill.serving.runtime import load_exported
from tests.serving.services import TITLES, config_of, serving, until
from tests.serving.test_service_openapi import key_of

HEADERS = {"authorization": "Bearer fdk_test-key"}
PRODUCTS = [Product(f"p{place}", title) for place, title in enumerate(TITLES)]


@pytest.fixture(scope="module")
def student(exported):
    return load_exported(exported("two-tower")[1])


@pytest.fixture
def folder(student, tmp_path):
    """An index of four products."""
    save_index(ProductIndex.build(student, PRODUCTS), tmp_path / "index", student.digest)
    return tmp_path / "index"


@pytest.fixture
def config(exported, folder):
    keys = [key_of("operator", ["index", "search", "rank"])]
    return config_of(exported("two-tower")[1], index=folder, keys=keys, limits={"titles": 5, "products": 6})


@contextlib.contextmanager
def started(config):
    with serving(config) as client:
        client.headers.update(HEADERS)
        yield client


def put(client, **titles):
    products = [{"id": id, "title": title} for id, title in titles.items()]
    return client.put("/products", json={"products": products})


def delete(client, *ids):
    return client.post("/products/delete", json={"products": list(ids)})


def found(client, query="usb hub"):
    """Ids and titles that a search for all products finds."""
    hits = client.post("/search", json={"query": query, "k": 100}).json()["hits"]
    return {hit["id"]: hit["title"] for hit in hits}


def saved(folder, student):
    return load_index(folder, student, student.digest)


def test_a_change_is_answered_searched_and_saved_like_an_index_built_of_the_products(config, folder, student):
    with started(config) as client:
        serving_before = client.app.state.students.current()
        changed = put(client, p1="blue kettle  3 l", new="usb cable for jane.doe@example.org")
        assert changed.json() == {"added": 1, "replaced": 1, "deleted": 0, "products": 5}
        assert delete(client, "p0", "unknown", "p0").json() == {"added": 0, "replaced": 0, "deleted": 1, "products": 4}
        shown = found(client)
        ranked = client.post("/rank", json={"query": "kettle", "products": ["new", "p1"]})
        gone = client.post("/rank", json={"query": "kettle", "products": ["p0"]})
        assert client.app.state.students.current() is serving_before  # with its cached vectors
    expected = {"p2": TITLES[2], "p3": TITLES[3], "p1": "blue kettle 3 l", "new": "usb cable for [email]"}
    assert shown == expected
    assert (ranked.status_code, gone.status_code) == (200, 422)
    read = saved(folder, student)
    twin = ProductIndex.build(student, [Product(*one) for one in expected.items()])
    assert len(read) == 4
    np.testing.assert_allclose(read.vectors(list(expected)), twin.vectors(list(expected)), atol=1e-6)
    assert [hit[:2] for hit in read.search("usb hub")] == [hit[:2] for hit in twin.search("usb hub")]


def test_a_change_again_changes_nothing_more(config, folder):
    """A proxy may send a request again whose answer was lost."""
    with started(config) as client:
        assert put(client, new="usb cable").json() == {"added": 1, "replaced": 0, "deleted": 0, "products": 5}
        assert put(client, new="usb cable").json() == {"added": 0, "replaced": 1, "deleted": 0, "products": 5}
        assert delete(client, "new").json()["deleted"] == 1
        before = (folder / "index.json").read_bytes()
        assert delete(client, "new").json() == {"added": 0, "replaced": 0, "deleted": 0, "products": 4}
    assert (folder / "index.json").read_bytes() == before  # nothing was written


def test_all_products_can_go_and_come_back(config):
    with started(config) as client:
        assert delete(client, *(product.id for product in PRODUCTS)).json()["products"] == 0
        assert found(client) == {}
        assert put(client, one="usb hub").json()["products"] == 1
        assert found(client) == {"one": "usb hub"}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            {"products": [{"id": "a", "title": "x"}, {"id": "secret", "title": "y"}, {"id": "secret", "title": "z"}]},
            "2]",
        ),
        ({"products": [{"id": "a", "title": "x"}, {"id": "b", "title": "secret " * 60}]}, "products[1] has"),
        ({"products": [{"id": "a", "title": "x"}, {"id": "b", "title": " \t"}]}, "products[1] is empty"),
        ({"products": [{"id": "", "title": "x"}]}, "products.0.id"),
        ({"products": [{"id": "secret" * 50, "title": "x"}]}, "products.0.id"),
        ({"products": [{"id": 5, "title": "x"}]}, "products.0.id"),
        ({"products": [{"id": "a"}]}, "products.0.title"),
        ({"products": [{"id": "a", "title": "x", "secret": 1}]}, "a key"),
        ({"products": []}, "products"),
        ({"products": [{"id": str(n), "title": "x"} for n in range(6)]}, "at most 5"),
        ({"products": [{"id": str(n), "title": "x"} for n in range(3)]}, "limits.products"),
        ({}, "products"),
    ],
)
def test_a_wrong_body_changes_nothing(config, folder, body, problem):
    before = sorted(path.name for path in folder.iterdir())
    with started(config) as client:
        answer = client.put("/products", json=body)
        assert answer.status_code == 422 and problem in answer.json()["detail"], answer.text
        assert "secret" not in answer.text
        assert set(found(client)) == {product.id for product in PRODUCTS}
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("escape", [r"\ud800", r"\udfff x"])
def test_half_a_character_is_refused(config, escape):
    with started(config) as client:
        for product in (f'{{"id": "{escape}", "title": "x"}}', f'{{"id": "x", "title": "{escape}"}}'):
            answer = client.put(
                "/products", content=f'{{"products": [{product}]}}', headers={"content-type": "application/json"}
            )
            assert answer.status_code == 422
        assert put(client, **{"\u2028 \x00": "usb \x00 hub"}).status_code == 200


def test_only_a_key_with_the_scope_changes_an_index(config, exported, folder):
    keys = [key_of("shop", ["rank", "search", "admin", "metrics", "score", "explain"])]
    with started(config_of(exported("two-tower")[1], index=folder, keys=keys)) as client:
        assert put(client, new="usb").status_code == delete(client, "p0").status_code == 403
        assert client.put("/products", json={}, headers={"authorization": "Bearer other"}).status_code == 401
    with started(config_of(exported("two-tower")[1], index=folder)) as client:  # without keys
        assert put(client, new="usb").status_code == delete(client, "p0").status_code == 404
        assert not [path for path in client.get("/openapi.json").json()["paths"] if "products" in path]
        assert set(found(client)) == {product.id for product in PRODUCTS}


def test_without_an_index_and_with_a_graph_nothing_is_changed(exported, student, tmp_path):
    export, keys = exported("two-tower")[1], [key_of("operator", ["index"])]
    with started(config_of(export, keys=keys)) as client:
        assert "service.index" in put(client, new="usb").json()["detail"]
    save_index(ProductIndex.build(student, PRODUCTS, "usearch"), tmp_path / "graph", student.digest)
    with started(config_of(export, keys=keys, index=tmp_path / "graph")) as client:
        answer = put(client, new="usb")
        assert answer.status_code == 422 and "usearch" in answer.json()["detail"]


def test_changes_of_two_services_at_once_are_all_kept(config, folder, student):
    """Two applications on one folder, as two workers: each reads what the other has saved."""
    limits = config.limits.model_copy(update={"products": 1000})
    config, problems = config.model_copy(update={"limits": limits}), []
    with started(config) as one, started(config) as two:

        def change(client, name):
            for number in range(8):
                for answer in (put(client, **{f"{name}{number}": f"usb {name}"}), delete(client, f"p{number}")):
                    if answer.status_code != 200:
                        problems.append(answer.text)

        threads = [threading.Thread(target=change, args=(one, "a")), threading.Thread(target=change, args=(two, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        expected = {f"{name}{number}" for name in "ab" for number in range(8)}
        for client in (one, two):
            until(lambda client=client: set(found(client)) == expected)
    assert len(saved(folder, student)) == 16


def test_a_change_waits_for_another_process_and_then_asks_to_try_again(config, folder, monkeypatch):
    monkeypatch.setattr(product_changes, "_WAIT_SECONDS", 0.0)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with started(config) as client:
        refused = put(client, new="usb")
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        monkeypatch.setattr(product_changes, "_WAIT_SECONDS", 60.0)
        threading.Timer(0.2, os.close, [held]).start()
        assert put(client, new="usb").status_code == 200


def test_a_full_disk_and_a_damaged_index_change_nothing_and_name_no_folder(config, folder, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with started(config) as client:
        before = sorted(path.name for path in folder.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(index_files.np, "save", full)
            answers = [put(client, new="usb")]
        assert sorted(path.name for path in folder.iterdir()) == before
        content = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**content, "student": "another"}))
        answers.append(put(client, new="usb"))
        until(lambda: client.get("/ready").json()["refused"] == ["index"])
        for answer in answers:
            assert answer.status_code == 503 and answer.json()["error"] == "not_ready"
            assert str(folder) not in answer.text
        assert set(found(client)) == {product.id for product in PRODUCTS}  # the one before goes on
        (folder / "index.json").write_text(json.dumps(content))
        until(lambda: client.get("/ready").json()["refused"] == [])
        assert put(client, new="usb").status_code == 200
    assert "disk is full" in caplog.text and "of another student" in caplog.text
