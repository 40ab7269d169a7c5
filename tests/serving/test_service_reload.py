"""A new student, a canary and new keys come into service while requests are answered."""

import os
import re
import shutil
import threading

import pytest

from fed_distill.serving.api_keys import key_hash
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import save_index
from fed_distill.serving.service import VERSION_HEADER
from fed_distill.serving.service_config import read_serve_config
from fed_distill.serving.service_files import add_key, write_serve_file
from fed_distill.serving.student import load_student
from tests.serving.services import TITLES, config_of, replace_export, serving, until

BODY = {"query": "usb hub", "titles": TITLES}


@pytest.fixture
def export(exported, tmp_path):
    """An export, to be changed."""
    return shutil.copytree(exported("two-tower")[1], tmp_path / "export")


def versions(client):
    return client.get("/ready").json()["students"]


def test_no_request_fails_while_a_new_student_comes(export, exported):
    failures, seen, stop = [], set(), threading.Event()
    with serving(config_of(export)) as client:

        def load():
            while not stop.is_set():
                answer = client.post("/rank", json=BODY)
                seen.add(answer.headers.get(VERSION_HEADER))
                if answer.status_code != 200:
                    failures.append(answer.text)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        first = versions(client)["student"]
        replace_export(export, exported("lstm")[1])
        until(lambda: versions(client)["student"] != first and len(seen) == 2)
        stop.set()
        for thread in threads:
            thread.join()
        second = versions(client)["student"]
        metrics = client.get("/metrics").text
    assert failures == []
    assert seen == {first, second}
    assert f'version="{second}"' in metrics
    assert f'student_info{{role="student",variant="float32",version="{first}"}}' not in metrics


@pytest.mark.parametrize("damage", ["graph", "conformance", "tolerance", "difference", "none"])
def test_a_bad_student_is_refused_and_the_old_one_goes_on(export, damage, caplog):
    with serving(config_of(export)) as client:
        first = client.post("/rank", json=BODY)
        if damage == "graph":
            (export / "float32" / "head.onnx").write_bytes(b"none")
        elif damage == "conformance":  # every probability is said to be 0
            path = export / "conformance.json"
            path.write_text(path.read_text().replace('"probabilities": [\n    0.', '"probabilities": [\n    -0.'))
        elif damage == "tolerance":
            path = export / "conformance.json"
            path.write_text(path.read_text().replace('"tolerance": 1e-05', '"tolerance": Infinity'))
            assert "Infinity" in path.read_text()
        elif damage == "difference":  # which other variants are allowed
            path = export / "export.json"
            path.write_text(re.sub(r'"difference": [\d.e-]+', '"difference": Infinity', path.read_text()))
            assert "Infinity" in path.read_text()
        else:
            export.rename(export.with_name("elsewhere"))  # at once: half a removal would be refused first
        until(lambda: client.get("/ready").json()["refused"] == ["student"])
        later = client.post("/rank", json=BODY)
        metrics = client.get("/metrics").text
        told = client.get("/ready").text
    assert later.json() == first.json()
    assert later.headers[VERSION_HEADER] == first.headers[VERSION_HEADER]
    assert 'fed_distill_reloads_total{result="refused",what="student"} 1.0' in metrics
    assert str(export) not in told
    assert "student refused" in caplog.text


def test_a_student_that_is_mended_comes_into_service(export):
    path = export / "float32" / "head.onnx"
    whole = path.read_bytes()
    with serving(config_of(export)) as client:
        path.write_bytes(whole[:-1])
        until(lambda: client.get("/ready").json()["refused"])
        path.write_bytes(whole)
        until(lambda: not client.get("/ready").json()["refused"])
        assert client.post("/rank", json=BODY).status_code == 200


def test_a_canary_answers_its_share_and_a_session_keeps_its_student(export, exported):
    other = exported("lstm")[1]
    with serving(config_of(export, canary={"student": other, "share": 0.3})) as client:
        until(lambda: len(versions(client)) == 2)
        canary = versions(client)["canary"]
        bodies = [{**BODY, "session": f"s{number}"} for number in range(400)]
        answers = [client.post("/rank", json=body).headers[VERSION_HEADER] for body in bodies]
        again = [client.post("/rank", json={**body, "query": "x"}).headers[VERSION_HEADER] for body in bodies[:50]]
        bare = {client.post("/rank", json=BODY).headers[VERSION_HEADER] for _ in range(20)}
    assert 80 <= answers.count(canary) <= 160  # 120 expected; the hash is fixed, so that this is not left to chance
    assert again == answers[:50]
    assert len(bare) == 1


