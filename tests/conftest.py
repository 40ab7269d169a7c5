"""Shared by all tests: a small task, its examples, and a small student for it."""

import numpy as np
import pytest
import torch

from fed_distill.data.examples import Examples, Task
from fed_distill.models import build_student
from fed_distill.models.base import TextModel
from fed_distill.runtime import seeds

WORDS = ("red", "blue", "green", "phone", "shoe", "kettle", "maxi", "mini", "ultra", "pro", "kühl", "手机")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_home_cache(tmp_path_factory, monkeypatch):
    """Nothing that a test does reaches the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def task() -> Task:
    return Task("toy", ("same", "near", "far"), pair=True, positive="same", gains=(1.0, 0.5, 0.0))


@pytest.fixture
def make_examples(task):
    """A function that makes ``size`` labelled pairs for a merchant from its own generator."""

    def make(size: int, merchant: str = "shop", seed: int = 0) -> Examples:
        draw = np.random.default_rng(seed)
        texts = [" ".join(draw.choice(WORDS, 3)) for _ in range(size)]
        pairs = [" ".join(draw.choice(WORDS, 4)) for _ in range(size)]
        return Examples(
            tuple(texts),
            tuple(pairs),
            draw.integers(0, len(task.classes), size).astype(np.int64),
            np.arange(size, dtype=np.int64),
            (merchant,) * size,
        )

    return make


@pytest.fixture
def student(task) -> TextModel:
    with seeds.scope(0, "test student"):
        return build_student("two-tower", {"rows": 512, "width": 8, "head_width": 8}, task)
