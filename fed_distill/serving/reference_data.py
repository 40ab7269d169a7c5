"""Build the reference of an export from the data of its run.

Texts that count as seen are those that the server has, because a bitmap of what merchants' private texts have would
tell which words they use, and no privacy mechanism would protect it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fed_distill.data.examples import Examples, FederatedData
from fed_distill.serving.exported_folder import VariantName
from fed_distill.serving.reference import (
    REFERENCE_FORMAT,
    FeatureCounter,
    Histogram,
    Mask,
    Part,
    Reference,
    Route,
    TextReference,
    feature_ids,
    packed,
)
from fed_distill.serving.scorer import Scorer
from fed_distill.text.encoders import Encoder

MOST_EXAMPLES = 5000
"""Examples that a reference is computed from, evenly spaced: each decile then has 500."""
_CHUNK = 8192


def build_reference(
    data: FederatedData, encode: Encoder, unknown: int | None, scorers: Mapping[VariantName, Scorer]
) -> Reference:
    """Return the reference of a student.

    :param data: data of its run
    :param encode: how the student encodes texts
    :param unknown: id of the token that stands for what the tokenizer does not know, which is unseen; None: there is
        none
    :param scorers: the student's variants
    """
    held, queries, ranked = _held_out(data)
    seen = seen_rows(encode, _texts_of(data.public, data.proxy), unknown)
    counter = FeatureCounter(encode, seen, hashed=True)
    parts: dict[Part, Sequence[str]] = {"text": queries}
    if ranked.pairs is not None:
        parts["pair"] = ranked.pairs
    return Reference(
        format=REFERENCE_FORMAT,
        source="test" if len(data.test) else "public_valid",
        texts={part: _text_reference(counter, texts) for part, texts in parts.items()},
        scores={name: _scores(scorer, held, ranked) for name, scorer in scorers.items()},
        seen=packed(seen),
    )


def seen_rows(encode: Encoder, texts: Sequence[str], unknown: int | None) -> Mask:
    """Return which ids occur in ``texts``, bool ``[largest id + 1]``."""
    distinct = list(dict.fromkeys(texts))
    found = [np.unique(feature_ids(encode, distinct[at : at + _CHUNK])) for at in range(0, len(distinct), _CHUNK)]
    ids = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    seen = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.bool_)
    seen[ids] = True
    if unknown is not None and unknown < len(seen):
        seen[unknown] = False
    return seen


def _held_out(data: FederatedData) -> tuple[Examples, Sequence[str], Examples]:
    """Return examples for ``/score``, first texts as often as requests have them, and examples for rankings."""
    held = data.test if len(data.test) else data.public_valid
    if data.ranking_test is None:
        few = _spaced(held)
        return few, few.texts, few
    firsts = np.unique(data.ranking_test.queries, return_index=True)[1]
    ranked = data.ranking_test.examples
    return _spaced(held), _spaced(ranked.take(firsts)).texts, _spaced(ranked)


def _spaced(examples: Examples) -> Examples:
    if len(examples) <= MOST_EXAMPLES:
        return examples
    return examples.take(np.linspace(0, len(examples) - 1, MOST_EXAMPLES).astype(np.int64))


def _texts_of(*tables: Examples) -> list[str]:
    return [text for table in tables for texts in (table.texts, table.pairs or ()) for text in texts]


def _text_reference(counter: FeatureCounter, texts: Sequence[str]) -> TextReference:
    features, unseen = counter.count(texts)
    return TextReference(
        length=Histogram.of([len(text) for text in texts]),
        features=Histogram.of(features),
        unseen_share=float(unseen.sum() / max(int(features.sum()), 1)),
    )


def _scores(scorer: Scorer, held: Examples, ranked: Examples) -> dict[Route, Histogram]:
    def of(examples: Examples) -> Histogram:
        return Histogram.of(scorer.scores(scorer.predict(examples.texts, examples.pairs)))

    found: dict[Route, Histogram] = {"score": of(held)}
    if scorer.task.of_histories or scorer.task.gains is not None:
        route: Route = "recommend" if scorer.task.of_histories else "rank"
        found[route] = found["score"] if ranked is held else of(ranked)
    return found
