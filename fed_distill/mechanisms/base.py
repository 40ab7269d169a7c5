"""A mechanism hides the members of one privacy unit: what it can protect, what it adds, what that costs, in words too.

Everything that depends on ``privacy.unit`` asks the mechanism of that name (``lookup``) and compares no names. A unit
is one file, found by name or import path; one of your own is a subclass of ``at_merchants.AtMerchants`` or
``at_server.AtServer``, according to who adds the noise, and so to how merchants pay.
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
from fed_distill.data.examples import Examples, Task
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.revealed import Revealed
from fed_distill.models import TextModel
from fed_distill.payloads.base import Payload
from fed_distill.privacy.exposure import MOVED_BY
from fed_distill.seeds import Randomness
from fed_distill.transport.messages import Kinds


@dataclass(frozen=True)
class Terms:
    """What decides a federation's noise and price, which its server and its sites know alike.

    merchants: all that there are, whether they take part in a round or not. proxy: examples of the proxy set.
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
    """What a federation's noise and sampling coins are drawn from.

    name: the server's secret, or in a simulation the run's seed, then the arm and what names this very federation.
    reproducible: whether it is a simulation, whose noise whoever knows the seed can take off.
    """

    name: Randomness = field(repr=False)
    reproducible: bool


@dataclass(frozen=True)
class Words:
    """What a unit promises.

    hides: whose presence cannot be told from what is released. trusted: who must be. title: what is protected.
    promise: what that means. counts: what n is. assumption: what the accountant takes for granted, beside what holds
    for all units.
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
    """What a federation does about privacy; as it is here, nothing.

    name: as in ``privacy.unit``. settings: those of the unit alone, from its table ``[privacy]``, or for a unit of
    one's own from ``privacy.options``.
    """

    name: str
    settings: ConfigTable = field(default_factory=NoSettings)

    compares: ClassVar[bool] = True
    """Whether the server may judge an uplink by others, and count merchants by their size. Where it may not, uplinks
    are an update and nothing else, and each changes their sum by its own alone."""
    poisson: ClassVar[bool] = False
    """Whether a coin for each merchant, that nobody else knows, decides who takes part in a round. All merchants then
    pay before the first round, those too that no coin will draw."""
    freezes: ClassVar[bool] = False
    """Whether merchants leave some weights alone: those of the setting ``freeze``, or by default embeddings."""

    @abstractmethod
    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """ConfigError unless it protects a federation whose method ``sends`` these payloads, as it is configured."""

    @abstractmethod
    def check_covered(self, method: str, sends: Kinds) -> None:
        """ConfigError if ``method`` sends something that is computed on private examples and that nothing covers."""

    def check_task(self, task: Task) -> None:  # noqa: B027 - most can do with every task
        """ConfigError for a task whose examples have no such members."""

    def check_student(self, student: TextModel) -> None:  # noqa: B027 - and with every student
        """ConfigError for a student that cannot be trained under it."""

    def groups(self, examples: Examples) -> Tensor | None:
        """To which member of the unit each of a merchant's training examples belongs, int64 ``[examples]``; None where
        each is one, or all are."""
        return None

    def aggregator_options(self, terms: Terms) -> dict[str, Any]:
        """Options of the configured aggregator."""
        return dict(terms.federation.aggregator_options)

    def aggregator(self, terms: Terms, student: TextModel, noise: NoiseSource) -> Aggregator:
        """What merges weights: the configured aggregator, or one in its place. ``student``: the global one."""
        built: Aggregator = AGGREGATORS.build(terms.federation.aggregator, self.aggregator_options(terms))
        return built

    def tally(self, terms: Terms, noise: NoiseSource, round: int) -> Callable[[Tensor], Tensor]:
        """How votes ``[proxy, classes]`` of a round become answers int64 ``[proxy]``, negative where there is none."""
        return counted_plainly

    @abstractmethod
    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """All that leaves a merchant in a federation whose method ``sends`` these payloads.

        personal: merchants train students of their own afterwards. reproducible_noise: noise is drawn from the run's
        seed, as in a simulation, and not from secrets of the sites and of the server.
        """


@dataclass(frozen=True)
class Protecting(Mechanism):
    """What both kinds of mechanisms have in common that promise something, by whoever adds the noise."""

    moved_by: ClassVar[float] = math.inf
    """How far one example of a merchant moves what is noised, in units of the release's own sensitivity, 1 at least:
    what a release costs one example, whatever it hides, follows from it (``privacy.exposure``)."""

    @property
    @abstractmethod
    def words(self) -> Words:
        """The promise in words, for reports."""

    @abstractmethod
    def covers(self, kind: type[Payload]) -> str | None:
        """How it protects a kind of payload; None of one that it cannot protect, and that no method may send."""

    @property
    def stated_move(self) -> float | None:
        """``moved_by`` as ledgers state it: None of a built-in unit, of which they know it."""
        return None if self.name in MOVED_BY else self.moved_by

    def group(self) -> str | None:
        """What a group is, in words, where the unit is one."""
        return None

    def about_groups(self, group: str | None, largest: int | None) -> list[str]:
        """What a report has to say about groups, in sentences: of a ``group`` as above, and of the ``largest`` number
        of examples in one, where that is known."""
        return []

    def check_covered(self, method: str, sends: Kinds) -> None:
        """ConfigError if ``method`` sends something that is computed on private examples and that nothing covers."""
        self._refuse(method, [kind for kind in sends if kind.covered is None])

    def _refuse(self, method: str, bare: Sequence[type[Payload]]) -> None:
        if bare:
            raise ConfigError(
                f"privacy.unit = {self.name!r} does not cover everything that method {method} sends: "
                f"{bare[0].disclosure} are computed on private examples without noise. Choose another method, "
                "such as fedmd, or set privacy.unit = 'none'."
            )
