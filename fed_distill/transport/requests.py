"""What the server asks of a site, beside the method's downlink, and how a site says no."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord

from fed_distill.errors import TrainingError
from fed_distill.models import TextModel, rebuild

QUERY_MERCHANTS = "query.merchants"
QUERY_PRIVACY = "query.privacy"
JOIN = "query.join"
TRAIN = "train.merchants"
EVALUATE = "evaluate.merchants"
ANSWER = "answer"
"""Record of a reply that says ``to`` what request (``TrainRequest.title``): an old reply is no answer to a new one."""
PROTOCOL = 4
"""Version of what servers and sites say to each other: requests, uplinks, refusals. Both must have the same."""

Cause = Literal["fault", "budget", "hours", "late", "absent"]
"""Why a merchant did not take part."""


@dataclass(frozen=True)
class TrainRequest:
    """One round at one site.

    arm: which federation or control of the experiment. merchants: who is meant. students: name of each one's
    student. blueprints: how to build a student, by name (kind and settings as JSON), the global one first. rounds: in
    how many rounds of the arm each merchant is asked in all, by which its privacy budget is spread. population:
    merchants of the federation. learning_rate: of this round. test: whether each merchant also measures its trained
    student on its own test set. known: the round of which the server has each one's soft labels, 0 for none; empty
    where these are not cached. proxy: which of a site's proxy examples are used, as bits (``packed``); empty for all.
    federation: names the very federation that the request is of, in a private arm: a resumed one has the same name, and
    one that has other settings or data, or that is run again, another.
    """

    arm: str
    seed: int
    merchants: tuple[str, ...]
    students: tuple[str, ...]
    blueprints: Mapping[str, str]
    rounds: tuple[int, ...]
    population: int
    learning_rate: float = 0.0
    test: bool = False
    known: tuple[int, ...] = ()
    proxy: bytes = b""
    federation: str = ""

    def title(self, round: int) -> str:
        """What its answers in ``round`` must say that they answer."""
        return f"{self.arm}, seed {self.seed}, round {round}"

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each of ``merchants`` is among them: a request may be for very many, and each is looked up."""
        return {merchant: place for place, merchant in enumerate(self.merchants)}

    def student_of(self, merchant: str) -> str:
        """Kind of student of one of ``merchants``."""
        return self.students[self.places[merchant]]

    @property
    def global_blueprint(self) -> str:
        """How to build the global student."""
        return next(iter(self.blueprints.values()))

    def rounds_of(self, merchant: str) -> int:
        """Planned rounds of one of ``merchants``."""
        return self.rounds[self.places[merchant]]

    def known_of(self, merchant: str) -> int:
        """Round of which the server has the soft labels of one of ``merchants``; 0 for none."""
        return self.known[self.places[merchant]] if self.known else 0

    def part(self, places: Sequence[int]) -> "TrainRequest":
        """The same request for the merchants at these places only."""
        return replace(
            self,
            merchants=tuple(self.merchants[place] for place in places),
            students=tuple(self.students[place] for place in places),
            rounds=tuple(self.rounds[place] for place in places),
            known=tuple(self.known[place] for place in places) if self.known else (),
        )

    def to_record(self) -> ConfigRecord:
        """As a Flower config record."""
        return ConfigRecord(
            {
                "arm": self.arm,
                "seed": self.seed,
                "merchants": list(self.merchants),
                "students": list(self.students),
                "blueprint_names": list(self.blueprints),
                "blueprints": list(self.blueprints.values()),
                "rounds": list(self.rounds),
                "population": self.population,
                "learning_rate": self.learning_rate,
                "test": self.test,
                **({"known": list(self.known)} if self.known else {}),
                **({"proxy": self.proxy} if self.proxy else {}),
                **({"federation": self.federation} if self.federation else {}),
            }
        )

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "TrainRequest":
        """Inverse of ``to_record``; TrainingError for one that is incomplete or of other types: a seed that is a text
        may be another seed to the ledger and the same to the noise."""
        values: dict[str, Any] = {**_OPTIONAL, **record}
        for name, kind in _SINGLE.items():
            if type(values.get(name)) is not kind:
                raise TrainingError(f"a request whose {name} is no {kind.__name__}")
        for name, kind in _SEVERAL.items():
            several = values.get(name)
            if not isinstance(several, list) or any(type(value) is not kind for value in several):
                raise TrainingError(f"a request whose {name} are not of type {kind.__name__}")
        merchants = len(values["merchants"])
        if any(len(values[name]) != merchants for name in ("students", "rounds")):
            raise TrainingError("a request without a student and a number of rounds for each of its merchants")
        if len(values["known"]) not in (0, merchants):
            raise TrainingError("a request that knows soft labels of other merchants than it asks")
        if len(values["blueprint_names"]) != len(values["blueprints"]):
            raise TrainingError("a request with other names of students than descriptions")
        return cls(
            arm=values["arm"],
            seed=values["seed"],
            merchants=tuple(values["merchants"]),
            students=tuple(values["students"]),
            blueprints=dict(zip(values["blueprint_names"], values["blueprints"], strict=True)),
            rounds=tuple(values["rounds"]),
            population=values["population"],
            learning_rate=values["learning_rate"],
            test=values["test"],
            known=tuple(values["known"]),
            proxy=values["proxy"],
            federation=values["federation"],
        )


_SINGLE = {
    **dict.fromkeys(("arm", "federation"), str),
    **dict.fromkeys(("seed", "population"), int),
    "learning_rate": float,
    "test": bool,
    "proxy": bytes,
}
_SEVERAL = {
    **dict.fromkeys(("merchants", "students", "blueprint_names", "blueprints"), str),
    **dict.fromkeys(("rounds", "known"), int),
}
"""Types of a request's values on the wire."""
_OPTIONAL: Mapping[str, Any] = {"known": [], "proxy": b"", "federation": ""}
"""What a request need not say."""


def packed(chosen: npt.NDArray[np.bool_]) -> bytes:
    """Eight to a byte."""
    return np.packbits(chosen).tobytes()


def unpacked(bits: bytes, size: int) -> npt.NDArray[np.bool_]:
    """Inverse of ``packed``, ``[size]``. TrainingError unless there are as many bits, whole bytes aside."""
    if len(bits) != (size + 7) // 8:
        raise TrainingError(
            f"the server chose in another proxy set than this site's, of {size} examples: run one experiment at both"
        )
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=size).astype(np.bool_)


def blueprint_of(model: TextModel) -> str:
    """How to build an equal model with other weights: its kind and settings as JSON."""
    return json.dumps({"kind": model.kind, "settings": dict(model.settings)}, sort_keys=True)


def built_from(blueprint: str) -> TextModel:
    """Inverse of ``blueprint_of``, with arbitrary weights. TrainingError for a text that describes no model."""
    try:
        description = json.loads(blueprint)
        kind, settings = description["kind"], description["settings"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TrainingError("a request with a student that is not described as it should be") from error
    return rebuild(kind, settings)


@dataclass(frozen=True)
class Refusal:
    """A merchant that did not take part, and why.

    cause: a ``fault`` of its own or of what it sent; its privacy ``budget``, limits or rules; its site's ``hours``; too
    ``late``; its site ``absent``. Only the first three are a site's to say.
    """

    merchant: str
    reason: str
    cause: Cause = "fault"

    @property
    def passing(self) -> bool:
        """Whether the merchant may well take part if it is asked again later."""
        return self.cause in ("hours", "late", "absent")

    def to_record(self) -> ConfigRecord:
        """As a Flower config record."""
        return ConfigRecord({"merchant": self.merchant, "reason": self.reason, "cause": self.cause})
