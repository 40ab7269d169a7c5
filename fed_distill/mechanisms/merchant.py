"""Unit ``merchant``: each merchant's update clipped, their sum noised, and divided by how many were expected.

McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, algorithm 1, with flat clipping
and a fixed denominator; the server is trusted to add the noise. The clipping norm is fixed, or follows a quantile of
the norms of the updates (Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021,
algorithm 1). What it promises holds if every merchant takes part in a round by a coin of its own (Poisson sampling).
"""

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fed_distill.config import Experiment, FederationConfig, UpdatesConfig
from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import NoiseSource, Terms, Words
from fed_distill.models import TextModel
from fed_distill.models.freezing import freeze
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.payloads.base import Payload
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import Accountant, Spend, noise_for
from fed_distill.privacy.dp_sgd import add_noise
from fed_distill.privacy.exposure import MOVED_BY
from fed_distill.seeds import Keystream, Randomness
from fed_distill.transport.messages import Kinds, Uplink


@dataclass(frozen=True)
class ByMerchant(AtServer):
    """Hides everything of a merchant in the noised mean of clipped updates."""

    settings: UpdatesConfig = field(default_factory=UpdatesConfig)
    moved_by: ClassVar[float] = MOVED_BY["merchant"]
    compares: ClassVar[bool] = False
    poisson: ClassVar[bool] = True
    freezes: ClassVar[bool] = True

    @property
    def words(self) -> Words:
        """What is promised to a merchant."""
        return Words(
            hides="all examples of any one merchant, added or removed",
            trusted="the server, which receives each merchant's update and adds noise to their sum",
            title="A whole merchant",
            promise="Whoever sees the students that the server releases, and knows everything else, can hardly tell "
            "whether a merchant took part at all, with all of its examples.",
            counts="the merchants",
            assumption="Each merchant's update is clipped before the sum is noised. Two federations are neighbours if "
            "one merchant is added or removed.",
        )

    def covers(self, kind: type[Payload]) -> str | None:
        """Updates, of which a mean is made."""
        return "received by the server, which releases their noised mean" if kind is StudentUpdate else None

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """ConfigError for what is no plain mean of updates."""
        self.check_covered(federation.method, sends)
        if sends != (StudentUpdate,) or federation.aggregator != "fedavg":
            raise ConfigError(
                f"privacy.unit = {self.name!r} noises a mean of updates: it needs a method that sends an update only, "
                f"such as fedavg-kd, and aggregator fedavg, not {federation.method} with {federation.aggregator}"
            )

    def noise_multiplier(self, terms: Terms) -> float:
        """Noise multiplier of each round's mean update."""
        config, federation = terms.promise, terms.federation
        if config.noise_multiplier is not None:
            return config.noise_multiplier
        assert config.epsilon is not None
        delta = self.delta(config, terms.merchants)
        return merchant_noise(config.epsilon, delta, federation.participation, federation.rounds, config.accountant)

    def spends(self, terms: Terms) -> tuple[Spend, ...]:
        """What all rounds of a federation cost each of its merchants."""
        federation = terms.federation
        return (merchant_spend(self.noise_multiplier(terms), federation.participation, federation.rounds),)

    def aggregator(self, terms: Terms, student: TextModel, noise: NoiseSource) -> "PrivateMean":
        """A private mean in the place of plain averaging; frozen is what merchants freeze of the ``student``."""
        config, student = self.settings, freeze(copy.deepcopy(student), self.settings.freeze)
        quantile = config.adaptive_quantile
        return PrivateMean(
            noise_multiplier=self.noise_multiplier(terms),
            expected_merchants=terms.federation.participation * terms.merchants,
            clip_norm=config.max_update_norm,
            randomness=noise.name,
            exact=not noise.reproducible,
            frozen=frozenset(name for name, value in student.named_parameters() if not value.requires_grad),
            padded=frozenset(student.tables),
            adaptive=None if quantile is None else QuantileClipping(quantile),
        )


def merchant_spend(noise_multiplier: float, participation: float, rounds: int) -> Spend:
    """What ``rounds`` rounds cost each merchant that takes part in each with probability ``participation``.

    noise_multiplier: of the whole round, z; what an adaptive norm takes of it is in there (Andrew et al., theorem 1).
    """
    return Spend(noise_multiplier, participation, rounds)


