"""What a site does for its merchants' privacy before anything of theirs is released: its rules, the noise, the charge.

A merchant's ledger is charged before its first private step (DESIGN 6.3). An equal request is answered by an equal
uplink, noise included, and is charged once; anything else that is asked is a release of its own, and is paid for. A
site with a secret hands the same answer out again (``clients.answers``). A simulation trains again, which gives the
same but for rounding (a cohort's sums are rounded otherwise in other company): who knows its seed needs no difference.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from torch import Tensor

from clients.limits import Limits
from fed_distill.config import Experiment
from fed_distill.config.federation import INTAKE
from fed_distill.distill.fingerprint import fingerprint
from fed_distill.errors import BudgetExceeded
from fed_distill.models.base import Encoded
from fed_distill.privacy.accounting import Spend, default_delta, noise_for
from fed_distill.privacy.central import MOST_DELTA, central_delta, central_spends
from fed_distill.privacy.dp_sgd import ExampleDP, sampling_rate
from fed_distill.privacy.ledger import Charge, Ledger, Ledgers, Unit, composed
from fed_distill.privacy.promise import Spent
from fed_distill.results.files import as_file_name
from fed_distill.runtime import seeds
from fed_distill.training.choosing import chosen_device
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Downlink, Weights
from fed_distill.transport.requests import TrainRequest

SUMMED_BY = {"trainer", "cohort", "threads"}
"""Keys of ``[runtime]`` that change the order of sums: two answers with the same noise and other rounding would tell of
what was rounded, and a high rate makes that large."""
_SLACK = 1e-9


@dataclass(frozen=True)
class Asked:
    """One merchant's part in a request. digest: of all that decides the answer."""

    learner: Learner
    request: TrainRequest
    round: int
    digest: str

    @property
    def key(self) -> tuple[str, int, str, int, str]:
        """Arm, seed, merchant, round and digest."""
        return self.request.arm, self.request.seed, self.learner.name, self.round, self.digest

    def once_more(self) -> "Asked":
        """The same asked again, as a release of its own."""
        return replace(self, digest=fingerprint(again=self.digest))


