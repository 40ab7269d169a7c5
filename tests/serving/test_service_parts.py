"""Keys, settings, batches and the cache of the service, each alone."""

import asyncio
import shutil
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.errors import ConfigError
from fed_distill.serving.api_keys import KeyRing, key_hash, new_key
from fed_distill.serving.batching import MicroBatcher, Overloaded
from fed_distill.serving.service_config import KeyTable, ServeConfig, read_serve_config
from fed_distill.serving.service_files import add_key, write_serve_file
from fed_distill.serving.vector_cache import VectorCache


def table(key="k", **more):
    return KeyTable.model_validate({"name": "shop", "sha256": key_hash(key), "scopes": ["rank"], **more})


def test_the_hash_is_sha256():
    assert key_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def test_keys_have_256_bits_and_differ():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {4 + 43}  # base64 of 32 bytes


def test_an_expired_key_is_refused():
    now = datetime(2027, 1, 1, tzinfo=UTC)
    ring = KeyRing([table(expires=now + timedelta(seconds=1))], now=lambda: now)
    assert ring.find(b"k").name == "shop"
    now += timedelta(seconds=1)
    assert ring.find(b"k") is None


def test_a_rate_is_kept_over_time_and_survives_other_keys():
    now = 0.0
    ring = KeyRing([table(rate=2.0, burst=3)], clock=lambda: now)
    assert [ring.find(b"k").wait(now) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    ring.replace([table(rate=2.0, burst=3), table("other", name="other")])
    assert ring.find(b"k").wait(now) == 0.5
    now = 0.5
    assert [ring.find(b"k").wait(now) for _ in range(2)] == [0.0, 0.5]
    now = 100.0
    assert [ring.find(b"k").wait(now) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.1.2.3", "shop.example", "localhost.example", "127.0.0.1.example"]
)
def test_other_machines_are_served_by_keys_or_by_an_explicit_word(host):
    service = {"student": "x", "host": host}
    with pytest.raises(ConfigError, match=r"service\.open = true"):
        ServeConfig.model_validate({"service": service}).check_access()
    ServeConfig.model_validate({"service": {**service, "open": True}}).check_access()
    ServeConfig.model_validate({"service": service, "key": [table().model_dump()]}).check_access()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_is_served_without_keys(host):
    config = ServeConfig.model_validate({"service": {"student": "x", "host": host}})
    config.check_access()
    assert config.loopback


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "service is missing"),
        ("[service]\n", "service.student is missing"),
        ('[service]\nstudent = "x"\nprot = 1\n', "did you mean service.port"),
        ('[service]\nstudent = "x"\nport = 99999\n', "service.port must be at most 65535"),
        ('[service]\nstudent = "x"\n[[key]]\nname = "a\\r\\nb"\nsha256 = ""\nscopes = []\n', "key.1.name"),
        ('[service]\nstudent = "x"\n[[key]]\nname = "a"\nsha256 = "plain"\nscopes = ["rank"]\n', "key.1.sha256"),
        ('[service]\nstudent = "x"\nindex = "i"\n[canary]\nstudent = "y"\n', r"canary\.index is missing.* of /search"),
        ('[service]\nstudent = "x"\ntrained = "r"\n[canary]\nstudent = "y"\n', r"canary\.trained is missing.*/explain"),
        ("not toml", "not valid TOML"),
    ],
)
def test_wrong_settings_are_told_by_their_key(text, problem, tmp_path):
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_serve_config(tmp_path)


def test_a_name_that_would_change_the_file_is_refused(exported, tmp_path):
    write_serve_file(tmp_path / "s", exported("two-tower")[1])
    before = (tmp_path / "s" / "serve.toml").read_text()
    for name in ('a"\n[service]\nopen = true', "a b", "", "operator", "x" * 65):
        with pytest.raises(ConfigError):
            add_key(tmp_path / "s", name)
    with pytest.raises(ConfigError, match="scopes"):
        add_key(tmp_path / "s", "shop", ["everything"])
    with pytest.raises(ConfigError, match="exists"):
        write_serve_file(tmp_path / "s", exported("two-tower")[1])
    assert (tmp_path / "s" / "serve.toml").read_text() == before