def merchant_noise(
    target_epsilon: float, delta: float, participation: float, rounds: int, accountant: Accountant = "pld"
) -> float:
    """The least noise multiplier with which ``rounds`` rounds stay within ``target_epsilon``, by ``noise_for``."""
    return noise_for(target_epsilon, delta, participation, rounds, accountant=accountant)


@dataclass(frozen=True)
class QuantileClipping:
    """A clipping norm that follows a quantile of the norms of the merchants' updates (Andrew et al., algorithm 1).

    quantile: share of merchants whose updates shall not be clipped (gamma). learning_rate: of the geometric step
    toward it (eta_C). count_noise: standard deviation of the noise on how many were not clipped (sigma_b), in
    merchants; None for a twentieth of the merchants expected, as in the paper. ValueError for impossible numbers.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.quantile <= 1.0 or not 0.0 < self.learning_rate < math.inf:
            raise ValueError("adaptive clipping needs a quantile between 0 and 1 and a learning_rate above 0")
        if self.count_noise is not None and not 0.0 < self.count_noise < math.inf:
            raise ValueError(f"count_noise must be finite and above 0, not {self.count_noise}")

    def deviation(self, expected_merchants: float) -> float:
        """Standard deviation of the noise on the count, in merchants."""
        return expected_merchants / 20.0 if self.count_noise is None else self.count_noise

    def next_norm(self, norm: float, surplus: float, expected_merchants: float) -> float:
        """The next round's norm.

        surplus: the sum over merchants of 1/2 for an update within the norm and -1/2 for one that was clipped, with
        noise. Halves, because so the sum changes by 1/2 whoever comes or stays away, as theorem 1 needs it; how many
        came, which is private too, is not asked.
        """
        within = 0.5 + surplus / expected_merchants
        return norm * math.exp(-self.learning_rate * (within - self.quantile))


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """Noise multiplier of the updates, z_delta, if the count takes its part of ``noise_multiplier``, z.

    (z^-2 - (2 sigma_b)^-2)^-1/2 (Andrew et al., theorem 1). ConfigError if the count alone takes more.
    """
    if noise_multiplier == 0.0:
        return 0.0
    left = noise_multiplier**-2 - (2.0 * count_noise) ** -2
    if left <= 0.0:
        raise ConfigError(
            f"adaptive clipping with noise {count_noise:g} on its count cannot keep a noise multiplier of "
            f"{noise_multiplier:g}, which must be below twice that: expect more merchants a round, give more noise to "
            "the count, or clip to a fixed norm"
        )
    return float(left**-0.5)


@dataclass
class PrivateMean:
    """An aggregator whose result hides whether any one merchant took part.

    noise_multiplier: standard deviation of the noise on the sum in units of the norm (z); 0 clips without noise.
    expected_merchants: of a round, q M: participation times the number of all merchants. clip_norm: largest L2 norm of
    a merchant's update over all weights jointly (C), at the start if it is adaptive. randomness: the server's secret,
    or in a simulation the run's seed, then what names this federation. frozen: names of weights that nobody trains.
    padded: names of tables whose row 0 is padding, which nobody trains either. adaptive: how the norm changes; None for
    not at all. exact: whether the noise also depends on every bit of what it is added to, so that two sums never share
    it. In a simulation, where sums may be rounded otherwise when it is run again, it depends on who took part instead.
    Raises ValueError for impossible numbers, ConfigError if the norm cannot adapt within the noise.
    """

    noise_multiplier: float
    expected_merchants: float
    clip_norm: float
    randomness: Randomness = field(repr=False)
    frozen: frozenset[str] = frozenset()
    padded: frozenset[str] = frozenset()
    adaptive: QuantileClipping | None = None
    exact: bool = True
    _norm: float = field(init=False, repr=False)
    _rounds: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be finite and at least 0, not {self.noise_multiplier}")
        if not 0.0 < self.expected_merchants < math.inf or not 0.0 < self.clip_norm < math.inf:
            raise ValueError("a private mean needs expected_merchants and clip_norm above 0")
        self._norm = self.clip_norm
        self._count_noise, self._update_noise = 0.0, self.noise_multiplier
        if self.adaptive is not None and self.noise_multiplier > 0.0:
            self._count_noise = self.adaptive.deviation(self.expected_merchants)
            self._update_noise = update_noise(self.noise_multiplier, self._count_noise)

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """The next global weights: ``current`` moved by the noised mean of the clipped updates.

        Every merchant counts the same. What it did not send did not move. Noise is on every trained entry, moved or
        not, and also if nobody came; frozen weights and those that are not floating-point stay as they are. Raises
        UplinkRejected, with ``state`` as it was, for an uplink without an update or with one that is not finite.
        """
        total = _ClippedSum(current, self._trained(current), self.padded, self._norm)
        for uplink in uplinks:
            total.add(uplink)
        stream = Keystream(*self.randomness, "merchant noise", self._rounds + 1, self._digest(total))
        surplus = float(add_noise(torch.tensor([total.surplus], dtype=torch.float64), self._count_noise, stream))
        moved = {name: self._moved(current[name], change, name, stream) for name, change in total.sums.items()}
        if self.adaptive is not None:
            self._norm = self.adaptive.next_norm(self._norm, surplus, self.expected_merchants)
        self._rounds += 1
        return {**current, **moved}

    def state(self) -> dict[str, Tensor]:
        """The rounds so far, by which noise is drawn, and the norm of the next."""
        return {"rounds": torch.tensor(self._rounds), "clip_norm": torch.tensor(self._norm, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state``."""
        self._rounds, self._norm = int(state["rounds"]), float(state["clip_norm"])

    def _trained(self, current: Weights) -> list[str]:
        """Sorted, so that noise and norms do not depend on the order in which a checkpoint lists weights."""
        return sorted(name for name, value in current.items() if value.is_floating_point() and name not in self.frozen)

    def _digest(self, total: "_ClippedSum") -> bytes:
        """Of what the noise of this round depends on, beside its name."""
        hashed = hashlib.sha256(repr((self.noise_multiplier, self.expected_merchants, self._norm)).encode())
        if not self.exact:
            hashed.update(repr(total.merchants).encode())
            return hashed.digest()
        hashed.update(repr(total.surplus).encode())
        for name, value in total.sums.items():
            hashed.update(f"{name} {list(value.shape)}".encode())
            hashed.update(value.numpy().data)
        return hashed.digest()

    def _moved(self, current: Tensor, change: Tensor, name: str, stream: Keystream) -> Tensor:
        """``current`` moved by its noised mean update, of which ``change`` is the sum of updates."""
        noised = add_noise(change, self._update_noise * self._norm, stream)
        if name in self.padded:
            noised[0] = change[0]
        return noised.div_(self.expected_merchants).add_(current).to(current.dtype)


