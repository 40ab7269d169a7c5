"""Requests and answers of the service, with their limits and examples.

Types are strict: a number is no text. Texts have further limits that depend on the student (``data.max_characters``).
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from fed_distill.serving.index import CANDIDATES
from fed_distill.serving.request_ids import REQUEST_ID_PATTERN
from fed_distill.serving.service_config import MOST_TITLES

_CHARACTERS = 10_000
"""Characters of a text that no student exceeds; longer ones are refused before they are cleaned."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=_CHARACTERS)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TITLES)]
ProductId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ProductIds = Annotated[list[ProductId], Field(min_length=1, max_length=MOST_TITLES)]
_LARGEST = 1e6
LexicalScores = Annotated[
    list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]], Field(min_length=1, max_length=MOST_TITLES)
]
ErrorCode = Literal[
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "timeout",
    "too_large",
    "invalid",
    "rate_limited",
    "overloaded",
    "not_ready",
    "internal",
]
MOST_DETAIL = 300
"""Characters of an error's line."""
Session = Annotated[str, StringConstraints(min_length=1, max_length=128)]

_QUERY = "usb-c hub 7in1"
_TITLES: list[JsonValue] = ["Anker 555 USB-C Hub (8-in-1), 100W PD", "HDMI cable 2 m"]


class StrictRequest(BaseModel):
    """A body without keys that nobody has asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ApiRequest(StrictRequest):
    """What all requests that a student answers have.

    session: names a shopper's session without naming the shopper; it always gets the same student. Without one, equal
    requests get the same student.
    """

    session: Session | None = Field(None, description="session of a shopper, which keeps its student")


class ScoreRequest(ApiRequest):
    """Texts, or pairs of texts, whose class probabilities are wanted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": [_QUERY], "pairs": _TITLES[:1]}]})

    texts: Texts = Field(description="first texts: queries, histories, titles or reviews")
    pairs: Texts | None = Field(None, description="second texts, one for each text, if the task has pairs")


class ScoreAnswer(BaseModel):
    """probabilities: of each text, in the order of ``classes``."""

    classes: list[str]
    probabilities: list[list[float]]


class RankRequest(ApiRequest):
    """Titles, or products of the index, that are ranked for a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": _QUERY, "titles": _TITLES}],
            "oneOf": [{"required": [name], "properties": {name: {"type": "array"}}} for name in ("titles", "products")],
        }
    )

    query: Text
    titles: Texts | None = None
    products: ProductIds | None = Field(None, description="ids of products in the index, instead of titles")
    bm25: LexicalScores | None = Field(
        None, description="score of each title or product by a search by words, if it is to count too"
    )
    bm25_weight: Annotated[float, Field(ge=0.0, le=_LARGEST)] | None = Field(
        None, description="weight of bm25 in the sum with the log-odds of the student's score; required with bm25"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.titles is None) == (self.products is None):
            raise ValueError("send either titles or products")
        if (self.bm25 is None) != (self.bm25_weight is None):
            raise ValueError("send both of bm25 and bm25_weight, or neither")
        candidates = self.titles or self.products or []
        if self.bm25 is not None and len(self.bm25) != len(candidates):
            raise ValueError(f"bm25 has {len(self.bm25)} scores for {len(candidates)} candidates")
        return self


class RecommendRequest(ApiRequest):
    """Titles that are ranked for a shopper."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": _TITLES[:1], "titles": _TITLES}]})

    history: Texts = Field(description="titles of the last clicks, oldest first")
    titles: Texts


class RankAnswer(BaseModel):
    """order: positions of the titles from best to worst. scores: of the titles in the order of the request: expected
    gains, in [0, 1]; with a search by words, log-odds of these plus weighted BM25."""

    order: list[int]
    scores: list[float]


class SearchRequest(ApiRequest):
    """A search in the index."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": _QUERY, "k": 10}]})

    query: Text
    k: Annotated[int, Field(ge=1, le=1000)] = Field(10, description="number of products that are returned")
    candidates: Annotated[int, Field(ge=1, le=MOST_TITLES)] = Field(
        CANDIDATES, description="number of nearest products that the head scores; at least k are"
    )


class FoundProduct(BaseModel):
    """A product; see ``index.Hit``."""

    id: str
    title: str
    similarity: float
    score: float


class SearchAnswer(BaseModel):
    """hits: products from best to worst."""

    hits: list[FoundProduct]


class ExplainRequest(ApiRequest):
    """A query and a title whose score is explained."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": _QUERY, "title": _TITLES[0]}]})

    query: Text
    title: Text


class WordAnswer(BaseModel):
    """A word, its characters from ``start`` to before ``stop``, and what it adds to the score."""

    text: str
    start: int
    stop: int
    contribution: float


class ExplainAnswer(BaseModel):
    """The score, that of texts without words, contributions of words, and the numerical error of their sum."""

    query: str
    title: str
    score: float
    baseline: float
    query_words: list[WordAnswer]
    title_words: list[WordAnswer]
    residual: float


class NewProduct(StrictRequest):
    """A product as it should be in the index."""

    id: ProductId
    title: Text


class PutProductsRequest(StrictRequest):
    """Products that are added, or whose titles are replaced."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"products": [{"id": "new-1", "title": _TITLES[0]}]}]},
    )

    products: Annotated[list[NewProduct], Field(min_length=1, max_length=MOST_TITLES)] = Field(
        description="products of distinct ids"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        places: dict[str, int] = {}
        for place, product in enumerate(self.products):
            first = places.setdefault(product.id, place)
            if first != place:  # without the id, which is a value of the request
                raise ValueError(f"products[{place}] has the id of products[{first}]: send each product once")
        return self


class DeleteProductsRequest(StrictRequest):
    """Products that are deleted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"products": ["new-1"]}]})

    products: ProductIds = Field(description="ids; those that are not in the index change nothing")


class ChangedAnswer(BaseModel):
    """added, replaced, deleted: numbers of products. products: those in the saved index after the change."""

    added: int
    replaced: int
    deleted: int
    products: int


class ReadyAnswer(BaseModel):
    """ready: whether requests are answered. students: version by role. refused: what could not be reloaded; the log
    has the reasons. drift_not_measured: by role, why the drift of its traffic, which is to be watched, is not measured.
    """

    ready: bool
    students: dict[str, str]
    refused: list[str]
    drift_not_measured: dict[str, str]


class HealthAnswer(BaseModel):
    """status: ``ok`` while the process lives."""

    status: str = "ok"


class ReloadAnswer(BaseModel):
    """students: version by role. problems: why a student or the keys were refused."""

    students: dict[str, str]
    problems: dict[str, str]


class ErrorAnswer(BaseModel):
    """error: for programs. detail: one line for a person, without any value of the request. request_id: that of the
    header ``X-Request-ID`` and of the service's log."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorCode
    detail: Annotated[str, StringConstraints(max_length=MOST_DETAIL, pattern=r"^[^\r\n]*$")]
    request_id: Annotated[str, StringConstraints(pattern=REQUEST_ID_PATTERN)]