@dataclass
class Protection:
    """The privacy of one site's merchants in one experiment.

    folder: keeps ledgers where the experiment names no other. limits: the site's own rules. secret: what nobody else
    knows and the noise depends on, so that knowing the run's seed is of no use; a simulation, which must be repeatable,
    has none. clock: the site's local time.
    """

    experiment: Experiment
    folder: Path
    limits: Limits
    secret: str = ""
    clock: Callable[[], datetime] = datetime.now
    _sizes: dict[tuple[str, int, str], int] = field(default_factory=dict, init=False)

    @property
    def batch_size(self) -> int:
        """Expected examples of a private step."""
        return self.experiment.privacy.batch_size or self.experiment.training.batch_size

    @property
    def own_randomness(self) -> tuple[str, ...]:
        """What the site adds to all that draws its noise, and its batches, depend on."""
        return (self.secret,) if self.secret else ()

    @property
    def _unit(self) -> Unit:
        unit = self.experiment.privacy.unit
        assert unit != "none"
        return unit

    def unit_of(self, arm: str) -> str:
        """What is protected in an arm: ``none`` in a control, and in what never leaves its merchant."""
        return self.experiment.unit_of(arm)

    def check(self, merchant: str, arm: str) -> None:
        """Raise BudgetExceeded if the merchant takes no part in what is protected as this arm is."""
        self.limits.of(merchant).check_unit(merchant, self.unit_of(arm))

    def tells_sizes(self, merchants: Iterable[str]) -> bool:
        """Whether the site may tell how many examples each has: nothing is protected, and all of them allow that."""
        return self.experiment.privacy.unit == "none" and all("none" in self.limits.of(one).units for one in merchants)

    def check_rules(self, request: TrainRequest, round: int) -> None:
        """Raise NotAllowed, naming the rule, for a request that the site as a whole takes no part in."""
        method = self.experiment.arms()[request.arm].method
        self.limits.rules.check(method, max(round, *request.rounds, 1), self.clock().time())

    def ledger(self, arm: str, seed: int, merchant: str) -> Ledger:
        """The ledger that a merchant's releases in an arm are charged to."""
        shared = self.experiment.privacy.ledger
        folder = self.folder / f"seed-{seed}" / as_file_name(arm) if shared is None else shared
        return Ledgers(folder).of(merchant)

    def example_dp(self, asked: Asked, examples: int, steps: int) -> tuple[ExampleDP, int]:
        """Noise for the ``steps`` private steps of this round, after they have been charged, and which release it is.

        examples: the merchant's noised size, from which all that shows in its uplink is computed. Of releases of the
        same round the first is 0; each has noise of its own, so that their difference tells nothing. Raise
        BudgetExceeded if its limits, or the target epsilon of this federation, do not allow them.
        """
        config = self.experiment.privacy
        rate, delta = sampling_rate(examples, self.batch_size), self._delta(examples)
        if config.noise_multiplier is not None:
            noise = config.noise_multiplier
        else:
            assert config.epsilon is not None
            planned = steps * asked.request.rounds_of(asked.learner.name)
            size = (Spend(config.size_noise, 1.0, 1),)
            noise = noise_for(config.epsilon, delta, rate, planned, size, config.accountant)
        self.limits.of(asked.learner.name).check_noise(asked.learner.name, noise)
        number = self._charge(
            asked.request,
            asked.learner.name,
            "training",
            asked.round,
            asked.digest,
            (Spend(noise, rate, steps),),
            delta,
        )
        return ExampleDP.configured(config, noise, examples), number

    def may_have_left(self, asked: Asked) -> bool:
        """Whether the answer was charged, and another of this run's arm after it: then it had been made and kept."""
        request = asked.request
        paid = self._paid(self.ledger(request.arm, request.seed, asked.learner.name), request.arm, request.seed)
        trained = [(one.round, one.request) for one in paid if one.what == "training"]
        return (asked.round, asked.digest) in trained[:-1]

    def join(self, request: TrainRequest, merchant: str, proxy: int) -> None:
        """Charge a merchant all rounds of a federation whose noise the server is trusted to add, before the first.

        Raise BudgetExceeded if its limits do not allow it.
        """
        config = self.experiment.privacy
        spends = central_spends(config, self.experiment.arms()[request.arm], request.population, proxy)
        limit, delta = self.limits.of(merchant), central_delta(config, request.population)
        limit.check_delta(merchant, delta, request.population)
        for spend in spends:
            limit.check_noise(merchant, spend.noise_multiplier)
        agreed = fingerprint(spends=[asdict(spend) for spend in spends], merchants=request.population)
        self._charge(request, merchant, "all rounds", 0, agreed, spends, delta)

    def noised_size(self, asked: Asked) -> int:
        """The merchant's number of examples with noise, drawn and charged once a federation."""
        request, merchant = asked.request, asked.learner.name
        key = request.arm, request.seed, merchant
        if key not in self._sizes:
            with self.ledger(*key).drawing():  # a run beside this one would find the same number, and draw the same
                self._sizes[key] = self._drawn_size(request, merchant, asked.learner.examples())
        return self._sizes[key]

    def _drawn_size(self, request: TrainRequest, merchant: str, examples: int) -> int:
        noise, limit = self.experiment.privacy.size_noise, self.limits.of(merchant)
        limit.check_noise(merchant, noise)
        digest = fingerprint(examples=examples, **({"secret": self.secret} if self.secret else {}))
        spends = (Spend(noise, 1.0, 1),)
        earlier = self._of_round(self.ledger(request.arm, request.seed, merchant), request, "size", 0)
        number = next((k for k, one in enumerate(earlier) if (one.request, one.spends) == (digest, spends)), None)
        place: tuple[str | int, ...] = (*_place(earlier, number), *self.own_randomness)
        stream = seeds.numpy_stream(request.seed, request.arm, merchant, "size noise", *place)
        size = max(1, round(examples + noise * float(stream.normal())))
        limit.check_delta(merchant, self._delta(size), size)
        self._charge(request, merchant, "size", 0, digest, spends, self._delta(size))
        return size

    def spent(self, arm: str, seed: int, merchants: Iterable[str]) -> Spent:
        """What the arm has cost ``merchants`` so far, by their ledgers."""
        parts = []
        for merchant in merchants:
            paid = self._paid(self.ledger(arm, seed, merchant), arm, seed)
            noises = [spend.noise_multiplier for one in paid if one.what != "size" for spend in one.spends]
            if noises:
                total = composed(paid, None, self.experiment.privacy.accountant)
                parts.append(Spent(1, total, min(one.delta for one in paid), min(noises), max(noises)))
        return Spent.joined(parts)

    def _paid(self, ledger: Ledger, arm: str, seed: int) -> list[Charge]:
        """What this run has charged for an arm."""
        return [
            entry.charge
            for entry in ledger.entries()
            if (entry.charge.run, entry.charge.arm, entry.charge.seed) == (self.experiment.name, arm, seed)
        ]

    def _delta(self, examples: int) -> float:
        given = self.experiment.privacy.delta
        return min(default_delta(examples), MOST_DELTA) if given is None else given

    def _of_round(self, ledger: Ledger, request: TrainRequest, what: str, round: int) -> list[Charge]:
        """Charges of the same part, arm, seed and round, of whatever run and request, oldest first."""
        key = request.arm, request.seed, round, what
        charges = (entry.charge for entry in ledger.entries())
        return [one for one in charges if (one.arm, one.seed, one.round, one.what) == key]

    def _charge(
        self,
        request: TrainRequest,
        merchant: str,
        what: str,
        round: int,
        digest: str,
        spends: tuple[Spend, ...],
        delta: float,
    ) -> int:
        """Charge; returns how many other releases of the same part and round the ledger had before this one."""
        config = self.experiment.privacy
        charge = Charge(
            run=self.experiment.name,
            arm=request.arm,
            seed=request.seed,
            round=round,
            unit=self._unit,
            what=what,
            request=digest,
            spends=spends,
            delta=delta,
        )
        ledger = self.ledger(request.arm, request.seed, merchant)
        if config.epsilon is not None:
            self._check_target(ledger, charge, config.epsilon)
        ledger.charge(charge, self.limits.of(merchant).max_epsilon, config.accountant)
        same = self._of_round(ledger, request, what, round)
        return next(number for number, one in enumerate(same) if one.same_release(charge))

    def _check_target(self, ledger: Ledger, charge: Charge, target: float) -> None:
        """Raise BudgetExceeded if the federation would spend more than its target with ``charge``."""
        paid = self._paid(ledger, charge.arm, charge.seed)
        if any(one.same_release(charge) for one in paid):
            return
        total = composed([*paid, charge], charge.delta, self.experiment.privacy.accountant)
        if not total <= target * (1.0 + _SLACK):
            raise BudgetExceeded(
                f"merchant {ledger.merchant}: budget spent: {charge.what} in round {charge.round} would raise the "
                f"federation's epsilon to {total:.6g}, above its target of {target:.6g}"
            )


