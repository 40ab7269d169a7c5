"""Validation of one round's uplinks, one after another, before they are merged.

Statistics of the round (losses, bytes, refusals, merchants' own test counts) are accumulated, so that uplinks need not
be kept.
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
    """Iterable of a round's accepted uplinks, ordered by merchant. Iterate it once, then read its statistics.

    An uplink is accepted if it fits the round, has the same parts (updates, rows of tables, soft labels, votes) as most
    uplinks of the first chunk with valid ones, and its update norm is at most ``max_norm_ratio`` times their median.
    Its weight is truncated by ``counts`` with the sizes in that chunk. If uplinks are not ``compared``, it needs only a
    valid update: for merchant-level privacy, one merchant must not affect whether another's update is accepted.

    The iteration raises a TrainingError if less than ``share`` of the requested merchants are accepted: TooFewAnswers
    if enough others may become available. Merchants without privacy budget do not count as requested; if no others are
    left, it raises BudgetExceeded. ``merchants``, ``refusals`` and ``own_counts`` ((correct, all) own test examples of
    each merchant's trained student, as it reported them) grow during the iteration.
    """

    def __init__(
        self,
        chunks: Iterable[Chunk],
        context: Context,
        requested: int,
        number: int,
        share: float = 0.5,
        max_norm_ratio: float | None = None,
        compared: bool = True,
        counts: Counts | None = None,
    ) -> None:
        """Validate uplinks of round ``number`` from ``requested`` merchants; ``context``: shapes of their payloads."""
        self.merchants: list[str] = []
        self.refusals: list[Refusal] = []
        self.own_counts: dict[str, tuple[int, int]] = {}
        self._context, self._requested, self._number, self._share = context, requested, number, share
        self._usual: _Parts | None = None
        self._max_norm_ratio, self._usual_norm, self._compared = max_norm_ratio, 0.0, compared
        self._counts = counts
        self._received = self._downlink_bytes = self._uplink_bytes = 0
        self._to_come = requested
        self._losses: list[float] = []
        self._causes: Counter[Cause] = Counter()
        self._stream = self._accepted(chunks)

    def __iter__(self) -> Iterator[Uplink]:
        return self._stream

    def finish(self) -> None:
        """Consume the remaining uplinks, for a method that does not iterate them; raise errors as the iteration."""
        for _ in self._stream:
            pass
        self._check_enough()

    @property
    def train_loss(self) -> float | None:
        """Mean reported training loss of the accepted merchants; None if no one reports it."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    @property
    def bytes(self) -> dict[str, float]:
        """Mean serialized bytes: ``downlink`` over merchants that were online, ``uplink`` over those that sent one."""
        return {
            "downlink": self._downlink_bytes / max(self._requested - self._causes["absent"], 1),
            "uplink": self._uplink_bytes / max(self._received, 1),
        }

    @property
    def answers(self) -> dict[str, int]:
        """Number of merchants by outcome: ``asked`` (all), ``merged``, ``late``, ``absent``, ``resting`` (outside of
        their site's hours), and ``refused`` (the remaining ones)."""
        passing = {"late": self._causes["late"], "absent": self._causes["absent"], "resting": self._causes["hours"]}
        merged = len(self.merchants)
        return {
            "asked": self._requested,
            "merged": merged,
            **passing,
            "refused": self._requested - merged - sum(passing.values()),
        }

    @property
    def causes(self) -> dict[Cause, int]:
        """Number of merchants that were not merged, by ``Refusal.cause``; one without any answer is a fault."""
        counts: dict[Cause, int] = {cause: count for cause, count in self._causes.items() if cause != "fault"}
        faults = self._requested - len(self.merchants) - sum(counts.values())
        return {**counts, "fault": faults} if faults > 0 else counts

    @property
    def total_bytes(self) -> dict[str, int]:
        """Total serialized bytes over all merchants."""
        return {"downlink": self._downlink_bytes, "uplink": self._uplink_bytes}

    def _accepted(self, chunks: Iterable[Chunk]) -> Iterator[Uplink]:
        # map and chain keep no chunk in memory while the next one arrives; a loop over chunks would
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
        """Whether an uplink matches most others; otherwise it is refused."""
        if not self._compared:
            if uplink.get(StudentUpdate) is not None:
                return True
            odd = "its uplink has no update of weights"
        elif _parts(uplink) != self._usual:
            odd = "the parts of its uplink differ from those of most merchants"
        elif self._max_norm_ratio is not None and 0.0 < self._max_norm_ratio * self._usual_norm < (
            norm := update_norm(uplink)
        ):
            odd = f"its update has a norm of {norm:.3g}, and the median norm is {self._usual_norm:.3g}"
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
        if spent and spent >= self._requested:
            raise BudgetExceeded(
                f"round {self._number}: no merchant can participate any more; {self.refusals[0].reason}"
            )
        merged, enough = len(self.merchants), least(self._share, self._requested - spent)
        if merged < enough:
            helps = merged + passing >= enough
            reasons = [refusal.reason for refusal in self.refusals if refusal.passing or not helps]
            reason = reasons[0] if reasons else "the other merchants did not answer"
            raise (TooFewAnswers if helps else TrainingError)(
                f"round {self._number}: only {merged} of {self._requested} merchants can be merged; {reason}"
            )


def update_norm(up: Uplink) -> float:
    """Return the L2 norm of a merchant's update of the global student; 0 without an update."""
    return math.hypot(*(payload.norm() for payload in up.payloads))


def _parts(uplink: Uplink) -> _Parts:
    """Return the kinds of payloads, each with the structure that must be equal among merchants."""
    return frozenset((payload.name, payload.structure()) for payload in uplink.payloads)
