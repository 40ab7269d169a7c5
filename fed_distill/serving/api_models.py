"""Requests and answers of the service, with their limits and examples.

Types are strict: a number is no text. Texts have further limits that depend on the student (``data.max_characters``).
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from fed_distill.serving.service_config import MOST_TITLES

_CHARACTERS = 10_000
"""Characters of a text that no student exceeds; longer ones are refused before they are cleaned."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=_CHARACTERS)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TITLES)]
ProductIds = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(min_length=1, max_length=MOST_TITLES)
]
Session = Annotated[str, StringConstraints(min_length=1, max_length=128)]

_QUERY = "usb-c hub 7in1"
_TITLES: list[JsonValue] = ["Anker 555 USB-C Hub (8-in-1), 100W PD", "HDMI cable 2 m"]


class ApiRequest(BaseModel):
    """What all requests have.

    session: names a shopper's session without naming the shopper; it always gets the same student. Without one, equal
    requests get the same student.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    session: Session | None = Field(None, description="session of a shopper, which keeps its student")


class ScoreRequest(ApiRequest):
    """Texts, or pairs of texts, whose class probabilities are wanted."""

    model_config = ConfigDict(json_schema_extra={"example": {"texts": [_QUERY], "pairs": _TITLES[:1]}})

    texts: Texts = Field(description="first texts: queries, histories, titles or reviews")
    pairs: Texts | None = Field(None, description="second texts, one for each text, if the task has pairs")


class ScoreAnswer(BaseModel):
    """probabilities: of each text, in the order of ``classes``."""

    classes: list[str]
    probabilities: list[list[float]]


class RankRequest(ApiRequest):
    """Titles that are ranked for a query."""

    model_config = ConfigDict(json_schema_extra={"example": {"query": _QUERY, "titles": _TITLES}})

    query: Text
    titles: Texts


class RecommendRequest(ApiRequest):
    """Titles that are ranked for a shopper."""

    model_config = ConfigDict(json_schema_extra={"example": {"history": _TITLES[:1], "titles": _TITLES}})

    history: Texts = Field(description="titles of the last clicks, oldest first")
    titles: Texts


class RankAnswer(BaseModel):
    """order: positions of the titles from best to worst. scores: of the titles in the order of the request."""

    order: list[int]
    scores: list[float]


class ReadyAnswer(BaseModel):
    """ready: whether requests are answered. students: version by role. refused: what could not be reloaded; the log
    has the reasons."""

    ready: bool
    students: dict[str, str]
    refused: list[str]


class HealthAnswer(BaseModel):
    """status: ``ok`` while the process lives."""

    status: str = "ok"


class ReloadAnswer(BaseModel):
    """students: version by role. problems: why a student or the keys were refused."""

    students: dict[str, str]
    problems: dict[str, str]


class ErrorAnswer(BaseModel):
    """error: one of the codes in the documentation. detail: one line for a person."""

    error: str
    detail: str
