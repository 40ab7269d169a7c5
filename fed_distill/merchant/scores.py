"""Whose test scores, which have no noise, a site tells the server."""

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
    """The rules of one site about scores.

    :param tally: counts what is told and what is refused.
    """

    experiment: Experiment
    protection: Protection[Limits]
    tally: Tally

    def scorable(self, request: TrainRequest, merchants: Sequence[str]) -> list[str]:
        """Those of ``merchants`` whose test scores, which have no noise, the server is told; why others' are not is in
        the log.

        They are told if the experiment asks for them, the site's rules allow them now, and the merchant takes part in
        what is protected as the experiment is: by a student made for it, scores can tell of single examples.
        """
        if not self.experiment.reports_scores:
            return []
        arms, limits, unit = self.experiment.arms(), self.protection.limits, self.experiment.privacy.unit
        method = arms[request.arm].method if request.arm in arms else None  # none of what the server trains alone
        try:
            limits.rules.check_scores()
            limits.rules.check(method, 1, self.protection.clock().time())
        except NotAllowed as error:
            _log.info("no test score of %s is told: %s", request.arm, error)
            self.tally.refused[rule_of(error)] += len(merchants)
            return []
        told = []
        for merchant in merchants:
            try:
                limits.of(merchant).check_unit(merchant, unit)
                told.append(merchant)
            except BudgetExceeded as error:
                _log.info("its test score of %s is not told: %s", request.arm, error)
                self.tally.refused[rule_of(error)] += 1
        self.tally.scored += len(told)
        return told
