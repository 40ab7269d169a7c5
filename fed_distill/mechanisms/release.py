"""Enforce policy, noise and charges at a site before anything of its merchants is released.

A merchant's ledger is charged before its first private step (DESIGN 6.3). Noise and sampling coins are derived from the
site's secret and a digest of all inputs of the answer: settings, received data, the merchant's data and the price. So
equal requests have equal answers, noise included, and are charged once; any other request is a new release with its own
noise and charge, whatever the ledger contains. A site with a secret returns the stored answer again
(``fed_distill.merchant.answers``). A simulation has no secret; it derives noise from the run's seed and trains again.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from fed_distill.config import UNPROTECTED, Experiment
from fed_distill.errors import BudgetExceeded, TrainingError
from fed_distill.mechanisms.account import Spent
from fed_distill.mechanisms.at_merchants import EXPERTISE, ONCE, SIZE, AtMerchants
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Mechanism, Protecting, Terms
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.mechanisms.policy import SitePolicy
from fed_distill.privacy.accounting import REPORTED_DELTAS, Spend
from fed_distill.privacy.dp_sgd import add_noise
from fed_distill.privacy.exposure import LabelSpend
from fed_distill.privacy.ledger import Charge, Ledger, Ledgers, composed, exposure
from fed_distill.seeds import Keystream, Part
from fed_distill.storage.files import as_file_name
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.training.private_training import PrivateTraining
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Kinds
from fed_distill.transport.requests import TrainRequest

Policy = TypeVar("Policy", bound=SitePolicy)
"""The site's own policy; this module only uses the interface ``SitePolicy``."""
_SLACK = 1e-9
_SMALLEST, _LARGEST = 1, 2**31
"""Minimum and maximum number of members of a privacy unit at a merchant. With a target epsilon a federation exposes an
example least if these are few; with a noise multiplier, if they are many or few."""


@dataclass(frozen=True)
class Release:
    """A pending release in answer to a request, and its price.

    digest: hash of all inputs of the answer, the price included. members: noised number of members of the privacy unit
    (examples or groups). spend: cost of the private steps, at ``delta``.
    """

    learner: Learner
    request: TrainRequest
    round: int
    digest: str
    members: int
    spend: Spend
    delta: float

    @property
    def key(self) -> tuple[str, int, str, int, str]:
        """Arm, seed, merchant, round and digest."""
        return self.request.arm, self.request.seed, self.learner.name, self.round, self.digest

    def once_more(self) -> "Release":
        """Return the same release with a new digest, so that it is charged again."""
        return replace(self, digest=fingerprint(again=self.digest))


