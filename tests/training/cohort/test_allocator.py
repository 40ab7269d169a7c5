"""Freed memory stays in the process where the allocator can be told, and nothing happens where it cannot."""

import ctypes
import platform
from types import SimpleNamespace

import pytest

from fed_distill.training.cohort.allocator import keep_freed_memory


@pytest.fixture(autouse=True)
def told_afresh():
    keep_freed_memory.cache_clear()
    yield
    keep_freed_memory.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_glibc_accepts_all_three_settings():
    assert keep_freed_memory()


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory()


def test_a_setting_that_is_refused_is_told(monkeypatch):
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *told: asked.append(told) or 0))
    assert not keep_freed_memory()
    assert asked == [(-3, 32 * 2**20)]