class _ClippedSum:
    """The sum of merchants' updates, each scaled down to L2 norm ``norm`` over the weights ``names`` jointly.

    Memory is that of one student in float64 and one update, however many merchants there are. ``surplus`` is what
    ``QuantileClipping.next_norm`` asks for, without noise. ``merchants``: whose updates are in the sum.
    """

    def __init__(self, current: Weights, names: Iterable[str], padded: frozenset[str], norm: float) -> None:
        self.sums = {name: torch.zeros_like(current[name], dtype=torch.float64) for name in names}
        self.surplus = 0.0
        self.merchants: list[str] = []
        self._padded, self._norm = padded, norm

    def add(self, uplink: Uplink) -> None:
        """Take in one merchant."""
        sent = uplink.get(StudentUpdate)
        if sent is None:
            raise UplinkRejected(f"merchant {uplink.merchant}: it sent no update, of which a private mean is made")
        changes = {name: self._change(name, sent) for name in self.sums if name in sent.arrays}
        norm = math.hypot(*(float(torch.linalg.vector_norm(change)) for change in changes.values()))
        if not math.isfinite(norm):
            raise UplinkRejected(f"merchant {uplink.merchant}: its update is not finite")
        scale = min(1.0, self._norm / norm) if norm else 1.0
        for name, change in changes.items():
            rows = sent.rows.get(name)
            if rows is None:
                self.sums[name].add_(change, alpha=scale)
            else:
                self.sums[name].index_add_(0, rows, change, alpha=scale)
        self.merchants.append(uplink.merchant)
        self.surplus += 0.5 if norm <= self._norm else -0.5

    def _change(self, name: str, sent: PartialWeights) -> Tensor:
        """How far the merchant moved weight ``name``, of a table sent in part only its rows; padding never moves."""
        change, rows = sent.arrays[name].to(torch.float64, copy=True), sent.rows.get(name)
        if name in self._padded:
            change[slice(1) if rows is None else rows == 0] = 0.0
        return change
