"""The interface of privacy mechanisms: what a mechanism covers, what noise it adds, and what that costs.

Code that depends on ``privacy.unit`` uses the mechanism of that name (``lookup``) and does not compare names. A unit is
one file, found by name or import path. A custom unit is a subclass of ``at_merchants.AtMerchants`` or
``at_server.AtServer``, depending on who adds the noise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fed_distill.aggregation import AGGREGATORS
from fed_distill.aggregation.base import Aggregator
from fed_distill.aggregation.votes import counted_plainly
from fed_distill.config import Experiment, FederationConfig, PrivacyConfig, ProtectedConfig
from fed_distill.config.tables import ConfigTable
from fed_distill.data.examples import Examples, FederatedData, Task
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.revealed import Revealed
from fed_distill.models import TextModel
from fed_distill.payloads.base import Payload
from fed_distill.privacy.exposure import MOVED_BY
from fed_distill.seeds import Randomness
from fed_distill.transport.messages import Kinds


@dataclass(frozen=True)
class Terms:
    """The parameters that determine noise and price of a federation, known to its server and its sites.

    merchants: number of merchants, participating or not. proxy: number of proxy examples.
    """

    privacy: PrivacyConfig
    federation: FederationConfig
    merchants: int
    proxy: int

    @property
    def promise(self) -> ProtectedConfig:
        """``[privacy]`` of a federation that promises something."""
        assert isinstance(self.privacy, ProtectedConfig)
        return self.privacy


@dataclass(frozen=True)
class NoiseSource:
    """The source of a federation's noise and sampling coins.

    name: the server's secret, or in a simulation the run's seed, followed by the arm and the federation. reproducible:
    whether the noise is derived from the run's seed, so that anyone who has it can subtract the noise.
    """

    name: Randomness = field(repr=False)
    reproducible: bool


@dataclass(frozen=True)
class Words:
    """The guarantee of a unit in words.

    hides: whose presence is protected. trusted: trusted parties. title: short name of the unit. promise: meaning of the
    guarantee. counts: meaning of n. assumption: assumptions of the accountant that are specific to this unit.
    """

    hides: str
    trusted: str
    title: str
    promise: str
    counts: str
    assumption: str


class NoSettings(ConfigTable):
    """Of a unit that has none of its own."""


@dataclass(frozen=True)
class Mechanism(ABC):
    """The privacy mechanism of a federation; this base class adds no protection.

    name: value of ``privacy.unit``. settings: the unit's own settings, from its table ``[privacy]``, or for a custom
    unit from ``privacy.options``.
    """

    name: str
    settings: ConfigTable = field(default_factory=NoSettings)

    compares: ClassVar[bool] = True
    """Whether the server may compare uplinks with each other and weight merchants by size. If not, uplinks contain
    only an update, and each affects the sum only through its own contribution."""
    poisson: ClassVar[bool] = False
    """Whether the merchants of a round are Poisson-sampled with secret coins. All merchants then pay before the first
    round, including those that are never sampled."""
    freezes: ClassVar[bool] = False
    """Whether merchants keep some weights fixed: those of the setting ``freeze``, by default the embeddings."""

    @abstractmethod
    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Raise ConfigError unless the mechanism, as configured, protects a federation with these payloads."""

    @abstractmethod
    def check_covered(self, method: str, sends: Kinds) -> None:
        """Raise ConfigError if ``method`` sends a payload computed from private examples without protection."""

    def check_task(self, task: Task) -> None:  # noqa: B027 - most can do with every task
        """Raise ConfigError for a task that the unit does not support."""

    def check_data(self, experiment: Experiment, data: FederatedData) -> None:  # noqa: B027 - most promise for any data
        """Raise ConfigError if the guarantee, as worded, does not hold for data that were made like these."""

    def check_student(self, student: TextModel) -> None:  # noqa: B027 - most units support every student
        """Raise ConfigError for a student that the mechanism does not support."""

    def groups(self, examples: Examples) -> Tensor | None:
        """Return the member of the unit for each training example of a merchant, int64 ``[examples]``; None if each
        example is one, or all are."""
        return None

    def aggregator_options(self, terms: Terms) -> dict[str, Any]:
        """Return options of the configured aggregator."""
        return dict(terms.federation.aggregator_options)

    def aggregator(self, terms: Terms, student: TextModel, noise: NoiseSource) -> Aggregator:
        """Build the aggregator of weights: the configured one or a replacement. ``student``: the global student."""
        built: Aggregator = AGGREGATORS.build(terms.federation.aggregator, self.aggregator_options(terms))
        return built

    def tally(self, terms: Terms, noise: NoiseSource, round: int) -> Callable[[Tensor], Tensor]:
        """Return a function from votes ``[proxy, classes]`` of a round to labels int64 ``[proxy]``, negative: none."""
        return counted_plainly

    @abstractmethod
    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """List what leaves a merchant.

        :param config: the ``[privacy]`` table
        :param sends: payloads that merchants send
        :param personal: whether merchants also train personal students
        :param reproducible_noise: whether noise is derived from the run's seed, as in a simulation, instead of from
            secrets of the sites and of the server
        """


@dataclass(frozen=True)
class Protecting(Mechanism):
    """Base of all mechanisms with a privacy guarantee."""

    moved_by: ClassVar[float] = math.inf
    """How far one example changes the noised value, in units of the release's own sensitivity, at least 1. The cost for
    one example follows from it, for any unit (``privacy.exposure``)."""

    gaussian: ClassVar[bool] = True
    """Whether it adds Gaussian noise, which has a noise multiplier."""

    @property
    @abstractmethod
    def words(self) -> Words:
        """The guarantee in words, for reports."""

    @abstractmethod
    def covers(self, kind: type[Payload]) -> str | None:
        """Return how a kind of payload is protected; None if it is not, and must not be sent."""

    @property
    def stated_move(self) -> float | None:
        """``moved_by`` for ledgers: None for a built-in unit, where it is known."""
        return None if self.name in MOVED_BY else self.moved_by

    def group(self) -> str | None:
        """Return a description of a group, if the unit is one."""
        return None

    def about_groups(self, group: str | None, largest: int | None, merchants: int | None = None) -> list[str]:
        """Return sentences about groups for the report.

        :param group: description of a group, see ``group``
        :param largest: size of the largest group at one merchant, if known
        :param merchants: maximum number of merchants that train on one group, if known
        """
        return []

    def check_covered(self, method: str, sends: Kinds) -> None:
        """Raise ConfigError if ``method`` sends a payload computed from private examples without protection."""
        self._refuse(method, [kind for kind in sends if kind.covered is None])

    def _refuse(self, method: str, bare: Sequence[type[Payload]]) -> None:
        if bare:
            raise ConfigError(
                f"privacy.unit = {self.name!r} does not cover all payloads of method {method}: "
                f"{bare[0].disclosure} are computed from private examples without noise. Choose another method, "
                "such as fedmd, or set privacy.unit = 'none'."
            )
