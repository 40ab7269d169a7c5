"""A student of a few lines, easily made to do what cannot be stacked, and cohorts' parts made of it."""

import zlib

import pytest
import torch
from torch import nn

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.models.base import Outputs, TextModel
from fed_distill.training.cohort.stacking import Stack, skeleton_of
from fed_distill.training.preparation import prepare

ROWS = 64


class Words(TextModel):
    """The mean of a text's word vectors through one hidden layer; ``ids`` of both texts are one field."""

    kind = "words"

    def __init__(self, width=6):
        super().__init__()
        self.tables = {"words.weight": ("ids",)}
        self.words = nn.Embedding(ROWS, width, padding_idx=0)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def encode(self, texts, pairs):
        rows = [[1 + zlib.crc32(word.encode()) % (ROWS - 1) for word in text.split()] for text in texts]
        widest = max(map(len, rows), default=1) + 1
        return {"ids": torch.tensor([[*row, *[0] * (widest - len(row))] for row in rows]).view(len(rows), widest)}

    def pooled(self, ids):
        return self.words(ids).sum(dim=1) / (ids > 0).sum(dim=1, keepdim=True).clamp_min(1)

    def middle(self, values):
        return torch.tanh(self.hidden(values))

    def forward(self, batch, hidden=False):
        return Outputs(self.head(self.middle(self.pooled(batch["ids"]))))


@pytest.fixture
def words():
    """A function: a student of a class derived from Words, always with the same weights."""

    def make(kind=Words, *arguments):
        with seeds.scope(0, "words"):
            return kind(*arguments)

    return make


@pytest.fixture
def stack_of():
    """A function: learners of one student and plan, prepared, and the stack of their weights."""

    def make(learners, plan, **config):
        members = [prepare(one, plan, TrainerConfig(**{"batch_size": 8, **config})) for one in learners]
        weights, submodels = [one.weights for one in learners], [one.submodel for one in members]
        return members, Stack(skeleton_of(learners[0].student), weights, submodels, torch.device("cpu"))

    return make
