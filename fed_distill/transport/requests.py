"""Requests of the server to a site, beside the method's downlink, and refusals of a site."""

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
"""Record of a reply with the request in ``to`` (``TrainRequest.title``), so that old replies are detected."""
PROTOCOL = 6
"""Version of the protocol between server and sites: requests, uplinks, refusals. Both must have the same."""

Cause = Literal["fault", "budget", "hours", "late", "absent"]
"""Cause for a merchant's absence in a round."""


@dataclass(frozen=True)
class TrainRequest:
    """One round at one site.

    arm: federation or control of the experiment. merchants: requested merchants. students: name of each merchant's
    student. blueprints: blueprints of students (kind and settings as JSON) by name, the global one first. rounds:
    number of planned rounds of each merchant in the arm, over which its privacy budget is divided. population: number
    of merchants in the federation. learning_rate: of this round. test: whether each merchant also evaluates its trained
    student on its own test set. known: round of the server's cached soft labels of each merchant, 0 without any; empty
    without a cache. proxy: mask of the used proxy examples, as bits (``packed``); empty: all. federation: identity of
    the federation in a private arm: it is kept when a run is resumed, and differs for other settings, data or runs.
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
        """Return the title of the request in ``round``, which replies must repeat."""
        return f"{self.arm}, seed {self.seed}, round {round}"

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Index of each of ``merchants``, for fast look-up in large requests."""
        return {merchant: place for place, merchant in enumerate(self.merchants)}

    def student_of(self, merchant: str) -> str:
        """Return the name of a merchant's student."""
        return self.students[self.places[merchant]]

    @property
    def global_blueprint(self) -> str:
        """Blueprint of the global student."""
        return next(iter(self.blueprints.values()))

    def rounds_of(self, merchant: str) -> int:
        """Return the number of planned rounds of a merchant."""
        return self.rounds[self.places[merchant]]

    def known_of(self, merchant: str) -> int:
        """Return the round of the server's cached soft labels of a merchant; 0 without any."""
        return self.known[self.places[merchant]] if self.known else 0

    def part(self, places: Sequence[int]) -> "TrainRequest":
        """Return the request for the merchants at these indices only."""
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
        """Inverse of ``to_record``; raise TrainingError for missing values or other types. Types matter: a string as
        seed could differ for the ledger, but not for the noise."""
        values: dict[str, Any] = {**_OPTIONAL, **record}
        for name, kind in _SINGLE.items():
            if type(values.get(name)) is not kind:
                raise TrainingError(f"{name} of the request must be of type {kind.__name__}")
        for name, kind in _SEVERAL.items():
            several = values.get(name)
            if not isinstance(several, list) or any(type(value) is not kind for value in several):
                raise TrainingError(f"{name} of the request must be a list of type {kind.__name__}")
        merchants = len(values["merchants"])
        if any(len(values[name]) != merchants for name in ("students", "rounds")):
            raise TrainingError("the request must have a student and a number of rounds for each merchant")
        if len(values["known"]) not in (0, merchants):
            raise TrainingError("`known` of the request must have one round for each merchant")
        if len(values["blueprint_names"]) != len(values["blueprints"]):
            raise TrainingError("the request must have one name for each blueprint")
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
"""Optional values of a request."""


def packed(chosen: npt.NDArray[np.bool_]) -> bytes:
    """Pack booleans to bits, eight per byte."""
    return np.packbits(chosen).tobytes()


def unpacked(bits: bytes, size: int) -> npt.NDArray[np.bool_]:
    """Inverse of ``packed``, ``[size]``; raise TrainingError if the number of bytes does not fit."""
    if len(bits) != (size + 7) // 8:
        raise TrainingError(
            f"the server's proxy set differs from this site's of {size} examples: run the same experiment at both"
        )
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=size).astype(np.bool_)


def blueprint_of(model: TextModel) -> str:
    """Return the blueprint of a model: its kind and settings as JSON."""
    return json.dumps({"kind": model.kind, "settings": dict(model.settings)}, sort_keys=True)


def built_from(blueprint: str) -> TextModel:
    """Inverse of ``blueprint_of``, with arbitrary weights; raise TrainingError for an invalid blueprint."""
    try:
        description = json.loads(blueprint)
        kind, settings = description["kind"], description["settings"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TrainingError("the request has an invalid blueprint of a student") from error
    return rebuild(kind, settings)


@dataclass(frozen=True)
class Refusal:
    """A merchant that did not participate, with the reason.

    cause: ``fault``: an error, or an invalid uplink; ``budget``: its privacy budget, limits or rules; ``hours``:
    outside of its site's hours; ``late``: after the deadline; ``absent``: its site is offline. A site can report only
    the first three.
    """

    merchant: str
    reason: str
    cause: Cause = "fault"

    @property
    def passing(self) -> bool:
        """Whether the cause is temporary, so that the merchant may participate later."""
        return self.cause in ("hours", "late", "absent")

    def to_record(self) -> ConfigRecord:
        """As a Flower config record."""
        return ConfigRecord({"merchant": self.merchant, "reason": self.reason, "cause": self.cause})
