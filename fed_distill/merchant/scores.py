"""Decide which merchants' test scores, which have no noise, a site reports to the server."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fed_distill.config import Experiment
from fed_distill.errors import (
    BudgetExceeded,
    NotAllowed,
)
from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.limits import Limits
from fed_distill.merchant.metrics import Tally, rule_of
from fed_distill.transport.requests import TrainRequest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Rules of one site for scores.

    :param tally: counts reported scores and refusals
    """

    experiment: Experiment
    protection: Protection[Limits]
    tally: Tally

    def scorable(self, request: TrainRequest, merchants: Sequence[str]) -> list[str]:
        """Return the ``merchants`` whose test scores are reported; log the reason for the others.

        Scores are reported if the experiment requests them, the site's rules allow them now, and the merchant allows
        the experiment's privacy unit: a server could craft a student whose scores reveal single examples.
        """
        if not self.experiment.reports_scores:
            return []
        arms, limits, unit = self.experiment.arms(), self.protection.limits, self.experiment.privacy.unit
        method = (
            arms[request.arm].method if request.arm in arms else None
        )  # None for students that the server trains alone
        try:
            limits.rules.check_scores()
            limits.rules.check(method, 1, self.protection.clock().time())
        except NotAllowed as error:
            _log.info("no test scores of %s are reported: %s", request.arm, error)
            self.tally.refused[rule_of(error)] += len(merchants)
            return []
        reported = []
        for merchant in merchants:
            try:
                limits.of(merchant).check_unit(merchant, unit)
                reported.append(merchant)
            except BudgetExceeded as error:
                _log.info("a test score of %s is not reported: %s", request.arm, error)
                self.tally.refused[rule_of(error)] += 1
        self.tally.scored += len(reported)
        return reported
