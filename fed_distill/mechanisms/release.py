"""What a site does for its merchants' privacy before anything of theirs is released: its rules, the noise, the charge.

A merchant's ledger is charged before its first private step (DESIGN 6.3). Noise and sampling coins come from the site's
secret and a digest of all that decides the answer: settings, what was received, the merchant's data, the price. So an
equal request has an equal answer, noise included, which is charged once; anything else is another release, with noise
of its own and a charge of its own, whatever the ledger remembers. A site with a secret hands the same answer out again
(``fed_distill.merchant.answers``). A simulation, which has none, draws from the run's seed and trains again.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from fed_distill.config import UNPROTECTED, Experiment
from fed_distill.errors import BudgetExceeded, TrainingError
from fed_distill.mechanisms.account import Spent
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Mechanism, Protecting, Terms
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.mechanisms.policy import SitePolicy
from fed_distill.models.weights import Weights
from fed_distill.privacy.accounting import REPORTED_DELTAS, Spend
from fed_distill.privacy.ledger import Charge, Ledger, Ledgers, composed, exposure
from fed_distill.seeds import Keystream, Part
from fed_distill.storage.files import as_file_name
from fed_distill.storage.fingerprint import fingerprint, hash_tensors
from fed_distill.storage.versions import versions
from fed_distill.text.encoded import Encoded
from fed_distill.training.choosing import chosen_device
from fed_distill.training.plan import Plan
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import PROTOCOL, TrainRequest

Policy = TypeVar("Policy", bound=SitePolicy)
"""The site's own policy, which this file needs no more of than `SitePolicy` says."""
SUMMED_BY = {"trainer", "cohort", "threads"}
"""Keys of ``[runtime]`` that change the order of sums: two answers with the same noise and other rounding would tell of
what was rounded, and a high rate makes that large."""
_SLACK = 1e-9
_SMALLEST, _LARGEST = 1, 2**31
"""Members of a privacy unit, of which a merchant has no fewer and no more. By a target epsilon a federation exposes an
example the least where these are few, by a noise multiplier where they are many or few."""


