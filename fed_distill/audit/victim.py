"""What is attacked: a released student, and examples of which some were in its training data.

How the non-members were chosen decides what an attack measures. Held-back examples (drawn at random from the same
merchants and products as the members) measure whether a single example can be told, which is what an example-level
epsilon speaks of. Test examples of held-out products measure more: the student is also better on products that it
knows, and even a student that saw no merchant's data may be, if the public data have those products.
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
"""Class probabilities of examples, float64 ``[examples, classes]``: all that an attack sees of a student."""


@dataclass(frozen=True)
class Victim:
    """A student that is attacked.

    released: the student after training. start: the student before it saw any merchant's data, which the merchants and
    the server have. members: labelled examples that it was trained on. nonmembers: labelled examples of the same
    merchants that it was not trained on, chosen like the members. by_group: whether whole groups (products) are in or
    out, as with test examples, rather than single examples, as with held-back ones.
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
    """What ``student`` with ``weights`` says of examples; the student's own weights are overwritten at each call."""

    def probabilities(examples: Examples) -> FloatArray:
        return predicted(student, weights, student.encode(examples.texts, examples.pairs))

    return probabilities


def predicted(student: TextModel, weights: Weights, encoded: Encoded) -> FloatArray:
    """Class probabilities ``[examples, classes]`` in float64; the student's own weights are overwritten."""
    student.load_state_dict(dict(weights))
    found: FloatArray = predict(student, encoded).numpy().astype(np.float64)
    return found


def hold_back(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Split examples into those to train on and those held back as non-members, at random within each merchant.

    A merchant keeps one example at least; its draw depends on the seed and its own examples only. Raises DataError
    for a share outside (0, 1).
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
    """A victim made for the audit: ``train`` gets all but a random ``share`` of each merchant's ``examples``.

    train: the training that is audited, a merchant's or a whole federation's, from the merchants' examples to the
    released student.
    """
    members, nonmembers = hold_back(examples, share, seed)
    return Victim(train(members), start, members, nonmembers, by_group=False)
