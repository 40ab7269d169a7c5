"""Unit ``merchant``: clip each merchant's update, add noise to the sum, divide by the expected number of merchants.

McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, algorithm 1, with flat clipping
and a fixed denominator. The server is trusted to add the noise. The clipping norm is fixed, or tracks a quantile of the
norms of the updates (Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021, algorithm
1). The guarantee requires Poisson sampling of the merchants of a round.
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
    """Hides a merchant's whole contribution in the noised mean of clipped updates."""

    settings: UpdatesConfig = field(default_factory=UpdatesConfig)
    moved_by: ClassVar[float] = MOVED_BY["merchant"]
    compares: ClassVar[bool] = False
    poisson: ClassVar[bool] = True
    freezes: ClassVar[bool] = True

    @property
    def words(self) -> Words:
        """The guarantee for a merchant."""
        return Words(
            hides="all examples of any one merchant, added or removed",
            trusted="the server, which receives each merchant's update and adds noise to their sum",
            title="A whole merchant",
            promise="An observer of the students that the server releases, with any other knowledge, can hardly tell "
            "whether a merchant participated at all, with all of its examples.",
            counts="the merchants",
            assumption="Each merchant's update is clipped before the sum is noised. Two federations are neighbours if "
            "one merchant is added or removed.",
        )

    def covers(self, kind: type[Payload]) -> str | None:
        """Cover updates, which are averaged."""
        return "received by the server, which releases their noised mean" if kind is StudentUpdate else None

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Raise ConfigError unless the method sends updates only and aggregates them with the plain mean."""
        self.check_covered(federation.method, sends)
        if sends != (StudentUpdate,) or federation.aggregator != "fedavg":
            raise ConfigError(
                f"privacy.unit = {self.name!r} adds noise to a mean of updates: choose a method that sends an update "
                f"only, such as fedavg-kd, with aggregator fedavg, not {federation.method} with {federation.aggregator}"
            )
        if federation.aggregator_options:
            raise ConfigError(
                f"privacy.unit = {self.name!r} weights all merchants alike: remove federation.aggregator_options"
            )

    def noise_multiplier(self, terms: Terms) -> float:
        """Return the noise multiplier of each round's mean update."""
        config, federation = terms.promise, terms.federation
        if config.noise_multiplier is not None:
            return config.noise_multiplier
        assert config.epsilon is not None
        delta = self.delta(config, terms.merchants)
        return merchant_noise(config.epsilon, delta, federation.participation, federation.rounds, config.accountant)

    def spends(self, terms: Terms) -> tuple[Spend, ...]:
        """Return the cost of all rounds of a federation for each merchant."""
        federation = terms.federation
        return (merchant_spend(self.noise_multiplier(terms), federation.participation, federation.rounds),)

    def aggregator(self, terms: Terms, student: TextModel, noise: NoiseSource) -> "PrivateMean":
        """Build a private mean in place of the plain mean; it excludes the weights that merchants freeze."""
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
    """Return the cost of ``rounds`` rounds for a merchant.

    :param noise_multiplier: of the whole round, adaptive clipping included (z in Andrew et al., theorem 1)
    :param participation: sampling probability per round
    :param rounds: number of rounds
    """
    return Spend(noise_multiplier, participation, rounds)


def merchant_noise(
    target_epsilon: float, delta: float, participation: float, rounds: int, accountant: Accountant = "pld"
) -> float:
    """Return the smallest noise multiplier for ``rounds`` rounds within ``target_epsilon``; see ``noise_for``."""
    return noise_for(target_epsilon, delta, participation, rounds, accountant=accountant)