@dataclass(frozen=True)
class Release:
    """What a merchant is about to release in answer to a request, and its price.

    digest: of all that decides the answer, the price included. members: of the privacy unit (examples or groups), as
    many as the merchant's noised size says. spend: what the private steps cost, at ``delta``.
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
        """The same asked again, as a release of its own."""
        return replace(self, digest=fingerprint(again=self.digest))


@dataclass
class Protection(Generic[Policy]):
    """The privacy of one site's merchants in one experiment.

    folder: keeps ledgers where the experiment names no other. limits: the site's own rules. secret: what nobody else
    knows and the noise depends on, so that knowing the run's seed is of no use; a simulation, which must be repeatable,
    has none. clock: the site's local time.
    """

    experiment: Experiment
    folder: Path
    limits: Policy
    secret: str = field(default="", repr=False)
    clock: Callable[[], datetime] = datetime.now

    @property
    def batch_size(self) -> int:
        """Expected examples of a private step."""
        return self._paid_by_rounds.expected_batch(self.experiment)

    def own_randomness(self, seed: int) -> Part:
        """What all that protects is drawn from: the site's secret, or in a simulation the run's seed."""
        return self.secret or seed

    @cached_property
    def _mechanism(self) -> Protecting:
        """What protects the experiment's federations."""
        found = mechanism_of(self.experiment)
        assert isinstance(found, Protecting)
        return found

    def mechanism(self, arm: str) -> Mechanism:
        """What protects an arm: nothing does a control, or what never leaves its merchant."""
        return mechanism_of(self.experiment, arm)

    def check(self, merchant: str, arm: str) -> None:
        """Raise BudgetExceeded if the merchant takes no part in what is protected as this arm is."""
        self.limits.of(merchant).check_unit(merchant, self.experiment.unit_of(arm))

    def tells_sizes(self, merchants: Iterable[str]) -> bool:
        """Whether the site may tell how many examples each has: nothing is protected, and all of them allow that."""
        return not self.experiment.privacy.protects and all(
            self.limits.of(one).allows(UNPROTECTED) for one in merchants
        )

    def check_rules(self, request: TrainRequest, round: int) -> None:
        """Raise NotAllowed, naming the rule, for a request that the site as a whole takes no part in."""
        method = self.experiment.arms()[request.arm].method
        self.limits.rules.check(method, max(round, *request.rounds, 1), self.clock().time())

    def ledger(self, arm: str, seed: int, merchant: str) -> Ledger:
        """The ledger that a merchant's releases in an arm are charged to."""
        shared = self.experiment.privacy.ledger
        folder = self.folder / f"seed-{seed}" / as_file_name(arm) if shared is None else shared
        return Ledgers(folder).of(merchant)

    def charges(self, merchant: str) -> list[Charge]:
        """All that a merchant has paid for, in whatever run, where the site keeps its ledgers over runs."""
        shared = self.experiment.privacy.ledger
        return [] if shared is None else [entry.charge for entry in Ledgers(shared).of(merchant).entries()]

    def release(self, learner: Learner, request: TrainRequest, round: int, digest: str, plan: Plan) -> Release:
        """What a merchant would release in answer to a request, after its size has been charged.

        digest: of the request (``Digests.of``). All that shows in the uplink is computed from the noised size. Raises
        BudgetExceeded if the merchant's limits do not allow it.
        """
        merchant, rounds, mechanism = learner.name, request.rounds_of(learner.name), self._paid_by_rounds
        limit = self.limits.of(merchant)
        begun = limit.max_epsilon is None or self._has_begun(request, merchant)
        if not begun:
            sizes = (_SMALLEST,) if self.experiment.promise.epsilon is not None else (_SMALLEST, _LARGEST)
            self._check_whole(
                request, merchant, [mechanism.price(self.experiment, plan, size, rounds) for size in sizes]
            )
        members = self._noised_size(learner, request)
        spend, delta = mechanism.price(self.experiment, plan, members, rounds)
        limit.check_noise(merchant, spend.noise_multiplier)
        if not begun:
            self._check_whole(request, merchant, [(spend, delta)])
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
        """Whether the merchant has paid for training in this federation before."""
        paid = self._paid(self.ledger(request.arm, request.seed, merchant), request.arm, request.seed)
        return any(one.what == "training" for one in paid)

    def _check_whole(self, request: TrainRequest, merchant: str, prices: Sequence[tuple[Spend, float]]) -> None:
        """Raise BudgetExceeded if the merchant's limit does not cover all rounds at any of ``prices``
        (``AtMerchants.price``).

        A merchant that would have to stop in the middle of a federation is not charged for its first rounds.
        """
        rounds, most = request.rounds_of(merchant), self.limits.of(merchant).max_epsilon
        assert most is not None
        before = [entry.charge for entry in self.ledger(request.arm, request.seed, merchant).entries()]
        size = self._paid_by_rounds.size_spend()
        whole = [
            exposure(
                [
                    *(one for one in before if one.what != "size" or not self._is_of(one, request.arm, request.seed)),
                    self._planned(request, (size, replace(spend, steps=spend.steps * rounds)), delta),
                ]
            )
            for spend, delta in prices
        ]
        if min(whole) > most + _SLACK:
            raise BudgetExceeded(
                f"merchant {merchant}: all {rounds} rounds of {request.arm} would raise what one example is exposed to "
                f"from epsilon {exposure(before):.6g} to {min(whole):.6g}, above the limit of {most:.6g}: it takes no "
                "part, unless its max_epsilon in site.toml is raised"
            )

    def _planned(self, request: TrainRequest, spends: tuple[Spend, ...], delta: float) -> Charge:
        return self._priced(request, "all rounds", 0, "0", spends, delta)

    @property
    def _paid_by_rounds(self) -> AtMerchants:
        assert isinstance(self._mechanism, AtMerchants)
        return self._mechanism

    def paid(self, release: Release) -> Learner:
        """The merchant with noise for its private steps, which have been charged.

        Raises BudgetExceeded if its limits, or the target epsilon of this federation, do not allow them.
        """
        arm, seed, merchant, round, digest = release.key
        self._charge(release.request, merchant, "training", round, digest, (release.spend,), release.delta)
        return replace(
            release.learner,
            privacy=self._paid_by_rounds.learner_privacy(release.spend, release.members),
            randomness=(self.own_randomness(seed), arm, merchant, round, digest),
        )

    def may_have_left(self, release: Release) -> bool:
        """Whether the answer was charged, and another of this run's arm after it: then it had been made and kept."""
        arm, seed, merchant, round, digest = release.key
        paid = self._paid(self.ledger(arm, seed, merchant), arm, seed)
        trained = [(one.round, one.request) for one in paid if one.what == "training"]
        return (round, digest) in trained[:-1]

    def join(self, request: TrainRequest, merchant: str, proxy: int) -> None:
        """Charge a merchant all rounds of a federation whose noise the server is trusted to add, before the first.

        The charge is for the federation that ``request.federation`` names. Raises BudgetExceeded if the merchant's
        limits do not allow it, TrainingError if the request names none, or the server adds no noise in its arm.
        """
        if not request.federation:
            raise TrainingError(f"merchant {merchant}: a request that does not say for which federation it is to pay")
        mechanism = self.mechanism(request.arm)
        if not isinstance(mechanism, AtServer):
            raise TrainingError(f"merchant {merchant}: a request to pay for noise of the server's, where it adds none")
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

    def _noised_size(self, learner: Learner, request: TrainRequest) -> int:
        """How many members of the unit the merchant has, with noise that depends on nothing but their number and what
        they are: drawn and charged once a federation."""
        config, mechanism, merchant = self.experiment.promise, self._paid_by_rounds, learner.name
        spend = mechanism.size_spend()
        noise = spend.noise_multiplier
        limit, members = self.limits.of(merchant), learner.members()
        limit.check_noise(merchant, noise)
        what = {"unit": mechanism.name, "group": mechanism.kind()}
        digest = fingerprint(members=members, noise=noise, **what)
        place = request.arm, merchant, "size noise", digest
        drawn = float(Keystream(self.own_randomness(request.seed), *place).normal(1))
        size = _rounded(max(1, round(members + noise * drawn)))
        delta = mechanism.delta(config, size)
        self._charge(request, merchant, "size", 0, digest, (spend,), delta)
        limit.check_delta(merchant, delta, size)  # a refusal tells of the size, which has been paid
        return size

    def spent(self, arm: str, seed: int, merchants: Iterable[str]) -> Spent:
        """What the arm has cost ``merchants`` so far, by their ledgers."""
        parts = []
        for merchant in merchants:
            paid = self._paid(self.ledger(arm, seed, merchant), arm, seed)
            noises = [spend.noise_multiplier for one in paid if one.what != "size" for spend in one.spends]
            if noises:
                accountant, least = self.experiment.promise.accountant, min(one.delta for one in paid)
                total, at_5, at_6 = (composed(paid, delta, accountant) for delta in (least, *REPORTED_DELTAS))
                parts.append(Spent(1, total, least, min(noises), max(noises), epsilon_5=at_5, epsilon_6=at_6))
        return Spent.joined(parts)

    def _paid(self, ledger: Ledger, arm: str, seed: int) -> list[Charge]:
        """What this run has charged for an arm, in its unit."""
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
    ) -> None:
        """Charge the merchant's ledger, unless it has paid for this very release."""
        charge = self._priced(request, what, round, digest, spends, delta)
        ledger, target = self.ledger(request.arm, request.seed, merchant), self.experiment.promise.epsilon
        if target is not None:
            self._check_target(ledger, charge, target)
        ledger.charge(charge, self.limits.of(merchant).max_epsilon)

    def _priced(
        self, request: TrainRequest, what: str, round: int, digest: str, spends: tuple[Spend, ...], delta: float
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
        )

    def _check_target(self, ledger: Ledger, charge: Charge, target: float) -> None:
        """Raise BudgetExceeded if the federation would spend more than its target with ``charge``."""
        paid = self._paid(ledger, charge.arm, charge.seed)
        if any(one.same_release(charge) for one in paid):
            return
        total = composed([*paid, charge], charge.delta, self.experiment.promise.accountant)
        if not total <= target * (1.0 + _SLACK):
            raise BudgetExceeded(
                f"merchant {ledger.merchant}: budget spent: {charge.what} in round {charge.round} would raise the "
                f"federation's epsilon to {total:.6g}, above its target of {target:.6g}"
            )