class Digests:
    """Hex digests of what merchants are asked in one request, each with its own data; shared parts are hashed once."""

    def __init__(self, experiment: Experiment, request: TrainRequest, down: Downlink, secret: str = "") -> None:
        tables = experiment.model_dump(mode="json", exclude={"runtime", "name", "repeats", "compare", "controls"})
        intake = set(INTAKE)  # whose answers the server takes is no part of what it asks
        tables["federation"] = experiment.federation.model_dump(mode="json", exclude=intake)
        self._base = hashlib.sha256()
        self._base.update(
            fingerprint(
                experiment=tables,
                federation=experiment.arms()[request.arm].model_dump(mode="json", exclude=intake),
                arm=request.arm,
                seed=request.seed,
                rate=request.learning_rate,
                test=request.test,
                round=down.round,
                device=chosen_device(experiment.runtime.device).type,
                sums=experiment.runtime.model_dump(mode="json", include=SUMMED_BY),
                scalars=dict(down.scalars),
            ).encode()
        )
        if secret:  # other noise is another release
            self._base.update(secret.encode())
        if down.soft_labels is not None:
            _hash(self._base, {"soft_labels": down.soft_labels})
        if down.class_means is not None:
            _hash(self._base, vars(down.class_means))
        self._starts: dict[tuple[str, int], tuple[Weights, bytes]] = {}
        self._proxies: dict[int, tuple[Encoded, bytes]] = {}

    def of(self, blueprint: str, learner: Learner) -> str:
        """Digest for a learner that trains the student of ``blueprint``."""
        start = learner.weights
        known = blueprint, id(start)
        if known not in self._starts:
            hashed = hashlib.sha256(blueprint.encode())
            _hash(hashed, start)
            self._starts[known] = start, hashed.digest()
        whole = self._base.copy()
        whole.update(self._starts[known][1])
        if id(learner.proxy) not in self._proxies:
            hashed = hashlib.sha256()
            _hash(hashed, learner.proxy)
            self._proxies[id(learner.proxy)] = learner.proxy, hashed.digest()
        whole.update(self._proxies[id(learner.proxy)][1])
        for values in ({**learner.private, "labels": learner.labels}, learner.references, learner.correction):
            _hash(whole, values)
        return whole.hexdigest()


def _place(earlier: Sequence[Charge], number: int | None) -> tuple[int, ...]:
    """What tells a release's draws from those of ``earlier`` ones, of which it may be one itself; () for the first."""
    number = len(earlier) if number is None else number
    return (number,) if number else ()


def _hash(into: "hashlib._Hash", tensors: Mapping[str, Tensor]) -> None:
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        into.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        into.update(value.numpy().reshape(-1).view(np.uint8).data)