@dataclass(frozen=True)
class QuantileClipping:
    """A clipping norm that tracks a quantile of the norms of the updates (Andrew et al., algorithm 1).

    quantile: target share of merchants without clipping (gamma). learning_rate: rate of the geometric update (eta_C).
    count_noise: standard deviation of the noise on the count of unclipped updates (sigma_b), in merchants; None for
    1/20 of the expected merchants, as in the paper. Raises ValueError for values out of range.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.quantile <= 1.0 or not 0.0 < self.learning_rate < math.inf:
            raise ValueError("adaptive clipping requires a quantile between 0 and 1 and a learning_rate above 0")
        if self.count_noise is not None and not 0.0 < self.count_noise < math.inf:
            raise ValueError(f"count_noise must be finite and above 0, not {self.count_noise}")

    def deviation(self, expected_merchants: float) -> float:
        """Return the standard deviation of the noise on the count, in merchants."""
        return expected_merchants / 20.0 if self.count_noise is None else self.count_noise

    def next_norm(self, norm: float, surplus: float, expected_merchants: float) -> float:
        """Return the next round's norm.

        :param norm: current norm
        :param surplus: noised sum over merchants of 1/2 for an update within the norm and -1/2 for a clipped one.
            Adding or removing a merchant then changes it by 1/2, as theorem 1 requires, and the private number of
            participants is not needed.
        :param expected_merchants: expected number of merchants per round
        """
        within = 0.5 + surplus / expected_merchants
        return norm * math.exp(-self.learning_rate * (within - self.quantile))


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """Return the noise multiplier of the updates, z_delta, given that of the round and the noise of the count.

    (z^-2 - (2 sigma_b)^-2)^-1/2 (Andrew et al., theorem 1).

    :param noise_multiplier: of the whole round (z)
    :param count_noise: standard deviation of the noise on the count (sigma_b)
    :raises ConfigError: the count alone uses the whole budget
    """
    if noise_multiplier == 0.0:
        return 0.0
    left = noise_multiplier**-2 - (2.0 * count_noise) ** -2
    if left <= 0.0:
        raise ConfigError(
            f"adaptive clipping with noise {count_noise:g} on its count requires a noise multiplier below twice that, "
            f"not {noise_multiplier:g}: increase participation, increase the noise on the count, or use a fixed "
            "clipping norm"
        )
    return float(left**-0.5)


@dataclass
class PrivateMean:
    """An aggregator of updates with merchant-level differential privacy.

    noise_multiplier: standard deviation of the noise on the sum in units of the norm (z); 0 clips without noise.
    expected_merchants: expected number of merchants per round (q M). clip_norm: maximum L2 norm of a merchant's update
    over all weights jointly (C); the initial one if adaptive. randomness: the server's secret, or in a simulation the
    run's seed, followed by the federation. frozen: names of untrained weights. padded: names of tables with untrained
    row 0 (padding). adaptive: update rule of the norm, or None for a fixed norm. exact: derive the noise from all bits
    of the sum too, so that two sums never share it; in a simulation, where a repeated run may round sums differently,
    it is derived from the participants instead. Raises ValueError for values out of range, ConfigError if the noise is
    too small for adaptive clipping.
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
            raise ValueError("a private mean requires expected_merchants and clip_norm above 0")
        self._norm = self.clip_norm
        self._count_noise, self._update_noise = 0.0, self.noise_multiplier
        if self.adaptive is not None and self.noise_multiplier > 0.0:
            self._count_noise = self.adaptive.deviation(self.expected_merchants)
            self._update_noise = update_noise(self.noise_multiplier, self._count_noise)

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """Return ``current`` plus the noised mean of the clipped updates.

        Merchants have equal weight. Weights that a merchant did not send count as unchanged. Noise is added to every
        trained entry, changed or not, even without participants; frozen and integer weights are unchanged.

        :param current: global weights
        :param uplinks: the merchants' uplinks
        :raises UplinkRejected: an uplink has no update or a non-finite one; ``state`` is unchanged
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
        """Return the number of rounds, from which noise is derived, and the next norm."""
        return {"rounds": torch.tensor(self._rounds), "clip_norm": torch.tensor(self._norm, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state``."""
        self._rounds, self._norm = int(state["rounds"]), float(state["clip_norm"])

    def _trained(self, current: Weights) -> list[str]:
        """Return trained weights, sorted so that noise and norms do not depend on the order in a checkpoint."""
        return sorted(name for name, value in current.items() if value.is_floating_point() and name not in self.frozen)

    def _digest(self, total: "_ClippedSum") -> bytes:
        """Return a digest of the inputs of this round's noise."""
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
        """Return ``current`` plus its noised mean update; ``change`` is the sum of updates."""
        noised = add_noise(change, self._update_noise * self._norm, stream)
        if name in self.padded:
            noised[0] = change[0]
        return noised.div_(self.expected_merchants).add_(current).to(current.dtype)


class _ClippedSum:
    """The sum of merchants' updates, each clipped to L2 norm ``norm`` over the weights ``names`` jointly.

    It uses memory for one student in float64 and one update, for any number of merchants. ``surplus``: see
    ``QuantileClipping.next_norm``, without noise. ``merchants``: names of the participants.
    """

    def __init__(self, current: Weights, names: Iterable[str], padded: frozenset[str], norm: float) -> None:
        self.sums = {name: torch.zeros_like(current[name], dtype=torch.float64) for name in names}
        self.surplus = 0.0
        self.merchants: list[str] = []
        self._padded, self._norm = padded, norm

    def add(self, uplink: Uplink) -> None:
        """Add the update of one merchant."""
        sent = uplink.get(StudentUpdate)
        if sent is None:
            raise UplinkRejected(f"merchant {uplink.merchant}: its uplink has no update")
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
        """Return the merchant's change of weight ``name``, of a partial table its rows only; 0 for padding."""
        change, rows = sent.arrays[name].to(torch.float64, copy=True), sent.rows.get(name)
        if name in self._padded:
            change[slice(1) if rows is None else rows == 0] = 0.0
        return change