def test_keys_are_made_used_and_replaced_without_a_restart(export, tmp_path):
    folder = tmp_path / "service"
    first = write_serve_file(folder, export)
    text = (folder / "serve.toml").read_text()
    assert first not in text
    assert key_hash(first) in text
    assert (folder / "serve.toml").stat().st_mode & 0o077 == 0
    (folder / "serve.toml").write_text(text.replace("[service]", "[service]\nwatch_seconds = 0.02"))
    config = read_serve_config(folder)
    with serving(config, folder) as client:

        def status(key, path="/rank"):
            return client.post(path, json=BODY, headers={"authorization": f"Bearer {key}"}).status_code

        assert status(first) == 200
        second = add_key(folder, "shop", ["rank"])
        until(lambda: status(second) == 200)
        assert status(second, "/admin/reload") == 403
        written = (folder / "serve.toml").read_text()
        (folder / "serve.toml").write_text(written.replace(key_hash(first), "0" * 64))
        until(lambda: status(first) == 401)
        assert status(second) == 200
        (folder / "serve.toml").write_text("[service\n")
        until(lambda: client.get("/ready").json()["refused"] == ["keys"])
        assert status(second) == 200
        (folder / "serve.toml").write_text(written.partition("[[key]]")[0])
        until(lambda: status(second) == 401)  # without keys it is closed, not open


def test_an_operator_reloads_by_a_request(export, tmp_path, exported):
    key = {"name": "operator", "sha256": key_hash("k"), "scopes": ["admin"]}
    with serving(config_of(export, keys=[key], watch_seconds=3600)) as client:
        first = versions(client)["student"]
        replace_export(export, exported("lstm")[1])
        answer = client.post("/admin/reload", headers={"authorization": "Bearer k"}).json()
        assert answer["students"]["student"] not in (first, None)
        assert answer["problems"] == {}
        shutil.rmtree(export)
        answer = client.post("/admin/reload", headers={"authorization": "Bearer k"}).json()
        assert "export" in answer["problems"]["student"]


def test_a_release_of_export_index_and_run_is_switched_by_one_rename(exported, tmp_path):
    """``current`` links to a folder with all three; a rename of another link to it switches them together."""
    for name, kind in (("first", "two-tower"), ("second", "static")):
        trained, export = exported(kind)
        shutil.copytree(trained, tmp_path / name / "run")
        shutil.copytree(export, tmp_path / name / "exported")
        student = load_student(trained)
        save_index(ProductIndex.build(student, [Product("1", TITLES[0])]), tmp_path / name / "index", student.digest)
    current = tmp_path / "current"
    current.symlink_to("first")
    config = config_of(current / "exported", index=current / "index", trained=current / "run")
    with serving(config) as client:
        first = versions(client)["student"]
        (tmp_path / "next").symlink_to("second")
        (tmp_path / "next").rename(current)
        until(lambda: versions(client)["student"] != first)
        explained = client.post("/explain", json={"query": "usb hub", "title": TITLES[0]})
        found = client.post("/search", json={"query": "usb hub", "k": 1})
        assert (explained.status_code, found.status_code) == (200, 200)
        score = load_student(exported("static")[0]).rank("usb hub", TITLES[:1]).scores[0]
        assert explained.json()["score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("late", ["index/vectors-*.npy", "index/products-*.arrow", "run/model.safetensors"])
def test_a_copy_whose_last_file_comes_late_is_loaded(exported, tmp_path, late):
    """The rest of the copy was refused before, and does not change any more."""
    trained, export = exported("two-tower")
    student = load_student(trained)
    run, index = shutil.copytree(trained, tmp_path / "run"), tmp_path / "index"
    save_index(ProductIndex.build(student, [Product("1", TITLES[0])]), index, student.digest)
    (path,) = tmp_path.glob(late)
    with serving(config_of(export, index=index, trained=run)) as client:
        content = path.read_bytes()
        path.unlink()
        os.utime(path.with_name("index.json" if path.parent == index else "student.json"), ns=(0, 0))
        until(lambda: client.get("/ready").json()["refused"] == ["index" if path.parent == index else "student"])
        path.write_bytes(content)
        until(lambda: client.get("/ready").json()["refused"] == [])
        assert client.post("/search", json={"query": "usb hub"}).json()["hits"][0]["id"] == "1"


def test_a_reference_that_comes_late_is_loaded(export):
    loaded = 'fed_distill_reloads_total{result="loaded",what="student"} 2.0'
    with serving(config_of(export)) as client:
        assert loaded not in client.get("/metrics").text
        (export / "reference.json").write_text("{}")
        until(lambda: loaded in client.get("/metrics").text)


def test_a_run_that_is_mended_is_noticed(exported, export, tmp_path):
    """The run of another student is refused; the right one in its place is loaded without anything else changing."""
    run = shutil.copytree(exported("two-tower")[0], tmp_path / "run")
    with serving(config_of(export, trained=run)) as client:
        replace_export(export, exported("static")[1])
        until(lambda: client.get("/ready").json()["refused"] == ["student"])
        replace_export(run, exported("static")[0])
        until(lambda: not client.get("/ready").json()["refused"])
        assert client.post("/explain", json={"query": "usb hub", "title": TITLES[0]}).status_code == 200