def _rounded(size: int) -> int:
    """A noised size to five binary digits, at most 3.1 % off: there are few sizes then, and so few noise multipliers to
    be found."""
    step: int = 1 << max(0, size.bit_length() - 5)
    return round(size / step) * step


class Digests:
    """Hex digests of what merchants are asked in one request, each with its own data; shared parts are hashed once.

    own: a site's secret and what names its kept answers; empty in a simulation. With it the digests are of every bit
    that was received, of how sums are ordered and by which versions, and of the run: a second training by another order
    or program would draw the same noise, and the difference of both answers would have none. In a simulation, where
    who knows the seed knows the noise, weights and soft labels count by the federation and round that they are of
    (``TrainRequest.federation``), so that a run gives the same however its sums are rounded.
    """

    def __init__(self, experiment: Experiment, request: TrainRequest, down: Downlink, own: str = "") -> None:
        self._exact = bool(own) or not request.federation
        sums = experiment.runtime.model_dump(mode="json", include=SUMMED_BY)
        sums["device"] = chosen_device(experiment.runtime.device).type
        if own:
            sums |= {"run": experiment.name, "versions": versions(), "protocol": PROTOCOL}
        self._base = hashlib.sha256()
        self._base.update(
            fingerprint(
                experiment=experiment.settings_of(request.arm),
                arm=request.arm,
                seed=request.seed,
                rate=request.learning_rate,
                test=request.test,
                federation=request.federation,
                round=down.round,
                sums=sums if self._exact else {},
                scalars=dict(down.scalars),
            ).encode()
        )
        self._base.update(own.encode())  # other noise is another release
        for payload in down.payloads if self._exact else ():
            for name, tensors in payload.to_records().items():
                self._base.update(name.encode())
                hash_tensors(self._base, tensors)
        self._starts: dict[tuple[str, int], tuple[Weights, bytes]] = {}
        self._proxies: dict[int, tuple[Encoded, bytes]] = {}

    def of(self, blueprint: str, learner: Learner) -> str:
        """Digest for a learner that trains the student of ``blueprint``."""
        start = learner.weights
        known = blueprint, id(start)
        if known not in self._starts:
            hashed = hashlib.sha256(blueprint.encode())
            hash_tensors(hashed, start if self._exact else {})
            self._starts[known] = start, hashed.digest()
        whole = self._base.copy()
        whole.update(self._starts[known][1])
        if id(learner.proxy) not in self._proxies:
            hashed = hashlib.sha256()
            hash_tensors(hashed, learner.proxy)
            self._proxies[id(learner.proxy)] = learner.proxy, hashed.digest()
        whole.update(self._proxies[id(learner.proxy)][1])
        groups = {} if learner.groups is None else {"groups": learner.groups}
        hash_tensors(whole, {**learner.private, "labels": learner.labels, **groups})
        for values in (learner.references, learner.correction) if self._exact else ():
            hash_tensors(whole, values)
        return whole.hexdigest()
