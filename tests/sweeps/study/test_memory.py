"""Memory is read as the kernel writes it: the machine's, a control group's where that is less, a tree of processes'."""

import os
import subprocess
import sys

import pytest

from fed_distill.sweeps.memory import Memory, available_memory, tree_memory

KB = 1024


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def machine(tmp_path):
    write(tmp_path / "proc" / "meminfo", "MemTotal:  9000 kB\nMemAvailable:    8000 kB\nHugePages_Total:       0\n")
    return tmp_path


def test_without_groups_the_machines_memory_is_available(machine):
    assert available_memory(machine / "proc", machine / "none") == 8000 * KB


def test_a_group_or_one_around_it_may_allow_less(machine):
    write(machine / "proc" / "self" / "cgroup", "0::/job/cell\n")
    groups = machine / "groups"
    write(groups / "memory.max", "max\n")
    write(groups / "memory.current", "1\n")
    write(groups / "job" / "memory.max", str(1000 * KB))
    write(groups / "job" / "memory.current", str(700 * KB))
    write(groups / "job" / "memory.stat", f"anon 5\ninactive_file {50 * KB}\n")
    write(groups / "job" / "cell" / "memory.max", str(5000 * KB))
    write(groups / "job" / "cell" / "memory.current", "0\n")
    assert available_memory(machine / "proc", groups) == (1000 - 700 + 50) * KB


def test_groups_of_version_1_count_too(machine):
    write(machine / "proc" / "self" / "cgroup", "5:cpu:/\n4:hugetlb,memory:/job\n")
    job = machine / "groups" / "memory" / "job"
    write(job / "memory.limit_in_bytes", str(600 * KB))
    write(job / "memory.usage_in_bytes", str(500 * KB))
    write(job / "memory.stat", f"total_inactive_file {10 * KB}\n")
    write(machine / "groups" / "memory" / "memory.limit_in_bytes", str((1 << 63) - 4096))
    write(machine / "groups" / "memory" / "memory.usage_in_bytes", "0")
    assert available_memory(machine / "proc", machine / "groups") == 110 * KB


def test_a_system_that_does_not_tell_is_unknown(tmp_path):
    assert available_memory(tmp_path, tmp_path) is None
    assert tree_memory([1], tmp_path) == {}


def test_a_tree_is_a_process_with_all_that_it_started(tmp_path):
    for pid, parent, now, peak in ((10, 1, 100, 150), (11, 10, 20, 30), (12, 11, 3, 4), (20, 1, 500, 600)):
        write(
            tmp_path / str(pid) / "status",
            f"Name:\tpython 3\nPid:\t{pid}\nPPid:\t{parent}\nVmHWM:\t {peak} kB\nVmRSS:\t {now} kB\n",
        )
    write(tmp_path / "30" / "status", "Name:\tgone\nState:\tZ (zombie)\nPPid:\t1\n")
    found = tree_memory([10, 20, 30, 40], tmp_path)
    assert found == {10: Memory(123 * KB, 184 * KB), 20: Memory(500 * KB, 600 * KB)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_child_that_takes_memory_is_seen_here():
    hold = "data = bytearray(64_000_000); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline()
        found = tree_memory([child.pid, os.getpid()])
        assert found[child.pid].now > 64_000_000
        assert found[os.getpid()].now > found[child.pid].now
        child.communicate(b"\n")
