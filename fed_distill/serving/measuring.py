"""What a variant of a student costs and gives: latency on one core, and quality on the run's test data."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fed_distill.data.examples import FederatedData
from fed_distill.errors import DataError
from fed_distill.evaluation.metrics import classification, expected_gains, headline, ranking
from fed_distill.serving.scorer import Scorer

TITLES = 100
"""Titles of one timed ranking."""
_QUERY = "usb c hub with hdmi"
_NAMES = (
    "Anker 555 USB-C Hub 8-in-1 with 4K HDMI",
    "Samsung Galaxy S23 Ultra 256GB Phantom Black",
    "Bosch KGN36 fridge freezer 60 cm stainless steel",
    "Nike Air Zoom Pegasus 40 running shoes size 10",
    "LEGO Technic Lamborghini Sian FKP 37 building set",
    "Philips Hue White Ambiance E27 bulb twin pack",
    "Bose QuietComfort 45 wireless headphones",
    "Kärcher K4 Power Control pressure washer",
    "Nespresso Vertuo Next coffee machine, grey",
    "Logitech MX Master 3S mouse",
)
_RUNS, _WARM_UP, _MOST_SECONDS = 300, 20, 20.0


def latencies(scorer: Scorer, longest: int) -> list[float]:
    """Return the times in ms of ranking ``TITLES`` titles for a query (of classifying them, for a task of one text).

    It is the time of the calling thread on its core, which other programs on the machine do not lengthen; ``scorer``
    must have no other thread. Titles have 27 to 54 characters, are encoded each time, and are all different.

    :param longest: longest text in the student's training data, to which titles are cut
    """
    titles = [f"{number} {_NAMES[number % len(_NAMES)]}"[:longest] for number in range(TITLES)]
    texts, pairs = ([_QUERY[:longest]] * TITLES, titles) if scorer.task.pair else (titles, None)
    found: list[float] = []
    began = time.perf_counter()
    for _ in range(_WARM_UP + _RUNS):
        start = time.thread_time()
        scorer.predict(texts, pairs)
        found.append(1000 * (time.thread_time() - start))
        if len(found) > 2 * _WARM_UP and time.perf_counter() - began > _MOST_SECONDS:
            break
    return found[_WARM_UP:]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """Return the 50th and the 99th percentile."""
    middle, high = np.percentile(np.asarray(times), (50, 99))
    return float(middle), float(high)


def quality_on_test(scorer: Scorer, data: FederatedData) -> float:
    """Return the task's headline metric on the common test set: nDCG@10 of the ranking test, or macro-F1.

    :raises DataError: the data are of another task, or give no headline metric
    """
    if data.task != scorer.task:
        raise DataError(f"the run's data are of task {data.task.name!r}, and the student of {scorer.task.name!r}")
    if data.task.gains is not None and data.ranking_test is not None:
        ranked = data.ranking_test
        found = scorer.predict(ranked.examples.texts, ranked.examples.pairs)
        metrics = ranking(expected_gains(found, data.task), ranked, data.task)
    else:
        found = scorer.predict(data.test.texts, data.test.pairs)
        metrics = classification(found, data.test.labels, data.task)
    value = headline(metrics, data.task)
    if value is None:
        raise DataError("the run's test set gives no headline metric: export with --no-quality")
    return value
