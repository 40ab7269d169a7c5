"""A round that too few merchants took part in is asked again, if that may help: sites come back, and nights end.

Nothing of a round that is not merged is kept at the server, and an equal request is answered equally and charged once
(DESIGN 6.3, 6.6): who took part already does so again and sends the same.
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
    """How many of ``merchants`` are at least a ``share`` of them."""
    return math.ceil(share * merchants - _SLACK)


def check_there(merchants: Collection[str], away: Collection[str], share: float, number: int) -> None:
    """TooFewAnswers if so many of the round's ``merchants`` are ``away`` that asking the others is of no use."""
    there = [merchant for merchant in merchants if merchant not in away]
    if len(there) < least(share, len(merchants)):
        gone = next(merchant for merchant in sorted(merchants) if merchant in away)
        raise TooFewAnswers(
            f"round {number}: only {len(there)} of {len(merchants)} merchants are there; "
            f"merchant {gone}: its site is away"
        )


def patiently(take: Callable[[], _Taken], config: FederationConfig, failed: list[str]) -> _Taken:
    """What ``take`` gives, tried ``config.retries`` times again if there are TooFewAnswers, with a pause before each.

    ``failed`` gets the reason of each time that failed. Raises TrainingError, which says how to go on, at the last.
    """
    while True:
        try:
            return take()
        except TooFewAnswers as error:
            if len(failed) >= config.retries:
                raise TrainingError(
                    f"{error}; it was asked {len(failed) + 1} times. The rounds before it are kept: go on with "
                    "--resume when more sites are there, or with a longer federation.deadline, pause or more retries"
                ) from error
            failed.append(str(error))
            _log.warning("%s; asked again in %g s, %d of %d times", error, config.pause, len(failed), config.retries)
            time.sleep(config.pause)
