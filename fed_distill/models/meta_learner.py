"""A teacher of campaigns: an X- or T-learner over hashed words, which predicts the four cells of a campaign.

It is fitted in closed steps by scikit-learn (``uplift_learners``) instead of by gradient descent, and keeps only
coefficients, so that it is saved, cached and read like any other teacher. Students learn its cells as soft labels.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn

from fed_distill.data.campaign_cells import MARKETING_EFFECT, bought_of, treated_of
from fed_distill.data.examples import Task
from fed_distill.errors import ConfigError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.models.two_tower import Rows
from fed_distill.models.uplift_learners import PARTS, Learner, fit
from fed_distill.text.encoded import Encoded
from fed_distill.text.hashing import bag_rows

_LEAST = 1e-3
"""Smallest response: probabilities of cells are positive, and their logarithms finite."""
_MOST_WORDS = 512
_CROSSED = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)


def hashed(texts: Sequence[str], pairs: Sequence[str], rows: int) -> npt.NDArray[np.int32]:
    """Return the features of histories and campaigns, int32 ``[n, features]``, 0 for padding.

    Words of the history are in rows 1 to ``rows`` - 1, words of the campaign in the next ``rows``, and words of the
    history together with the whole campaign in the last: a word may speak for one campaign and against another.
    """
    history, campaign = (bag_rows(column, rows, (), _MOST_WORDS).astype(np.int64) for column in (texts, pairs))
    powers = np.cumprod(np.full(campaign.shape[1], _CROSSED[1], dtype=np.uint64))
    key = (campaign.astype(np.uint64) * powers).sum(axis=1, dtype=np.uint64)[:, None]
    mixed = (history.astype(np.uint64) ^ key) * _CROSSED[0]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _CROSSED[1]
    crossed = (mixed >> np.uint64(33)).astype(np.int64) % (rows - 1) + 1 + 2 * rows
    found = [history, np.where(campaign > 0, campaign + rows, 0), np.where(history > 0, crossed, 0)]
    return np.concatenate(found, axis=1).astype(np.int32)


def as_matrix(ids: npt.NDArray[np.int32], width: int) -> sparse.csr_array:
    """Return features ``[n, width]``: how often each is in a row of ``ids``, over the root of their number."""
    at, place = np.nonzero(ids)
    scale = 1.0 / np.sqrt(np.maximum((ids > 0).sum(axis=1), 1))
    matrix = sparse.csr_array((scale[at], (at, ids[at, place])), shape=(len(ids), width))
    matrix.sum_duplicates()
    return matrix


def features(texts: Sequence[str], pairs: Sequence[str], rows: int = 32_768) -> sparse.csr_array:
    """Return the features ``[n, 3 * rows]`` of histories and campaigns, as ``MetaLearner`` reads them."""
    return as_matrix(hashed(texts, pairs, rows), 3 * rows)


class MetaLearner(TextModel):
    """Linear models of propensity, responses and effects over hashed words; its classes are the cells of a campaign."""

    trainable = False

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        task: Task | None = None,
        learner: Learner = "x",
        rows: Rows = 32_768,
        clip: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05,
    ) -> None:
        """learner: estimator of the effect: x for the X-learner, t for two models. rows: number of hashed words of
        histories, of campaigns and of both together. clip: smallest propensity, and distance of the largest from 1.

        :raises ConfigError: the task is another than marketing-effect
        """
        super().__init__()
        if task is not None and task.classes != MARKETING_EFFECT.classes:
            raise ConfigError(
                f"teacher meta-learner estimates the effect of campaigns, and task {task.name!r} has none: set "
                "data.task = 'marketing-effect', or choose another teacher"
            )
        self.learner, self.rows, self.clip = learner, rows, clip
        self.weights = nn.Parameter(torch.zeros(3 * rows, len(PARTS)), requires_grad=False)
        self.intercepts = nn.Parameter(torch.zeros(len(PARTS)), requires_grad=False)

    def fit(self, texts: Sequence[str], pairs: Sequence[str] | None, labels: npt.NDArray[np.int64]) -> None:
        """Fit all models to labelled examples; see ``FitsItself``."""
        parts = fit(features(texts, pairs or (), self.rows), treated_of(labels), bought_of(labels), self.clip)
        for column, part in enumerate(parts):
            self.weights[:, column] = torch.from_numpy(part.coefficients).float()
            self.intercepts[column] = part.intercept

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``ids``: int32 ``[n, features]``, 0 for padding."""
        return {"ids": torch.from_numpy(hashed(texts, pairs or (), self.rows))}

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Return the logarithms of the probabilities of the cells; there are no hidden states.

        With m(x) = e μ_1 + (1 - e) μ_0, the response whether treated or not, the X-learner's responses are
        μ_1 = m + (1 - e) τ_X and μ_0 = m - e τ_X (Robinson 1988; Nie and Wager 2021, eq. 1), which have its effect and
        leave m as it is, unless one is no probability and is clipped.
        """
        ids = batch["ids"]
        scale = (ids > 0).sum(dim=1, keepdim=True).clamp_min(1).float().rsqrt()
        found = F.embedding_bag(ids, self.weights, mode="sum", padding_idx=0) * scale + self.intercepts
        propensity = found[:, 0].sigmoid().clamp(self.clip, 1.0 - self.clip)
        without, treated = found[:, 1].sigmoid(), found[:, 2].sigmoid()
        if self.learner == "x":
            effect = propensity * found[:, 3] + (1.0 - propensity) * found[:, 4]
            mean = propensity * treated + (1.0 - propensity) * without
            treated, without = mean + (1.0 - propensity) * effect, mean - propensity * effect
        return Outputs(_cells(propensity, without.clamp(_LEAST, 1 - _LEAST), treated.clamp(_LEAST, 1 - _LEAST)).log())


def meta_learner(
    classes: int,
    pair: bool,
    task: Task,
    learner: Learner = "x",
    rows: Rows = 32_768,
    clip: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05,
) -> MetaLearner:
    """Build a ``MetaLearner`` for ``task``; see there."""
    model = MetaLearner(classes, pair, task=task, learner=learner, rows=rows, clip=clip)
    model.kind = "fed_distill.models.meta_learner:MetaLearner"
    model.settings = {"classes": classes, "pair": pair, "learner": learner, "rows": rows, "clip": clip}
    return model


def _cells(propensity: Tensor, without: Tensor, treated: Tensor) -> Tensor:
    """Return the probabilities of the cells ``[n, 4]``, as ``campaign_cells.cells``."""
    other = 1.0 - propensity
    return torch.stack(
        [propensity * treated, propensity * (1.0 - treated), other * without, other * (1.0 - without)], dim=1
    )
