"""Speed counts encoding and prediction, by a clock that the test holds."""

import numpy as np
import pytest
import torch

from fed_distill.data.examples import Examples
from fed_distill.models.base import Outputs, TextModel
from fed_distill.reporting import speed as speed_module
from fed_distill.reporting.speed import seconds_per_pair, speed


class Clock:
    """Time that passes only when something is done."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Slow(TextModel):
    """Takes a given time to encode and to predict, the first pass three times as long."""

    def __init__(self, clock, encoding, predicting):
        super().__init__()
        self.clock, self.encoding, self.predicting, self.passes = clock, encoding, predicting, 0
        self.seen, self.threads = [], set()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, texts, pairs):
        self.passes += 1
        self.seen.append((texts, pairs))
        self.threads.add(torch.get_num_threads())
        self.clock.now += self.encoding * len(texts) * (3 if self.passes == 1 else 1)
        return {"ids": torch.ones(len(texts), 1, dtype=torch.int64)}

    def forward(self, batch, hidden=False):
        self.clock.now += self.predicting * len(batch["ids"])
        return Outputs(torch.zeros(len(batch["ids"]), 2))

    def narrowed(self, rows):
        raise NotImplementedError


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed_module, "time", clock)
    return clock


def examples(count):
    numbers = np.arange(count)
    texts = tuple(f"q{number}" for number in numbers)
    return Examples(texts, tuple(f"p{number}" for number in numbers), numbers % 2, numbers, ("m",) * count)


def test_encoding_and_prediction_count_and_the_first_pass_does_not(clock):
    assert seconds_per_pair(Slow(clock, 0.25, 0.5), examples(8), repeats=3) == pytest.approx(0.75)


def test_the_thread_count_is_set_and_put_back(clock):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = Slow(clock, 1.0, 1.0)
        seconds_per_pair(model, examples(4), threads=1)
        assert model.threads == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_teacher_and_student_are_measured_on_the_same_sample(clock):
    teacher, student = Slow(clock, 0.0, 4.0), Slow(clock, 0.01, 0.03)
    result = speed(teacher, student, examples(100), pairs=3)
    assert result["teacher_seconds_per_pair"] == pytest.approx(4.0)
    assert result["student_seconds_per_pair"] == pytest.approx(0.04)
    assert result["ratio"] == pytest.approx(100.0)
    assert result["pairs"] == 3
    assert teacher.seen[0] == student.seen[0] == (("q0", "q49", "q99"), ("p0", "p49", "p99"))


def test_there_must_be_something_to_measure_on(clock):
    with pytest.raises(ValueError, match="at least one example"):
        seconds_per_pair(Slow(clock, 1.0, 1.0), examples(0))
