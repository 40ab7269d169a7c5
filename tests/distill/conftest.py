import numpy as np
import pytest

from fed_distill.config import TeacherConfig
from fed_distill.data.examples import Examples, Task

COLORS = ("red", "green", "blue")
THINGS = ("shoe", "tea", "lamp", "phone", "bag")


@pytest.fixture
def task():
    return Task("category", COLORS, pair=False, positive="red")


@pytest.fixture
def config():
    """The smallest teacher from scratch that can learn to tell colors."""
    options = {"layers": 1, "width": 16, "heads": 2, "rows": 500}
    return TeacherConfig(
        model="bert-small", epochs=4, learning_rate=1e-2, batch_size=8, max_length=16, patience=8, options=options
    )


def colored(count, start=0):
    """Texts that name their color somewhere, labelled with it."""
    labels = np.arange(start, start + count, dtype=np.int64) % len(COLORS)
    texts = tuple(
        f"{THINGS[index % 5]} {COLORS[label]} {THINGS[index % 4]}" for index, label in enumerate(labels, start=start)
    )
    return Examples(texts, None, labels, np.arange(count), ("shop",) * count)


@pytest.fixture
def public():
    return colored(48)


@pytest.fixture
def valid():
    return colored(15, start=100)
