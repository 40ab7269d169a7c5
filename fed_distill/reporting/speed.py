"""Latency per example from text to probabilities, encoding included, as on an edge device."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fed_distill.data.examples import Examples
from fed_distill.models.base import TextModel
from fed_distill.models.prediction import predict


def seconds_per_pair(model: TextModel, examples: Examples, threads: int = 1, repeats: int = 5) -> float:
    """Return seconds per example on ``threads`` threads: median of ``repeats`` passes after a warm-up pass."""
    if len(examples) == 0:
        raise ValueError("speed is measured on at least one example")
    with _threads(threads):
        passes = [_pass(model, examples) for _ in range(repeats + 1)]
    return statistics.median(passes[1:]) / len(examples)


def speed(
    teacher: TextModel, student: TextModel, examples: Examples, pairs: int = 256, threads: int = 1, repeats: int = 5
) -> dict[str, float]:
    """Return seconds per pair of teacher and student on the same examples, and their ratio.

    At most ``pairs`` evenly spaced examples are used.
    """
    spread = np.linspace(0, len(examples) - 1, min(pairs, len(examples))).astype(np.int64)
    measured = examples.take(spread)
    of_teacher = seconds_per_pair(teacher, measured, threads, repeats)
    of_student = seconds_per_pair(student, measured, threads, repeats)
    return {
        "teacher_seconds_per_pair": of_teacher,
        "student_seconds_per_pair": of_student,
        "ratio": of_teacher / of_student,
        "pairs": len(measured),
        "threads": threads,
    }


def _pass(model: TextModel, examples: Examples) -> float:
    start = time.perf_counter()
    predict(model, model.encode(examples.texts, examples.pairs))
    return time.perf_counter() - start


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
