"""Privacy auditing in one run: each canary is included in a merchant's training data with probability 1/2.

The accuracy of guesses about inclusion, from the final student, bounds the privacy of the training. Training is a
function here, so that a merchant's training and a whole federation can be audited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fed_distill import seeds
from fed_distill.audit.membership import scaled_confidence
from fed_distill.audit.one_run import Bound, best_bound
from fed_distill.audit.roc import Separation, separation
from fed_distill.audit.victim import Predictor
from fed_distill.data.examples import Examples
from fed_distill.errors import DataError

GUESS_SHARES = (0.05, 0.1, 0.25, 0.5)
"""Shares of the canaries guessed as included, and as excluded; the best bound is used, with a union bound."""

Kind = Literal["mislabeled", "random_text"]


@dataclass(frozen=True)
class CanaryAudit:
    """The result of a canary audit. separation: of included from excluded canaries by score."""

    bound: Bound
    separation: Separation

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form."""
        return {"bound": self.bound.to_json(), "separation": self.separation.to_json()}


def make_canaries(source: Examples, classes: int, count: int, kind: Kind, seed: int) -> Examples:
    """Make canaries from labelled examples that are not in the training data.

    Each canary forms its own group; all have the merchant of the first row.

    :param source: labelled examples
    :param classes: number of classes
    :param count: number of canaries
    :param kind: ``mislabeled`` for distinct rows of ``source`` with uniformly random wrong labels, ``random_text`` for
        random words of its texts with uniformly random labels, which uses known features only, as is necessary if DP
        trains the proxy set's features only
    :param seed: seed of the draw
    :raises DataError: there are fewer than two classes, or ``source`` is too small
    """
    if classes < 2:
        raise DataError(f"mislabeled canaries require at least two classes, not {classes}")
    if count < 1 or len(source) < (count if kind == "mislabeled" else 1):
        raise DataError(f"{len(source)} examples are too few for {count} canaries: use fewer canaries or more examples")
    draw = seeds.numpy_stream(seed, "canaries", kind)
    rows = source.take(draw.choice(len(source), count, replace=kind == "random_text"))
    if kind == "mislabeled":
        texts, pairs = rows.texts, rows.pairs
        labels = (rows.labels + draw.integers(1, classes, count)) % classes
    else:
        texts = _shuffled(rows.texts, source.texts, draw)
        pairs = None if rows.pairs is None or source.pairs is None else _shuffled(rows.pairs, source.pairs, draw)
        labels = draw.integers(0, classes, count)
    groups = int(source.groups.max()) + 1 + np.arange(count, dtype=np.int64)
    return Examples(texts, pairs, labels.astype(np.int64), groups, (source.merchants[0],) * count)


def canary_audit(
    train: Callable[[Examples], Predictor],
    start: Predictor,
    base: Examples,
    canaries: Examples,
    *,
    delta: float,
    seed: int,
    confidence: float = 0.95,
    guess_shares: Sequence[float] = GUESS_SHARES,
) -> CanaryAudit:
    """Train once on ``base`` and a random half of the ``canaries``, and return a lower bound on epsilon.

    The score of a canary is the decrease of its loss in training, as ``scaled_confidence``: logits are more informative
    than losses near 0. The bound applies to this training, canaries included, at example level (add or remove one), and
    is valid for any canaries and score. ``confidence`` and ``guess_shares`` must be chosen in advance.

    :param train: the audited training: from one merchant's examples to the predictor of the released student; its
        random draws must be independent of the inclusion, as those of ``fed_distill.seeds`` are
    :param start: predictor of the student before training
    :param base: the merchant's examples
    :param canaries: the canaries
    :param delta: delta of the accountant's epsilon to compare with. If 2 * canaries * delta is not far below
        1 - ``confidence`` the bound has little power: use fewer canaries or a smaller delta
    :param seed: seed of the inclusion
    :param confidence: confidence of the bound
    :param guess_shares: see ``GUESS_SHARES``
    :raises DataError: a share gives no guess, or there are too few canaries
    """
    count = len(canaries)
    sizes = sorted({int(share * count) for share in guess_shares} - {0})
    if not sizes or sizes[-1] * 2 > count:
        raise DataError(
            f"guess_shares {tuple(guess_shares)} of {count} canaries: each must give at least one guess, at most half"
        )
    included = seeds.numpy_stream(seed, "canary coins").random(count) < 0.5
    if not 2 <= int(included.sum()) <= count - 2:
        raise DataError(f"{count} canaries are too few for an audit")
    trained = train(Examples.concatenate([base, canaries.take(np.flatnonzero(included))]))
    after, before = trained(canaries), start(canaries)
    scores = scaled_confidence(after, canaries.labels) - scaled_confidence(before, canaries.labels)
    bound = best_bound(scores, included, [(size, size) for size in sizes], delta, confidence)
    return CanaryAudit(bound, separation(scores[included], scores[~included], confidence))


def _shuffled(texts: Sequence[str], vocabulary_of: Sequence[str], draw: np.random.Generator) -> tuple[str, ...]:
    """Return texts with the lengths of ``texts`` in words, drawn from all words of ``vocabulary_of``."""
    words = [word for text in vocabulary_of for word in text.split()] or [""]
    return tuple(" ".join(words[at] for at in draw.integers(0, len(words), len(text.split()))) for text in texts)