def test_a_key_is_not_added_to_a_file_that_is_not_toml(tmp_path):
    (tmp_path / "serve.toml").write_text("[service\n")
    with pytest.raises(ConfigError, match=r"serve\.toml is not valid TOML"):
        add_key(tmp_path, "shop")
    assert (tmp_path / "serve.toml").read_text() == "[service\n"


def test_a_folder_may_have_any_name(exported, tmp_path):
    export = shutil.copytree(exported("two-tower")[1], tmp_path / 'export "🚀" \\ä')
    write_serve_file(tmp_path / "s", export)
    assert read_serve_config(tmp_path / "s").service.student.resolve() == export


def test_folders_are_relative_to_the_file(exported, tmp_path, monkeypatch):
    export = exported("two-tower")[1]
    write_serve_file(tmp_path / "s", export)
    monkeypatch.chdir("/")
    assert read_serve_config(tmp_path / "s").service.student.resolve() == export.resolve()


def test_an_index_and_a_run_are_named_beside_an_export_or_written_into_the_file(exported, tmp_path):
    export, beside = exported("two-tower")[1], {"index": tmp_path / "products", "trained": tmp_path / "run"}
    service = read_serve_config(export, beside).service
    assert (service.student, service.index, service.trained) == (export, *beside.values())
    assert read_serve_config(export).service.index is None

    write_serve_file(tmp_path / "s", export, beside)
    written = read_serve_config(tmp_path / "s").service
    assert written.index.resolve() == beside["index"] and written.trained.resolve() == beside["trained"]
    with pytest.raises(ConfigError, match=r"--index is of an export, and .*serve.toml exists: set service.index there"):
        read_serve_config(tmp_path / "s", beside)


def batches_of(jobs, max_rows, max_waiting=1000, fail=()):
    """Answers of jobs that arrive while the first one is computed, and the batches that were computed."""
    batches, first = [], threading.Event()

    def run(batch):
        batches.append(list(batch))
        first.wait()
        if set(batch) & set(fail):
            raise ValueError("bad")
        return [job * 10 for job in batch]

    async def all_jobs():
        with ThreadPoolExecutor(1) as executor:
            batcher = MicroBatcher(run, executor, max_rows, max_waiting, lambda rows: None)
            tasks = [asyncio.create_task(batcher.compute(jobs[0], jobs[0]))]
            while not batches:
                await asyncio.sleep(0)
            tasks += [asyncio.create_task(batcher.compute(job, job)) for job in jobs[1:]]
            await asyncio.sleep(0)
            first.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert batcher.waiting == 0
            return answers

    return asyncio.run(all_jobs()), batches


def test_what_arrives_during_a_batch_is_the_next_one_up_to_its_limit():
    answers, batches = batches_of([1, 2, 3, 4, 9, 1], max_rows=6)
    assert answers == [10, 20, 30, 40, 90, 10]
    assert batches == [[1], [2, 3], [4], [9], [1]]  # a job larger than a batch is one of its own


def test_a_full_queue_refuses_and_goes_on():
    answers, batches = batches_of([1, 5, 5, 1], max_rows=100, max_waiting=6)
    assert isinstance(answers[2], Overloaded)
    assert [answers[0], answers[1], answers[3]] == [10, 50, 10]
    assert batches == [[1], [5, 1]]


def test_an_error_is_that_of_its_batch_alone():
    answers, _ = batches_of([1, 2, 3, 4], max_rows=5, fail=[3])
    assert [answers[0], answers[3]] == [10, 40]
    assert isinstance(answers[1], ValueError)
    assert isinstance(answers[2], ValueError)


@given(st.integers(1, 6), st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5, unique=True), max_size=12))
def test_the_cache_is_an_lru_cache(capacity, requests):
    cache, slow = VectorCache(capacity, 1), OrderedDict()
    for texts in requests:
        vectors, missing = cache.get(texts)
        for place, text in enumerate(texts):
            assert (place in missing) == (text not in slow)
            if text in slow:
                slow.move_to_end(text)
                assert vectors[place, 0] == ord(text)
        fresh = [texts[place] for place in missing]
        cache.put(fresh, [np.array([ord(text)], dtype=np.float32) for text in fresh])
        for text in fresh:
            slow[text] = True
            if len(slow) > capacity:
                slow.popitem(last=False)
        assert len(cache) == len(slow)
