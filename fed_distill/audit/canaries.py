"""A one-run audit with canaries: examples that stand out, each put into a merchant's training data by a coin flip.

What training really protects shows in how well the coin flips can be guessed from the final student. Training is a
function here, so that one merchant's training, or a whole federation that the merchant takes part in, can be audited.
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
"""Shares of the canaries guessed to be in, and as many to be out; the best bound of them is taken (union bound)."""

Kind = Literal["mislabeled", "random_text"]


@dataclass(frozen=True)
class CanaryAudit:
    """What guessing the canaries' coin flips has shown. separation: of included from excluded canaries by score."""

    bound: Bound
    separation: Separation

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"bound": self.bound.to_json(), "separation": self.separation.to_json()}


def make_canaries(source: Examples, classes: int, count: int, kind: Kind, seed: int) -> Examples:
    """``count`` canaries made from the labelled ``source``, which must not be in the training data itself.

    mislabeled: distinct rows of ``source``, each with a wrong label drawn evenly. random_text: words drawn from all of
    its texts, as many as a row has, and a label drawn evenly; they use the features that training knows, which matters
    where DP trains the proxy set's features only. Each canary is a group of its own; all have the merchant of the first
    row. Raises DataError for fewer than two classes, or a source that is too small.
    """
    if classes < 2:
        raise DataError(f"a canary needs a wrong label, and there are {classes} classes")
    if count < 1 or len(source) < (count if kind == "mislabeled" else 1):
        raise DataError(f"{count} canaries cannot be made from {len(source)} examples: ask for fewer, or give more")
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
    """Train once on ``base`` and a random half of the ``canaries``, and bound epsilon of that training from below.

    train: the training that is audited, from one merchant's examples to the released student as a predictor; its own
    draws must be independent of the coins, as those of ``runtime.seeds`` are. start: the student before it. delta: that
    of the accountant's epsilon that the bound is compared with; where 2 * canaries * delta is not far below
    1 - ``confidence`` the bound says little: take fewer canaries, or ask the accountant at a smaller delta.

    A canary's score is how much training has lowered its loss, as ``scaled_confidence``: logits tell more apart than
    losses near 0 do. The bound is one on the epsilon of this training, its canaries included, for the unit "example"
    (add or remove one), and holds whatever canaries and score are; another confidence or other ``guess_shares`` must be
    chosen before looking.
    Raises DataError for shares that guess nothing, or too few canaries to flip both ways.
    """
    count = len(canaries)
    sizes = sorted({int(share * count) for share in guess_shares} - {0})
    if not sizes or sizes[-1] * 2 > count:
        raise DataError(
            f"guess_shares {tuple(guess_shares)} of {count} canaries: each must guess one or more, at most half"
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
    """Texts of as many words as ``texts`` have, drawn from all words of ``vocabulary_of``."""
    words = [word for text in vocabulary_of for word in text.split()] or [""]
    return tuple(" ".join(words[at] for at in draw.integers(0, len(words), len(text.split()))) for text in texts)
