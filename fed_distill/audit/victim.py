"""The attacked student, with members and non-members of its training data.

The choice of non-members determines what an attack measures. Held-back examples, drawn from the same merchants and
products as the members, measure the privacy of a single example, which is what an example-level epsilon bounds. Test
examples of held-out products measure more: a student is better on products in its training data, and even a student
without merchants' data may be, if the public data contain those products.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fed_distill import seeds
from fed_distill.audit.membership import BoolArray
from fed_distill.audit.roc import FloatArray
from fed_distill.data.examples import Examples
from fed_distill.errors import DataError
from fed_distill.models import predict
from fed_distill.models.base import TextModel
from fed_distill.models.weights import Weights
from fed_distill.text.encoded import Encoded

Predictor = Callable[[Examples], FloatArray]
"""Maps examples to class probabilities, float64 ``[examples, classes]``: all that an attack observes of a student."""


@dataclass(frozen=True)
class Victim:
    """An attacked student.

    released: the student after training. start: the student before training on merchants' data, known to merchants and
    server. members: labelled training examples. nonmembers: labelled examples of the same merchants, selected like the
    members, that were not used. by_group: whether whole groups (products) are members, as with test examples, or single
    examples, as with held-back ones.
    """

    released: Predictor
    start: Predictor
    members: Examples
    nonmembers: Examples
    by_group: bool

    @property
    def candidates(self) -> Examples:
        """Members, then non-members."""
        return Examples.concatenate([self.members, self.nonmembers])


def predictor(student: TextModel, weights: Weights) -> Predictor:
    """Return the predictor of ``student`` with ``weights``; each call overwrites the student's own weights."""

    def probabilities(examples: Examples) -> FloatArray:
        return predicted(student, weights, student.encode(examples.texts, examples.pairs))

    return probabilities


def predicted(student: TextModel, weights: Weights, encoded: Encoded) -> FloatArray:
    """Return class probabilities ``[examples, classes]`` in float64; the student's own weights are overwritten."""
    student.load_state_dict(dict(weights))
    found: FloatArray = predict(student, encoded).numpy().astype(np.float64)
    return found


def hold_back(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Split examples into training examples and held-back non-members, at random within each merchant.

    A merchant keeps at least one example; its draw depends on the seed and its own examples only.

    :raises DataError: ``share`` is not strictly between 0 and 1
    """
    if not 0.0 < share < 1.0:
        raise DataError(f"the share of examples held back for an audit must be between 0 and 1, not {share}")
    names = np.array(examples.merchants, dtype=object)
    held: BoolArray = np.zeros(len(examples), dtype=np.bool_)
    for name in dict.fromkeys(examples.merchants):
        rows = np.flatnonzero(names == name)
        count = min(round(share * len(rows)), len(rows) - 1)
        held[seeds.numpy_stream(seed, "hold back", name).choice(rows, count, replace=False)] = True
    return examples.take(np.flatnonzero(~held)), examples.take(np.flatnonzero(held))


def trained_without(
    train: Callable[[Examples], Predictor], start: Predictor, examples: Examples, seed: int, share: float = 0.5
) -> Victim:
    """Train a victim on all but a random ``share`` of each merchant's ``examples``.

    :param train: the audited training, of a merchant or a federation: from the merchants' examples to the predictor of
        the released student
    """
    members, nonmembers = hold_back(examples, share, seed)
    return Victim(train(members), start, members, nonmembers, by_group=False)
