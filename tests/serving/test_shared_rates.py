"""The token bucket that workers share: one bucket, however many processes take from it."""

import asyncio
import fcntl
import multiprocessing
import os
import shutil
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.serving.api_keys import KeyRing, OwnBucket, key_hash
from fed_distill.serving.service import build_service
from fed_distill.serving.service_config import KeyTable, read_serve_config
from fed_distill.serving.service_files import add_key, write_serve_file
from fed_distill.serving.shared_rates import SharedBucket, shared_buckets

SPAWN = multiprocessing.get_context("spawn")


def table(**more):
    return KeyTable.model_validate({"name": "shop", "sha256": key_hash("k"), "scopes": ["rank"], **more})


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 3.0)), max_size=40),
    st.floats(0.1, 10.0),
    st.integers(1, 5),
)
def test_several_holders_take_from_one_bucket(tmp_path_factory, steps, rate, burst):
    path = tmp_path_factory.mktemp("rates") / "bucket"
    holders, twin, chosen, now = [SharedBucket(path) for _ in range(3)], None, table(rate=rate, burst=burst), 100.0
    for holder, pause in steps:
        now += pause
        twin = twin or OwnBucket.full(chosen, now)
        assert holders[holder].wait(chosen, now) == twin.wait(chosen, now)


def test_a_clock_that_was_read_earlier_gives_nothing_back(tmp_path):
    chosen = table(rate=1.0, burst=2)
    bucket = SharedBucket(tmp_path / "bucket")
    assert [bucket.wait(chosen, now) for now in (10.0, 9.0, 10.0)] == [0.0, 0.0, 1.0]


def test_a_key_has_its_bucket_by_its_hash_and_keeps_it_when_it_is_removed_and_added(tmp_path):
    ring = KeyRing([table(rate=0.001, burst=1)], bucket=shared_buckets(tmp_path))
    assert ring.find(b"k").wait(50.0) == 0.0
    ring.replace([])
    ring.replace([table(rate=0.001, burst=1)])
    assert ring.find(b"k").wait(50.0) == pytest.approx(1000.0)
    assert [path.name for path in tmp_path.iterdir()] == [key_hash("k")]


def granted(bucket, chosen, now):
    """Requests that are let through at one time."""
    return sum(bucket.wait(chosen, now) == 0.0 for _ in range(100))


@pytest.mark.parametrize("first", ["old", "new"])
@pytest.mark.parametrize("used", [0, 4, 10])
@pytest.mark.parametrize("removed", ["file", "folder"])
def test_a_removed_bucket_gives_no_second_rate(tmp_path, first, used, removed):
    """Two workers run, the file goes, and a third one starts: together they get what one bucket has."""
    folder, chosen = tmp_path / "rates", table(rate=2.0, burst=10)
    folder.mkdir()
    old = [shared_buckets(folder)(chosen, 0.0) for _ in range(2)]
    assert sum(old[0].wait(chosen, 0.0) == 0.0 for _ in range(used)) == used
    if removed == "folder":
        shutil.rmtree(folder)
        assert old[1].wait(chosen, 0.0) == (0.0 if used < 10 else 0.5)  # there is no other file: all go on with theirs
        used = min(10, used + 1)
        folder.mkdir()
    else:
        (folder / key_hash("k")).unlink()
    new = shared_buckets(folder, replaces=True)(chosen, 0.0)
    order = [new, *old] if first == "new" else [*old, new]
    assert sum(granted(one, chosen, 0.0) for one in order) <= 10 - used
    assert len({os.fstat(one._file).st_ino for one in order}) == 1
    assert sum(granted(one, chosen, 3.0) for one in order) == 6  # the rate goes on: two a second


def test_workers_whose_bucket_was_removed_go_on_with_it(tmp_path):
    """Without a new worker nothing is lost."""
    chosen = table(rate=1e-6, burst=10)
    old = [SharedBucket(tmp_path / "bucket") for _ in range(2)]
    assert sum(old[0].wait(chosen, 5.0) == 0.0 for _ in range(4)) == 4
    (tmp_path / "bucket").unlink()
    assert [granted(one, chosen, 5.0) for one in old] == [6, 0]


def test_a_worker_that_replaces_another_finds_the_bucket(tmp_path):
    chosen = table(rate=1e-6, burst=10)
    old = shared_buckets(tmp_path)(chosen, 0.0)
    assert old.wait(chosen, 0.0) == 0.0
    assert granted(shared_buckets(tmp_path, replaces=True)(chosen, 1.0), chosen, 1.0) == 9


def take(path, tries, granted):
    bucket, chosen = SharedBucket(path), table(rate=1e-6, burst=500)
    granted.put(sum(bucket.wait(chosen, time.monotonic()) == 0.0 for _ in range(tries)))


def test_processes_that_take_at_once_get_the_burst_and_no_more(tmp_path):
    granted = SPAWN.Queue()
    processes = [SPAWN.Process(target=take, args=(tmp_path / "bucket", 400, granted)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [granted.get() for _ in processes]
    for process in processes:
        process.join()
    assert sum(found) == 500
    assert max(found) <= 400


def hold(path, held):
    file = os.open(path, os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    held.set()
    signal.pause()


def test_a_holder_that_is_killed_leaves_no_lock(tmp_path):
    path, chosen, held = tmp_path / "bucket", table(rate=1.0, burst=1), SPAWN.Event()
    bucket = SharedBucket(path)
    process = SPAWN.Process(target=hold, args=(path, held))
    process.start()
    held.wait()
    process.kill()
    assert bucket.wait(chosen, 1.0) == 0.0
    process.join()


def test_keys_for_which_no_bucket_can_be_made_are_refused_and_looked_at_again(exported, tmp_path):
    """An error would end the loop that watches the files, and a key that is removed later would stay valid."""
    folder, rates = tmp_path / "service", tmp_path / "rates"
    write_serve_file(folder, exported("two-tower")[1])
    rates.mkdir()
    students = build_service(read_serve_config(folder), folder, rates).state.students
    rates.rename(tmp_path / "moved")
    add_key(folder, "later")

    async def reloads():
        refused = await students.reload(force=True)
        (tmp_path / "moved").rename(rates)
        return refused, await students.reload(force=True)

    refused, later = asyncio.run(reloads())
    students.close()
    assert "No such file" in refused["keys"]
    assert later == {}
