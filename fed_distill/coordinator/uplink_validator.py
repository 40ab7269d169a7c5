"""The uplinks of one round on their way to be merged: checked, counted and let go, one after another.

What a round is reported by (losses, bytes, refusals, merchants' own test counts) is summed up on the way, so that
no uplink has to be kept.
"""

import logging
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from statistics import median

from fed_distill.coordinator.attempts import least
from fed_distill.coordinator.counts import Counts
from fed_distill.coordinator.exchange import readable
from fed_distill.coordinator.sites import Chunk
from fed_distill.errors import BudgetExceeded, TooFewAnswers, TrainingError, UplinkRejected
from fed_distill.logs import observed
from fed_distill.payloads.base import Context
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import check_uplink
from fed_distill.transport.requests import Cause, Refusal

_log = logging.getLogger(__name__)
_Parts = frozenset[tuple[str, Hashable]]


class UplinkValidator:
    """The uplinks of a round that may be merged, ordered by merchant. Iterate it once, then read what it has seen.

    An uplink may be merged if it fits the round and has the parts (updates, rows of tables, soft labels, votes) that
    most have in the first chunk with any fit uplink, and moved weights no farther than ``max_norm_ratio`` times their
    median there. What it says to count for is cut to what ``counts`` allows by the sizes in that chunk. Where they are
    not ``compared`` it needs an update and nothing else: to hide who took part, a merchant must not decide whether
    another's update counts, but change the sum by its own alone. When the merchants are through and less than ``share``
    of those asked may be merged, the iteration ends in a TrainingError, which is TooFewAnswers if enough others may
    answer another time; those whose privacy budget is spent do not count as asked, and if nobody else is left, it ends
    in BudgetExceeded. ``merchants``, ``refusals`` and ``own_counts`` ((right, all) own test examples of each merchant's
    trained student, as it measured it) grow while it is iterated.
    """

    def __init__(
        self,
        chunks: Iterable[Chunk],
        context: Context,
        asked: int,
        number: int,
        share: float = 0.5,
        max_norm_ratio: float | None = None,
        compared: bool = True,
        counts: Counts | None = None,
    ) -> None:
        """``asked`` merchants were to take part in round ``number``; ``context``: what their payloads must fit."""
        self.merchants: list[str] = []
        self.refusals: list[Refusal] = []
        self.own_counts: dict[str, tuple[int, int]] = {}
        self._context, self._asked, self._number, self._share = context, asked, number, share
        self._usual: _Parts | None = None
        self._max_norm_ratio, self._usual_norm, self._compared = max_norm_ratio, 0.0, compared
        self._counts = counts
        self._received = self._downlink_bytes = self._uplink_bytes = 0
        self._to_come = asked
        self._losses: list[float] = []
        self._causes: Counter[Cause] = Counter()
        self._stream = self._accepted(chunks)

    def __iter__(self) -> Iterator[Uplink]:
        return self._stream

    def finish(self) -> None:
        """Take in what nobody asked for: a method that merges nothing leaves its uplinks. TrainingError as above."""
        for _ in self._stream:
            pass
        self._check_enough()

    @property
    def train_loss(self) -> float | None:
        """Mean training loss of the merchants that may be merged and tell theirs; None if none does."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    @property
    def bytes(self) -> dict[str, float]:
        """Serialized bytes a merchant: ``downlink`` over those that were there, ``uplink`` over those that sent one."""
        return {
            "downlink": self._downlink_bytes / max(self._asked - self._causes["absent"], 1),
            "uplink": self._uplink_bytes / max(self._received, 1),
        }

    @property
    def answers(self) -> dict[str, int]:
        """Merchants by what became of them: ``asked``, which are all, ``merged``, ``late``, ``absent``, ``resting``
        (outside of their site's hours), and ``refused``, which are the others."""
        passing = {"late": self._causes["late"], "absent": self._causes["absent"], "resting": self._causes["hours"]}
        merged = len(self.merchants)
        return {
            "asked": self._asked,
            "merged": merged,
            **passing,
            "refused": self._asked - merged - sum(passing.values()),
        }

    @property
    def causes(self) -> dict[Cause, int]:
        """How many merchants were not merged, by ``Refusal.cause``; one that a site did not even mention is a fault."""
        counts: dict[Cause, int] = {cause: count for cause, count in self._causes.items() if cause != "fault"}
        faults = self._asked - len(self.merchants) - sum(counts.values())
        return {**counts, "fault": faults} if faults > 0 else counts

    @property
    def total_bytes(self) -> dict[str, int]:
        """Serialized bytes over all merchants, of which ``bytes`` are the means."""
        return {"downlink": self._downlink_bytes, "uplink": self._uplink_bytes}

    def _accepted(self, chunks: Iterable[Chunk]) -> Iterator[Uplink]:
        # map and chain hold no chunk while the next one comes in; a loop over chunks would
        for uplink in chain.from_iterable(map(self._fit, chunks)):
            self.merchants.append(uplink.merchant)
            if "loss" in uplink.metrics:
                self._losses.append(uplink.metrics["loss"])
            if uplink.metrics.get("test_count"):
                right, count = uplink.metrics["test_right"], uplink.metrics["test_count"]
                self.own_counts[uplink.merchant] = (int(right), int(count))
            yield uplink
        self._check_enough()

    def _fit(self, chunk: Chunk) -> list[Uplink]:
        self._received += len(chunk.uplinks)
        self._downlink_bytes += chunk.downlink_bytes
        self._uplink_bytes += chunk.uplink_bytes
        for refusal in chunk.refusals:
            self._refuse(refusal)
        self._to_come -= len(chunk.uplinks) + sum(bool(refusal.merchant) for refusal in chunk.refusals)
        fit = [uplink for uplink in chunk.uplinks if self._checked(uplink)]
        if self._compared and self._usual is None and fit:
            self._usual = Counter(map(_parts, fit)).most_common(1)[0][0]
            if self._max_norm_ratio is not None:
                self._usual_norm = median(update_norm(uplink) for uplink in fit if _parts(uplink) == self._usual)
        usual = [uplink for uplink in fit if self._is_usual(uplink)]
        if self._counts is None:
            return usual
        self._counts.learn(usual, max(self._to_come, 0))
        return list(map(self._counts.cut, usual))

    def _is_usual(self, uplink: Uplink) -> bool:
        """Whether an uplink is like most others; it is refused if not."""
        if not self._compared:
            if uplink.get(StudentUpdate) is not None:
                return True
            odd = "its uplink has no update of weights"
        elif _parts(uplink) != self._usual:
            odd = "its uplink has other parts than most others have"
        elif self._max_norm_ratio is not None and 0.0 < self._max_norm_ratio * self._usual_norm < (
            norm := update_norm(uplink)
        ):
            odd = f"its update has a norm of {norm:.3g}, and half of the others have {self._usual_norm:.3g} at most"
        else:
            return True
        self._refuse(Refusal(uplink.merchant, f"merchant {uplink.merchant}: {odd}"))
        return False

    def _checked(self, uplink: Uplink) -> bool:
        try:
            check_uplink(uplink, self._context)
        except UplinkRejected as error:
            self._refuse(Refusal(uplink.merchant, str(error)))
            return False
        return True

    def _refuse(self, refusal: Refusal) -> None:
        refusal = replace(refusal, reason=readable(refusal.reason))
        with observed(merchant=refusal.merchant or None):
            _log.warning("round %d: %s", self._number, refusal.reason)
        self.refusals.append(refusal)
        self._causes[refusal.cause] += 1

    def _check_enough(self) -> None:
        spent = self._causes["budget"]
        passing = sum(refusal.passing for refusal in self.refusals)
        if spent and spent >= self._asked:
            raise BudgetExceeded(f"round {self._number}: no merchant may take part any more; {self.refusals[0].reason}")
        merged, enough = len(self.merchants), least(self._share, self._asked - spent)
        if merged < enough:
            helps = merged + passing >= enough
            reasons = [refusal.reason for refusal in self.refusals if refusal.passing or not helps]
            reason = reasons[0] if reasons else "the others did not answer"
            raise (TooFewAnswers if helps else TrainingError)(
                f"round {self._number}: only {merged} of {self._asked} merchants can be merged; {reason}"
            )


def update_norm(up: Uplink) -> float:
    """L2 norm of how far a merchant moved the global student; 0 if it sends nothing of weights."""
    return math.hypot(*(payload.norm() for payload in up.payloads))


def _parts(uplink: Uplink) -> _Parts:
    """Which payloads there are, and of each what must be equal among merchants."""
    return frozenset((payload.name, payload.structure()) for payload in uplink.payloads)
