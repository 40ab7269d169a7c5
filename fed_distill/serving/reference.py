"""``reference.json`` of an export: what texts and scores looked like on held-out data of the run.

It has histograms, shares and a bitmap, and no text. ``reference_data`` builds it; ``drift`` compares traffic with it.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError, model_validator

from fed_distill.errors import ModelError
from fed_distill.serving.exported_folder import REFERENCE, ExportDescription, VariantName, read_inside
from fed_distill.text.encoders import Encoder

BINS = 10
"""Bins of a histogram: deciles of the reference, the usual choice for the population stability index."""
_MOST_EDGES = 100
REFERENCE_FORMAT = 1
"""Version of ``reference.json``. Increase it with any change by which an earlier program would misread it."""

Part = Literal["text", "pair"]
Route = Literal["score", "rank", "recommend"]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Histogram(_Strict):
    """Counts of values in bins.

    edges: increasing upper edges of all bins but the last, ``[bins - 1]``: bin ``i`` has the values ``x`` with
    ``edges[i - 1] < x <= edges[i]``, and the first and the last bin are open. counts: values in each bin, ``[bins]``.
    """

    edges: Annotated[list[FiniteFloat], Field(max_length=_MOST_EDGES)]
    counts: list[NonNegativeInt]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges have {len(self.counts)} counts, and must have one more")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must increase")
        return self

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Self:
        """Return the histogram of ``values`` ``[n]`` by their deciles; values that are often equal give fewer bins."""
        exact = np.asarray(values, dtype=np.float64)
        edges: Values = np.zeros(0)
        if len(exact):
            deciles = np.quantile(exact, np.arange(1, BINS) / BINS, method="inverted_cdf")
            edges = np.unique(deciles[deciles < exact.max()])
        counts = np.bincount(np.searchsorted(edges, exact), minlength=len(edges) + 1)
        return cls(edges=edges.tolist(), counts=counts.tolist())

    def places(self, values: npt.ArrayLike) -> Counts:
        """Return the bin of each value, int64 ``[n]``."""
        return np.searchsorted(self.edges, np.asarray(values, dtype=np.float64)).astype(np.int64)


class TextReference(_Strict):
    """Texts of one part of the examples.

    length: characters of a cleaned text. features: hashed words and n-grams, or tokens, of a text. unseen_share: share
    of all features that ``Reference.seen`` does not have.
    """

    length: Histogram
    features: Histogram
    unseen_share: Annotated[float, Field(ge=0.0, le=1.0)]


class Reference(_Strict):
    """Content of ``reference.json``.

    source: which data of the run were held out: the test data or, if there are none, the server's validation data.
    texts: first texts (queries, histories) and second texts (titles). scores: by variant and route, the expected gain
    of a pair or, for tasks without gains, the probability of the positive class. seen: base64 of a bitmap, the least
    significant bit first, whose bit ``i`` is 1 if row ``i`` of the embedding, or token ``i``, occurs in a text of the
    server: in its own labelled examples or in the proxy set. What only merchants' private texts have is not in it.
    """

    format: Literal[1]
    source: Literal["test", "public_valid"]
    texts: dict[Part, TextReference]
    scores: dict[VariantName, dict[Route, Histogram]]
    seen: str

    @model_validator(mode="after")
    def _bitmap(self) -> Self:
        try:
            base64.b64decode(self.seen, validate=True)
        except binascii.Error as error:
            raise ValueError(f"seen is not base64: {error}") from error
        return self

    @property
    def seen_rows(self) -> Mask:
        """Whether each row of the embedding is seen, bool ``[rows]``, padded to a multiple of 8."""
        packed = np.frombuffer(base64.b64decode(self.seen), dtype=np.uint8)
        return np.unpackbits(packed, bitorder="little").astype(np.bool_)


def packed(seen: Mask) -> str:
    """Return ``Reference.seen`` of rows."""
    return base64.b64encode(np.packbits(seen, bitorder="little").tobytes()).decode("ascii")


class FeatureCounter:
    """Counts the features of texts, and those that are unseen. Ids that an empty text has too, such as [CLS], are no
    features."""

    def __init__(self, encode: Encoder, seen: Mask, hashed: bool) -> None:
        """seen: whether each id is seen, bool ``[rows]``; ids beyond are not. hashed: whether several features may
        have one id."""
        self._encode, self._seen, self._hashed = encode, seen, hashed
        self._special = np.unique(feature_ids(encode, [""]))

    @property
    def ceiling(self) -> float:
        """Share of unseen features to expect of texts whose features are all new: some are hashed to seen rows."""
        return 1.0 - float(self._seen.mean()) if self._hashed and len(self._seen) else 1.0

    def count(self, texts: Sequence[str]) -> tuple[Counts, Counts]:
        """Return the number of features of each cleaned text, and of its unseen features, each int64 ``[n]``."""
        ids = feature_ids(self._encode, texts)
        used = ~np.isin(ids, self._special) & (ids != 0)
        inside = ids < len(self._seen)
        seen = inside & self._seen[np.where(inside, ids, 0)] if len(self._seen) else np.zeros_like(used)
        return used.sum(axis=1), (used & ~seen).sum(axis=1)


def feature_ids(encode: Encoder, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the ids of single texts, int64 ``[n, length]``, padded with 0."""
    (ids,) = encode(texts, None).values()
    return ids.astype(np.int64)


def load_reference(folder: Path, description: ExportDescription) -> Reference | None:
    """Return the reference of an export; None if it has none, as exports of earlier versions and without quality.

    :raises ModelError: it is missing or damaged
    """
    expected = description.reference
    if expected is None:
        return None
    content = read_inside(folder, REFERENCE, expected.bytes)
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise ModelError(f"{folder / REFERENCE} is damaged: copy it again, or export the student again")
    try:
        return Reference.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise ModelError(
            f"{folder / REFERENCE} is not a reference of format {REFERENCE_FORMAT}: {where}: {first['msg']}; export "
            "the student again with fed-distill export"
        ) from error


def histograms(reference: Reference, variant: VariantName) -> Mapping[str, Histogram]:
    """Return the histograms of one variant by what they are of: ``text_length``, ``pair_features``, ``rank_score``."""
    found: dict[str, Histogram] = {}
    for part, texts in reference.texts.items():
        found[f"{part}_length"], found[f"{part}_features"] = texts.length, texts.features
    found.update({f"{route}_score": one for route, one in reference.scores.get(variant, {}).items()})
    return found
