"""Repeat a round with too few participants if more may become available, for example when sites reconnect.

The server keeps nothing of a round that is not merged. Sites answer an identical request identically and charge it once
(DESIGN 6.3, 6.6), so that merchants that already participated send the same uplink again.
"""

import logging
import math
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from fed_distill.config import FederationConfig
from fed_distill.errors import TooFewAnswers, TrainingError

_Taken = TypeVar("_Taken")
_SLACK = 1e-9

_log = logging.getLogger(__name__)


def least(share: float, merchants: int) -> int:
    """Return the smallest number that is at least a ``share`` of ``merchants``."""
    return math.ceil(share * merchants - _SLACK)


def check_there(merchants: Collection[str], away: Collection[str], share: float, number: int) -> None:
    """Raise TooFewAnswers if too many of the round's ``merchants`` are ``away`` for the required ``share``."""
    there = [merchant for merchant in merchants if merchant not in away]
    if len(there) < least(share, len(merchants)):
        gone = next(merchant for merchant in sorted(merchants) if merchant in away)
        raise TooFewAnswers(
            f"round {number}: only {len(there)} of {len(merchants)} merchants are online; "
            f"merchant {gone}: its site is offline"
        )


def patiently(take: Callable[[], _Taken], config: FederationConfig, failed: list[str]) -> _Taken:
    """Call ``take``, and repeat it after TooFewAnswers up to ``config.retries`` times, with a pause before each.

    :param failed: receives the reason of each failed attempt
    :raises TrainingError: the last attempt failed; the message has instructions for resuming
    """
    while True:
        try:
            return take()
        except TooFewAnswers as error:
            if len(failed) >= config.retries:
                raise TrainingError(
                    f"{error}; all {len(failed) + 1} attempts failed. Earlier rounds are kept: continue with --resume "
                    "when more sites are online, or increase federation.deadline, federation.pause or "
                    "federation.retries"
                ) from error
            failed.append(str(error))
            _log.warning("%s; retrying in %g s, retry %d of %d", error, config.pause, len(failed), config.retries)
            time.sleep(config.pause)