@dataclass
class Protection(Generic[Policy]):
    """Enforces the privacy of one site's merchants in one experiment.

    folder: location of the ledgers unless the experiment names another. limits: the site's policy. secret: known to the
    site only; noise is derived from it, so that the run's seed does not reveal it. A simulation has none, to be
    reproducible. clock: returns the site's local time.
    """

    experiment: Experiment
    folder: Path
    limits: Policy
    secret: str = field(default="", repr=False)
    clock: Callable[[], datetime] = datetime.now

    @property
    def batch_size(self) -> int:
        """Expected number of examples per private step."""
        return self._paid_by_rounds.expected_batch(self.experiment)

    def own_randomness(self, seed: int) -> Part:
        """Return the source of randomness for protection: the site's secret, or in a simulation the run's seed."""
        return self.secret or seed

    @cached_property
    def _mechanism(self) -> Protecting:
        """The mechanism of the experiment's federations."""
        found = mechanism_of(self.experiment)
        assert isinstance(found, Protecting)
        return found

    def mechanism(self, arm: str) -> Mechanism:
        """Return the mechanism of an arm; controls and personal students have none."""
        return mechanism_of(self.experiment, arm)

    def check(self, merchant: str, arm: str) -> None:
        """Raise BudgetExceeded if the merchant does not participate in releases with the mechanism of this arm."""
        self.limits.of(merchant).check_unit(merchant, self.experiment.unit_of(arm))

    def tells_sizes(self, merchants: Iterable[str]) -> bool:
        """Whether the site may send the number of examples per merchant: without privacy, and if all allow it."""
        return not self.experiment.privacy.protects and all(
            self.limits.of(one).allows(UNPROTECTED) for one in merchants
        )

    def check_rules(self, request: TrainRequest, round: int) -> None:
        """Raise NotAllowed, naming the rule, for a request that violates the site's policy."""
        method = self.experiment.arms()[request.arm].method
        self.limits.rules.check(method, max(round, *request.rounds, 1), self.clock().time())

    def ledger(self, arm: str, seed: int, merchant: str) -> Ledger:
        """Return the ledger for a merchant's releases in an arm."""
        shared = self.experiment.privacy.ledger
        folder = self.folder / f"seed-{seed}" / as_file_name(arm) if shared is None else shared
        return Ledgers(folder).of(merchant)

    def charges(self, merchant: str) -> list[Charge]:
        """Return all charges of a merchant, over all runs if the site keeps its ledgers."""
        shared = self.experiment.privacy.ledger
        return [] if shared is None else [entry.charge for entry in Ledgers(shared).of(merchant).entries()]

    def release(
        self,
        learner: Learner,
        request: TrainRequest,
        round: int,
        digest: str,
        training: PrivateTraining,
        sends: Kinds,
    ) -> Release:
        """Prepare a merchant's release in answer to a request, after charging the release of its size.

        Everything visible in the uplink is computed from the noised size.

        :param digest: digest of the request (``digests.Digests.of``)
        :param training: private training in all rounds of the federation
        :param sends: kinds of payloads in the uplink
        :raises BudgetExceeded: the merchant's limits do not allow it
        :raises ConfigError: a round has no private step
        :raises TrainingError: the federation does not have the requested rounds
        """
        merchant, taken, mechanism = learner.name, request.rounds_of(learner.name), self._paid_by_rounds
        training.check(round, taken)
        mechanism.check_training(training)
        limit, once = self.limits.of(merchant), mechanism.spends_once(sends)
        for told in once.values():
            limit.check_noise(merchant, told.noise_multiplier)
        begun = limit.max_epsilon is None or self._has_begun(request, merchant)
        if not begun:
            sizes = (_SMALLEST,) if self.experiment.promise.epsilon is not None else (_SMALLEST, _LARGEST)
            prices = [mechanism.price(self.experiment, training, size, taken, sends) for size in sizes]
            self._check_whole(request, merchant, once, prices)
        members = self._noised_size(learner, request)
        whole, delta = mechanism.price(self.experiment, training, members, taken, sends)
        limit.check_noise(merchant, whole.noise_multiplier)
        if not begun:
            self._check_whole(request, merchant, once, [(whole, delta)])
        spend = replace(whole, steps=training.steps(round, members, self.batch_size))
        return Release(
            learner,
            request,
            round,
            fingerprint(request=digest, spend=asdict(spend), members=members),
            members,
            spend,
            delta,
        )

    def _has_begun(self, request: TrainRequest, merchant: str) -> bool:
        """Whether the merchant has been charged for training in this federation."""
        paid = self._paid(self.ledger(request.arm, request.seed, merchant), request.arm, request.seed)
        return any(one.what == "training" for one in paid)

    def _check_whole(
        self, request: TrainRequest, merchant: str, once: Mapping[str, Spend], prices: Sequence[tuple[Spend, float]]
    ) -> None:
        """Raise BudgetExceeded if the merchant's limit does not cover all rounds at any of ``prices``.

        A merchant that would have to stop during a federation is not charged for its first rounds.

        :param prices: cost and delta of all rounds (``AtMerchants.price``) at each of several sizes
        """
        rounds, most = request.rounds_of(merchant), self.limits.of(merchant).max_epsilon
        assert most is not None
        before = [entry.charge for entry in self.ledger(request.arm, request.seed, merchant).entries()]
        whole = [
            exposure(
                [
                    *(one for one in before if one.what not in once or not self._is_of(one, request.arm, request.seed)),
                    self._planned(request, (*once.values(), spend), delta),
                ]
            )
            for spend, delta in prices
        ]
        if min(whole) > most + _SLACK:
            raise BudgetExceeded(
                f"merchant {merchant}: all {rounds} rounds of {request.arm} would increase the exposure of one example "
                f"from epsilon {exposure(before):.6g} to {min(whole):.6g}, above the limit of {most:.6g}: it does not "
                "participate unless its max_epsilon in site.toml is raised"
            )

    def _planned(self, request: TrainRequest, spends: tuple[Spend, ...], delta: float) -> Charge:
        return self._priced(request, "all rounds", 0, "0", spends, delta)

    @property
    def _paid_by_rounds(self) -> AtMerchants:
        assert isinstance(self._mechanism, AtMerchants)
        return self._mechanism

    def paid(self, release: Release) -> Learner:
        """Charge the private steps of a release and return the learner with its noise.

        :raises BudgetExceeded: the merchant's limits or the target epsilon of this federation do not allow them
        """
        arm, seed, merchant, round, digest = release.key
        self._charge(release.request, merchant, "training", round, digest, (release.spend,), release.delta)
        return replace(
            release.learner,
            privacy=self._paid_by_rounds.learner_privacy(release.spend, release.members),
            randomness=(self.own_randomness(seed), arm, merchant, round, digest),
        )

    def may_have_left(self, release: Release) -> bool:
        """Whether the release and a later one of this run's arm were charged, so that it was computed and stored."""
        arm, seed, merchant, round, digest = release.key
        paid = self._paid(self.ledger(arm, seed, merchant), arm, seed)
        trained = [(one.round, one.request) for one in paid if one.what == "training"]
        return (round, digest) in trained[:-1]

    def join(self, request: TrainRequest, merchant: str, proxy: int) -> None:
        """Charge a merchant for all rounds of a federation with noise added by the server, before the first round.

        :param request: names the federation (``request.federation``)
        :raises BudgetExceeded: the merchant's limits do not allow it
        :raises TrainingError: the request names no federation, or the server adds no noise in its arm
        """
        if not request.federation:
            raise TrainingError(f"merchant {merchant}: the request to join names no federation")
        mechanism = self.mechanism(request.arm)
        if not isinstance(mechanism, AtServer):
            raise TrainingError(f"merchant {merchant}: a request to join an arm in which the server adds no noise")
        config = self.experiment.promise
        spends = mechanism.spends(Terms(config, self.experiment.arms()[request.arm], request.population, proxy))
        limit, delta = self.limits.of(merchant), mechanism.delta(config, request.population)
        limit.check_delta(merchant, delta, request.population)
        for spend in spends:
            limit.check_noise(merchant, spend.noise_multiplier)
        agreed = fingerprint(
            federation=request.federation, spends=[asdict(spend) for spend in spends], merchants=request.population
        )
        self._charge(request, merchant, "all rounds", 0, agreed, spends, delta)

    def charge_labels(self, request: TrainRequest, merchant: str, digest: str, spend: LabelSpend) -> None:
        """Charge a merchant for a release of randomized labels, unless this arm was charged for it before.

        :param digest: digest of all inputs of the release
        :raises BudgetExceeded: the merchant's limits or the target epsilon of this federation do not allow it
        """
        what = f"labels of half {spend.part}" if spend.part else "labels"
        self._charge(request, merchant, what, 0, digest, (), 0.0, spend)

    def _noised_size(self, learner: Learner, request: TrainRequest) -> int:
        """Return the noised number of members; its noise depends on their number and kind only, and it is charged once
        per federation."""
        config, mechanism, merchant = self.experiment.promise, self._paid_by_rounds, learner.name
        spend = mechanism.size_spend()
        noise = spend.noise_multiplier
        limit, members = self.limits.of(merchant), learner.members()
        what = {"unit": mechanism.name, "group": mechanism.kind()}
        digest = fingerprint(members=members, noise=noise, **what)
        place = request.arm, merchant, "size noise", digest
        drawn = float(Keystream(self.own_randomness(request.seed), *place).normal(1))
        size = _rounded(max(1, round(members + noise * drawn)))
        delta = mechanism.delta(config, size)
        self._charge(request, merchant, SIZE, 0, digest, (spend,), delta)
        limit.check_delta(merchant, delta, size)  # after the charge, because a refusal reveals the size
        return size

    def noised_texts(self, merchant: str, request: TrainRequest, total: Tensor, members: int) -> Tensor:
        """Return a merchant's sum of text features with noise, charged once per federation.

        The noise depends on every bit of the sum, so that two sums never share it.

        :param total: sum with L2 sensitivity 1 (``privacy.text_sum``), float64 ``[features]``
        :param members: noised number of members
        :raises BudgetExceeded: the merchant's limits or the target epsilon of this federation do not allow it
        """
        mechanism = self._paid_by_rounds
        spend = mechanism.expertise_spend()
        self.limits.of(merchant).check_noise(merchant, spend.noise_multiplier)
        what = {"unit": mechanism.name, "group": mechanism.kind(), "noise": spend.noise_multiplier}
        digest = fingerprint(total=hashlib.sha256(total.numpy().data).hexdigest(), **what)
        stream = Keystream(self.own_randomness(request.seed), request.arm, merchant, "expertise noise", digest)
        delta = mechanism.delta(self.experiment.promise, members)
        self._charge(request, merchant, EXPERTISE, 0, digest, (spend,), delta)
        return add_noise(total, spend.noise_multiplier, stream)

    def spent(self, arm: str, seed: int, merchants: Iterable[str]) -> Spent:
        """Return the cost of the arm for ``merchants`` so far, according to their ledgers."""
        parts = []
        for merchant in merchants:
            paid = self._paid(self.ledger(arm, seed, merchant), arm, seed)
            noises = [spend.noise_multiplier for one in paid if one.what not in ONCE for spend in one.spends]
            if noises or any(one.label is not None for one in paid):
                accountant, least = self.experiment.promise.accountant, min(one.delta for one in paid)
                total, at_5, at_6 = (composed(paid, delta, accountant) for delta in (least, *REPORTED_DELTAS))
                span = min(noises, default=0.0), max(noises, default=0.0)
                parts.append(Spent(1, total, least, *span, epsilon_5=at_5, epsilon_6=at_6))
        return Spent.joined(parts)

    def _paid(self, ledger: Ledger, arm: str, seed: int) -> list[Charge]:
        """Return this run's charges for an arm, in its unit."""
        return [one for one in (entry.charge for entry in ledger.entries()) if self._is_of(one, arm, seed)]

    def _is_of(self, charge: Charge, arm: str, seed: int) -> bool:
        mine = self.experiment.name, arm, seed, self._mechanism.name
        return (charge.run, charge.arm, charge.seed, charge.unit) == mine

    def _charge(
        self,
        request: TrainRequest,
        merchant: str,
        what: str,
        round: int,
        digest: str,
        spends: tuple[Spend, ...],
        delta: float,
        label: LabelSpend | None = None,
    ) -> None:
        """Charge the merchant's ledger, unless this release was charged before."""
        charge = self._priced(request, what, round, digest, spends, delta, label)
        ledger, target = self.ledger(request.arm, request.seed, merchant), self.experiment.promise.epsilon
        if target is not None:
            self._check_target(ledger, charge, target)
        ledger.charge(charge, self.limits.of(merchant).max_epsilon)

    def _priced(
        self,
        request: TrainRequest,
        what: str,
        round: int,
        digest: str,
        spends: tuple[Spend, ...],
        delta: float,
        label: LabelSpend | None = None,
    ) -> Charge:
        return Charge(
            run=self.experiment.name,
            arm=request.arm,
            seed=request.seed,
            round=round,
            unit=self._mechanism.name,
            what=what,
            request=digest,
            spends=spends,
            delta=delta,
            moved_by=self._mechanism.stated_move,
            label=label,
        )

    def _check_target(self, ledger: Ledger, charge: Charge, target: float) -> None:
        """Raise BudgetExceeded if ``charge`` would exceed the federation's target epsilon."""
        paid = self._paid(ledger, charge.arm, charge.seed)
        if any(one.same_release(charge) for one in paid):
            return
        total = composed([*paid, charge], charge.delta, self.experiment.promise.accountant)
        if not total <= target * (1.0 + _SLACK):
            raise BudgetExceeded(
                f"merchant {ledger.merchant}: budget exceeded: {charge.what} in round {charge.round} would increase "
                f"the federation's epsilon to {total:.6g}, above its target of {target:.6g}"
            )


def _rounded(size: int) -> int:
    """Round a noised size to five binary digits (at most 3.1 % off), so that few noise multipliers are computed."""
    step: int = 1 << max(0, size.bit_length() - 5)
    return round(size / step) * step
