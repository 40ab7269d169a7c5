"""The best round so far: the first of equals, and how long ago it was."""

import pytest
import torch

from fed_distill.coordinator.progress import BestRound, better


@pytest.mark.parametrize(
    ("scores", "since", "rounds"),
    [
        ([0.5, 0.7, 0.6, 0.8], [0, 0, 1, 0], [0, 1, 1, 3]),
        ([0.5, 0.5, 0.5], [0, 1, 2], [0, 0, 0]),  # what is no better does not end the wait
        ([0.9, 0.1, 0.9, 0.91], [0, 1, 2, 0], [0, 0, 0, 3]),
    ],
)
def test_only_a_higher_score_is_better(scores, since, rounds):
    best: BestRound | None = None
    weights = {"w": torch.zeros(1)}
    for number, score in enumerate(scores):
        weights["w"].fill_(number)  # in place: what is kept must be a copy
        best = better(best, score, weights)
        assert (best.score, best.since) == (max(scores[: number + 1]), since[number])
        assert best.weights["w"].item() == rounds[number]
