"""The white-box audit of a run: canaries through its trainer or its server's noise, with the run's settings.

The mechanism is audited, with the run's noise multipliers, sampling rates, steps and rounds, but not its data: canaries
train a separate student (``audit.gradient_canaries``). Nothing is charged, because nothing is released. The attacker
does not have the run's seed, from which the noise of a simulation could be computed.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fed_distill.audit.central_canaries import MeanAudit, VoteAudit
from fed_distill.audit.gradient_canaries import CANARY_TRAINING, CanaryStudent, TrainerAudit
from fed_distill.audit.label_canaries import LabelAudit
from fed_distill.audit.white_box import CANARIES, WhiteBoxAudit
from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.base import NoiseSource, Protecting, Terms
from fed_distill.mechanisms.label import ByLabel
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.mechanisms.merchant import ByMerchant
from fed_distill.mechanisms.vote import ByVote, VoteMechanism, queried
from fed_distill.privacy.accounting import DELTA, Accountant
from fed_distill.privacy.ledger import Charge, Ledgers, composed
from fed_distill.seeds import Keystream, Part
from fed_distill.storage.files import as_file_name
from fed_distill.training.choosing import build_trainer

_log = logging.getLogger(__name__)
_FEWEST, _WORK = 5_000, 10_000_000
"""Minimum number of canaries, and maximum of its product with the number of steps."""
_VOTES = 20_000_000
"""Maximum number of canaries' votes."""


@dataclass(frozen=True)
class WhiteBox:
    """Inputs of the audit of a finished run. folder: its folder. merchants, proxy: numbers of merchants and proxy
    examples. delta: delta of bounds and guarantee."""

    folder: Path
    experiment: Experiment
    merchants: int
    proxy: int
    delta: float = DELTA

    def run(self) -> WhiteBoxAudit | None:
        """Audit the run's main federation on its first seed.

        :returns: None without a guarantee, or if the mechanism's noise is unknown
        :raises CheckpointError: its ledgers are missing
        """
        mechanism = mechanism_of(self.experiment, self._arm)
        if isinstance(mechanism, AtMerchants):
            return self._training(mechanism)
        if isinstance(mechanism, ByLabel):
            _, charges = self._dearest()
            audit = LabelAudit(self.experiment, mechanism, composed(charges))
            return audit.run(self.experiment.seed)
        if isinstance(mechanism, ByMerchant):
            return self._mean(mechanism)
        if isinstance(mechanism, ByVote):
            return self._votes(mechanism)
        if isinstance(mechanism, Protecting):
            _log.warning("privacy.unit = %r has no white-box audit: its noise is unknown", mechanism.name)
        return None

    @property
    def _arm(self) -> str:
        return self.experiment.federation.title

    def _training(self, mechanism: AtMerchants) -> WhiteBoxAudit:
        """Audit the releases of the merchant with the most expensive training, under their own names."""
        experiment = self.experiment
        merchant, charges = self._dearest()
        (spend, _), *_ = Counter(one.spends[0] for one in charges).most_common()
        releases = [one for one in charges if one.spends[0] == spend]

        def names(number: int) -> tuple[Part, Part, Part, Part, Part]:
            charge = releases[number]
            return experiment.seed, self._arm, merchant, charge.round, charge.request

        audit = TrainerAudit(
            build_trainer(CANARY_TRAINING, experiment.runtime),
            spend,
            len(releases),
            names,
            max_grad_norm=mechanism.settings.max_grad_norm,
            unit=mechanism.name,
            grouped=mechanism.grouped,
        )
        canaries = min(CANARIES, max(_FEWEST, _WORK // (spend.steps * len(releases))))
        return audit.run(seed=experiment.seed, delta=self.delta, canaries=canaries, accountant=self._accountant)

    def _dearest(self) -> tuple[str, list[Charge]]:
        """Return the merchant with the most expensive training, and its charges for training."""
        experiment, shared = self.experiment, self.experiment.privacy.ledger
        local = self.folder / "checkpoint" / "ledgers" / f"seed-{experiment.seed}" / as_file_name(self._arm)
        ledgers, key = Ledgers(local if shared is None else shared), (experiment.name, self._arm, experiment.seed)
        found: dict[str, list[Charge]] = {}
        for merchant in ledgers.merchants():
            charges = [entry.charge for entry in ledgers.of(merchant).entries()]
            own = [one for one in charges if (one.run, one.arm, one.seed) == key]
            mine = [one for one in own if one.what == "training" or one.label is not None]
            if mine:
                found[merchant] = mine
        if not found:
            raise CheckpointError(f"{ledgers.folder} has no charges of this run, from which an audit takes the noise")
        return max(found.items(), key=lambda one: (composed(one[1], self.delta, self._accountant), one[0]))

    @property
    def _terms(self) -> Terms:
        return Terms(self.experiment.privacy, self.experiment.federation, self.merchants, self.proxy)

    def _mean(self, mechanism: ByMerchant) -> WhiteBoxAudit:
        federation = self.experiment.federation
        rate, name = federation.participation, (self.experiment.seed, self._arm, "audit")
        audit = MeanAudit(
            lambda number: mechanism.aggregator(
                self._terms, CanaryStudent(1), NoiseSource((*name, number), reproducible=True)
            ),
            lambda number, count: (Keystream(*name, "sample merchants", number).uniform(count) < rate).numpy(),
            rate,
            federation.rounds,
        )
        return audit.run(seed=self.experiment.seed, delta=self.delta, accountant=self._accountant)

    def _votes(self, mechanism: ByVote) -> WhiteBoxAudit:
        config, federation, seed = mechanism.settings, self.experiment.federation, self.experiment.seed
        queries, counting = queried(config, self.proxy), mechanism.counting(self._terms)
        audit = VoteAudit(
            audited_tally(mechanism, self._terms, counting, NoiseSource((seed, self._arm, "audit"), True)),
            counting,
            queries,
            federation.rounds,
        )
        canaries = min(CANARIES, max(_FEWEST, _VOTES // (min(queries, config.answers) * federation.rounds)))
        return audit.run(seed=seed, delta=self.delta, canaries=canaries, accountant=self._accountant)

    @property
    def _accountant(self) -> Accountant:
        return self.experiment.promise.accountant


def audited_tally(
    mechanism: ByVote, terms: Terms, counting: VoteMechanism, noise: NoiseSource
) -> Callable[[int], Callable[[Tensor], Tensor]]:
    """Return, by round, the server's vote count for any number of queries, with the noise of ``counting``."""
    noised = terms.promise.model_copy(update={"epsilon": None, "noise_multiplier": counting.answer_noise})

    def tally(round: int) -> Callable[[Tensor], Tensor]:
        def count(histogram: Tensor) -> Tensor:
            queries = len(histogram)
            every = replace(
                mechanism, settings=mechanism.settings.model_copy(update={"queries": None, "answers": queries})
            )
            return every.tally(replace(terms, privacy=noised, proxy=queries), noise, round)(histogram)

        return count

    return tally
