"""What one federation is: who takes part, with which students, on what terms, and what is asked of the sites."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fed_distill import seeds
from fed_distill.aggregation.base import Aggregator
from fed_distill.config import FederationConfig, OptimizerConfig, PrivacyConfig, TrainerConfig
from fed_distill.coordinator.attempts import check_there
from fed_distill.coordinator.counts import Counts
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.received import FOLDER, ReceivedSoftLabels
from fed_distill.coordinator.released import Released
from fed_distill.coordinator.services import DistilAnew, RoundServices, Teacher
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
    """One federation on one seed: what it needs, and who runs it.

    mechanism: what the arm is protected by. students: one model by name, the global one first; starts: the server's
    weights for each. distil_anew: as in ``Services``. part: what is kept of it between rounds. codec: how
    its messages are coded. byzantine: merchants of a simulation that deviate from the protocol, whose own scores are of
    no interest. identity: names this very federation, in a private arm (``TrainRequest.federation``). secret:
    what the server's noise is drawn from; empty in a simulation, where that is the run's seed. released: what was
    released before, where there is a secret and the server adds the noise. kept_as: by what name its merchants' state
    is kept. cut: merchants that have counted for less than they claim, each of whom is named once.
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
    distil_anew: DistilAnew
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
        """A request to ``merchants``, each with the student assigned to it."""
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
        """What the server's noise and sampling coins are drawn from."""
        return NoiseSource((self.secret or self.seed, self.arm, self.identity), reproducible=not self.secret)

    @cached_property
    def method(self) -> Method:
        """Its method."""
        built: Method = METHODS.build(self.config.method, self.config.options)
        return built

    @property
    def stores(self) -> Stores:
        """What is kept of its merchants beside the checkpoint: what came from them, and in a simulation their own."""
        arms = {STUDENTS: self.kept_as, CODING: self.kept_as, FOLDER: self.arm}
        return Stores(self.part.state, self.seed, arms)

    def check_kept(self, number: int, kept: Mapping[str, Mapping[str, int]]) -> None:
        """Before round ``number``: CheckpointError unless all that was ``kept`` is in ``stores`` as it was written, and
        LedgerError for a ledger of a simulation that is not. A site that found it out would leave the merchant out."""
        remedy = f"put back a copy of it, or delete {self.part.rounds} to train that federation again"
        self.stores.check(number, kept, remedy)
        ledgers = self.part.state / "ledgers" / f"seed-{self.seed}" / as_file_name(self.arm)
        if ledgers.exists():
            for merchant in self.sites.merchants:
                Ledgers(ledgers).of(merchant).check()

    @property
    def title(self) -> str:
        """Seed and arm, by which ``released`` knows it."""
        return f"seed {self.seed}, {self.arm}"

    @cached_property
    def planned(self) -> Mapping[str, int]:
        """In how many rounds each merchant is asked."""
        config, merchants = self.config, self.sites.merchants
        if config.participation == 1.0:
            return dict.fromkeys(merchants, config.rounds)
        counts = Counter(merchant for number in range(1, config.rounds + 1) for merchant in self.sampled(number))
        return {merchant: counts[merchant] for merchant in merchants}

    def aggregator(self) -> Aggregator:
        """What merges weights: the configured aggregator, or that of the mechanism in its place."""
        return self.mechanism.aggregator(self.terms, self.students[self.global_student], self.noise)

    @property
    def terms(self) -> Terms:
        """What its noise and price follow from."""
        return Terms(self.privacy, self.config, len(self.sites.merchants), len(self.teacher_labels))

    def services(self, aggregator: Aggregator, number: int) -> RoundServices:
        """What the server does for the method in round ``number``."""
        server = self.server.config.server
        return RoundServices(
            self.method,
            self.config.method,
            aggregator,
            self._tally(number),
            self.distil_anew,
            self.server,
            self.students[self.global_student],
            self.teacher,
            server.at_constant(round_learning_rate(server, number, self.config.rounds)),
            (self.seed, self.arm, number),
        )

    def _tally(self, number: int) -> Callable[[Tensor], Tensor]:
        """What counts the votes of round ``number``."""
        return self.mechanism.tally(self.terms, self.noise, number)

    def sampled(self, number: int) -> list[str]:
        """The merchants of round ``number``, sorted; by a coin for each where the promise counts on that (Poisson
        sampling)."""
        merchants, share = self.sites.merchants, self.config.participation
        if not self.mechanism.poisson:
            return sampled(merchants, share, self.seed, self.arm, number)
        coins = seeds.Keystream(*self.noise.name, "sample merchants", number).uniform(len(merchants)).tolist()
        return [merchant for merchant, coin in zip(merchants, coins, strict=True) if coin < share]

    def first_state(self) -> GlobalState:
        """What the server knows before the first round."""
        return GlobalState(
            0,
            self.starts[self.global_student],
            self.teacher_labels,
            population=len(self.sites.merchants),
            rounds=self.config.rounds,
        )

    def chunk(self) -> int:
        """Merchants whose uplinks are taken in at once, by the size of the largest student."""
        return chunk_size(
            max(sum(value.nbytes for value in model.state_dict().values()) for model in self.students.values())
        )

    def asked(
        self,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Mapping[str, Weights]],
        away: frozenset[str] | None = None,
    ) -> Iterator[Chunk]:
        """The answers of the request's merchants, as ``Sites.train`` gives them, on this federation's terms."""
        proxy, classes = self.teacher_labels.shape
        received = None
        if self.codec.cache is not None:
            received = ReceivedSoftLabels.below(self.part.state, self.arm, self.seed, down.round)
            request = received.told(request)
        context = Context(self.starts[self.global_student], proxy, classes)
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
    ) -> UplinkValidator:
        """The uplinks of round ``number``, from all of the request's merchants that are there; TooFewAnswers if these
        are too few, before any of them is asked."""
        merchants, share, max_norm_ratio = request.merchants, self.config.minimum_share, self.config.max_norm_ratio
        away = self.sites.away()
        check_there(merchants, away, share, number)
        chunks = self.asked(request, down, starts, away) if merchants else iter(())
        compared = self.mechanism.compares
        power = 2 if self.mechanism.aggregator_options(self.terms).get("weight") == "examples-squared" else 1
        counts = Counts(self.config.max_share, self.config.max_size_ratio, power, self.cut) if compared else None
        context = Context(state.weights, *self.teacher_labels.shape)
        return UplinkValidator(chunks, context, len(merchants), number, share, max_norm_ratio, compared, counts)

    @property
    def global_student(self) -> str:
        """Name of the global student."""
        return next(iter(self.students))


def sampled(merchants: Sequence[str], participation: float, seed: int, arm: str, number: int) -> list[str]:
    """The merchants of one round, sorted: a share of all, at least one, drawn anew each round."""
    size = max(1, round(participation * len(merchants)))
    if size == len(merchants):
        return list(merchants)
    chosen = seeds.numpy_stream(seed, arm, number, "sample merchants").choice(len(merchants), size, replace=False)
    return [merchants[place] for place in sorted(chosen)]


def round_learning_rate(optimizer: OptimizerConfig, number: int, rounds: int) -> float:
    """The learning rate of round ``number`` (1-based): the configured schedule runs over the rounds."""
    return Pace.of(optimizer).after((number - 0.5) / rounds)
