"""One federation: its participants, students, privacy and requests to sites."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fed_distill import seeds
from fed_distill.aggregation.base import Aggregator
from fed_distill.config import FederationConfig, OptimizerConfig, PrivacyConfig, ProtectedConfig, TrainerConfig
from fed_distill.coordinator.attempts import check_there
from fed_distill.coordinator.counts import Counts
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.received import FOLDER, ReceivedSoftLabels
from fed_distill.coordinator.released import Released
from fed_distill.coordinator.services import Distils, RoundServices, Teacher
from fed_distill.coordinator.sites import Chunk, Sites, chunk_size
from fed_distill.coordinator.students import ServerTraining
from fed_distill.coordinator.uplink_validator import UplinkValidator
from fed_distill.mechanisms.base import Mechanism, NoiseSource, Terms
from fed_distill.methods import METHODS
from fed_distill.methods.base import GlobalState, Method
from fed_distill.models import TextModel
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Context
from fed_distill.privacy.ledger import Ledgers
from fed_distill.storage.files import as_file_name
from fed_distill.storage.merchant_store import CODING, STUDENTS, Stores
from fed_distill.storage.parts import RunPart
from fed_distill.training.optimization import Pace
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import TrainRequest, blueprint_of


@dataclass(frozen=True)
class Federation:
    """One federation on one seed, with everything that it requires.

    mechanism: privacy mechanism of the arm. students: models by name, the global one first; starts: the server's
    weights for each. factory: distils the global student. part: stored state between rounds. codec: compression of
    messages. byzantine: merchants of a simulation that deviate from the protocol; their own scores are ignored.
    identity: identity of this federation in a private arm (``TrainRequest.federation``). secret: seeds the server's
    noise; empty in a simulation, which uses the run's seed. released: record of released rounds, with a secret and
    noise at the server. kept_as: name of the merchants' stored state. cut: merchants whose weight was truncated, which
    is logged once for each.
    """

    arm: str
    config: FederationConfig
    training: TrainerConfig
    privacy: PrivacyConfig
    mechanism: Mechanism
    seed: int
    students: Mapping[str, TextModel]
    starts: Mapping[str, Weights]
    assigned: Sequence[str]
    teacher_labels: Tensor
    factory: Distils
    sites: Sites
    server: ServerTraining
    evaluator: Evaluator
    teacher: Teacher
    part: RunPart
    codec: Codec
    byzantine: frozenset[str] = frozenset()
    identity: str = ""
    secret: str = field(default="", repr=False)
    released: Released | None = None
    kept_as: str = ""
    cut: set[str] = field(default_factory=set)

    def request(self, merchants: Sequence[str], learning_rate: float = 0.0, test: bool = False) -> TrainRequest:
        """Return a request to ``merchants`` with their assigned students."""
        place = {merchant: number for number, merchant in enumerate(self.sites.merchants)}
        return TrainRequest(
            arm=self.arm,
            seed=self.seed,
            merchants=tuple(merchants),
            students=tuple(self.assigned[place[merchant] % len(self.assigned)] for merchant in merchants),
            blueprints={name: blueprint_of(model) for name, model in self.students.items()},
            rounds=tuple(max(self.planned[merchant], 1) for merchant in merchants),
            population=len(self.sites.merchants),
            learning_rate=learning_rate,
            test=test,
            federation=self.identity,
        )

    @property
    def noise(self) -> NoiseSource:
        """Source of the server's noise and Poisson sampling."""
        return NoiseSource((self.secret or self.seed, self.arm, self.identity), reproducible=not self.secret)

    @cached_property
    def method(self) -> Method:
        """The federation's method."""
        built: Method = METHODS.build(self.config.method, self.config.options)
        return built

    @property
    def stores(self) -> Stores:
        """State of merchants beside the checkpoint: received soft labels, and in a simulation their own state."""
        arms = {STUDENTS: self.kept_as, CODING: self.kept_as, FOLDER: self.arm}
        return Stores(self.part.state, self.seed, arms)

    def check_kept(self, number: int, kept: Mapping[str, Mapping[str, int]]) -> None:
        """Check stored state before round ``number``, since a site with damaged state would exclude the merchant.

        :raises CheckpointError: state in ``kept`` is missing from ``stores`` or damaged
        :raises LedgerError: a ledger of a simulation is missing or damaged
        """
        remedy = f"put back a copy of it, or delete {self.part.rounds} to train that federation again"
        self.stores.check(number, kept, remedy)
        ledgers = self.part.state / "ledgers" / f"seed-{self.seed}" / as_file_name(self.arm)
        if ledgers.exists():
            for merchant in self.sites.merchants:
                Ledgers(ledgers).of(merchant).check()

    @property
    def title(self) -> str:
        """Seed and arm, the key of the federation in ``released``."""
        return f"seed {self.seed}, {self.arm}"

    @cached_property
    def planned(self) -> Mapping[str, int]:
        """Number of planned rounds of each merchant."""
        config, merchants = self.config, self.sites.merchants
        if config.participation == 1.0:
            return dict.fromkeys(merchants, config.rounds)
        counts = Counter(merchant for number in range(1, config.rounds + 1) for merchant in self.sampled(number))
        return {merchant: counts[merchant] for merchant in merchants}

    def aggregator(self) -> Aggregator:
        """Return the aggregator of weights: that of the mechanism, or the configured one."""
        return self.mechanism.aggregator(self.terms, self.students[self.global_student], self.noise)

    @property
    def terms(self) -> Terms:
        """Parameters that determine its noise and price."""
        return Terms(self.privacy, self.config, len(self.sites.merchants), len(self.teacher_labels))

    def services(self, aggregator: Aggregator, number: int) -> RoundServices:
        """Return the server's services for the method in round ``number``."""
        server = self.server.config.server
        return RoundServices(
            self.method,
            self.config.method,
            aggregator,
            self._tally(number),
            self.factory,
            self.server,
            self.students[self.global_student],
            self.teacher,
            server.at_constant(round_learning_rate(server, number, self.config.rounds)),
            (self.seed, self.arm, number),
            self.evaluator.public_score,
            round_learning_rate(self.training, number, self.config.rounds),
            self.mechanism,
            self.privacy.epsilon if isinstance(self.privacy, ProtectedConfig) else None,
        )

    def _tally(self, number: int) -> Callable[[Tensor], Tensor]:
        """Return the vote count of round ``number``, from the mechanism or without noise."""
        return self.mechanism.tally(self.terms, self.noise, number)

    def sampled(self, number: int) -> list[str]:
        """Return the sorted merchants of round ``number``; Poisson sampling if the mechanism requires it."""
        merchants, share = self.sites.merchants, self.config.participation
        if not self.mechanism.poisson:
            return sampled(merchants, share, self.seed, self.arm, number)
        coins = seeds.Keystream(*self.noise.name, "sample merchants", number).uniform(len(merchants)).tolist()
        return [merchant for merchant, coin in zip(merchants, coins, strict=True) if coin < share]

    def first_state(self) -> GlobalState:
        """Return the server's state before the first round."""
        return GlobalState(
            0,
            self.starts[self.global_student],
            self.teacher_labels,
            population=len(self.sites.merchants),
            rounds=self.config.rounds,
        )

    def chunk(self) -> int:
        """Number of merchants in a chunk of uplinks, by the size of the largest student or of a merchant's labels."""
        sizes = [sum(value.nbytes for value in model.state_dict().values()) for model in self.students.values()]
        rooms = [
            kind.room(self._context(self.starts[self.global_student])) for kind in self.method.sends if kind.of_labels
        ]
        return chunk_size(max(*sizes, *(sum(sum(record.values()) for record in room.values()) for room in rooms), 1))

    def answers(
        self,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Mapping[str, Weights]],
        away: frozenset[str] | None = None,
    ) -> Iterator[Chunk]:
        """Yield the answers of the requested merchants, as ``Sites.train`` with this federation's settings."""
        received = None
        if self.codec.cache is not None:
            received = ReceivedSoftLabels.below(self.part.state, self.arm, self.seed, down.round)
            request = received.with_known_rounds(request)
        context = self._context(self.starts[self.global_student])
        kinds, deadline = self.method.sends, self.config.deadline
        return self.sites.train(
            request, down, starts, self.chunk(), self.codec, kinds, context, received, deadline, away
        )

    def intake(
        self,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Mapping[str, Weights]],
        state: GlobalState,
        number: int,
        least: int = 1,
    ) -> UplinkValidator:
        """Return the uplinks of round ``number``, from all requested merchants that are online.

        :param least: minimum number of merchants, in addition to the minimum share
        :raises TooFewAnswers: too few merchants are online; nothing was sent
        """
        merchants, max_norm_ratio = request.merchants, self.config.max_norm_ratio
        share = min(max(self.config.minimum_share, least / max(len(merchants), 1)), 1.0)
        away = self.sites.away()
        check_there(merchants, away, share, number)
        chunks = self.answers(request, down, starts, away) if merchants else iter(())
        compared = self.mechanism.compares
        power = 2 if self.mechanism.aggregator_options(self.terms).get("weight") == "examples-squared" else 1
        counts = Counts(self.config.max_share, self.config.max_size_ratio, power, self.cut) if compared else None
        context = self._context(state.weights)
        return UplinkValidator(chunks, context, len(merchants), number, share, max_norm_ratio, compared, counts)

    def _context(self, weights: Weights) -> Context:
        """Return the sizes that payloads must fit, for a student with ``weights``."""
        proxy, classes = self.teacher_labels.shape
        return Context(weights, proxy, classes, self.server.data.task.fields)

    @property
    def global_student(self) -> str:
        """The global student's name."""
        return next(iter(self.students))


def sampled(merchants: Sequence[str], participation: float, seed: int, arm: str, number: int) -> list[str]:
    """Return the sorted merchants of one round: a random share of all, see ``sample_size``."""
    size = sample_size(len(merchants), participation)
    if size == len(merchants):
        return list(merchants)
    chosen = seeds.numpy_stream(seed, arm, number, "sample merchants").choice(len(merchants), size, replace=False)
    return [merchants[place] for place in sorted(chosen)]


def sample_size(merchants: int, participation: float) -> int:
    """Return the number of merchants of one round: the rounded share of all, at least one."""
    return max(1, round(participation * merchants))


def round_learning_rate(optimizer: OptimizerConfig, number: int, rounds: int) -> float:
    """Return the learning rate of round ``number`` (1-based); the configured schedule runs over the rounds."""
    return Pace.of(optimizer).after((number - 0.5) / rounds)
