"""Method, codec and Byzantine merchants of each arm of an experiment at a site, built once."""

from dataclasses import dataclass, field

from fed_distill.adversaries import ATTACKS
from fed_distill.adversaries.attacks import Attack
from fed_distill.adversaries.byzantine import byzantine_merchants
from fed_distill.config import Experiment
from fed_distill.errors import TrainingError
from fed_distill.methods import METHODS
from fed_distill.methods.base import Method, private_training
from fed_distill.training.private_training import PrivateTraining
from fed_distill.transport.coding.codec import Codec


@dataclass
class Arms:
    """The arms of ``experiment``; ``everybody``: names of all merchants of the run, at any site."""

    experiment: Experiment
    everybody: tuple[str, ...]
    _methods: dict[str, Method] = field(default_factory=dict)
    _codecs: dict[str, Codec] = field(default_factory=dict)
    _training: dict[str, PrivateTraining] = field(default_factory=dict)
    _byzantine: dict[int, frozenset[str]] = field(default_factory=dict)

    def method(self, arm: str) -> Method:
        """Return the method of an arm; raise TrainingError for an unknown arm."""
        if arm not in self._methods:
            arms = self.experiment.arms()
            if arm not in arms:
                raise TrainingError(f"the request is for {arm!r}, which is not an arm of the run's experiment")
            self._methods[arm] = METHODS.build(arms[arm].method, arms[arm].options)
        return self._methods[arm]

    def private_training(self, arm: str) -> PrivateTraining:
        """Return a merchant's private training in all rounds of an arm; raise TrainingError for an unknown arm."""
        if arm not in self._training:
            self._training[arm] = private_training(self.method(arm), self.experiment.arms()[arm].rounds)
        return self._training[arm]

    def codec(self, arm: str) -> Codec:
        """Return the codec of an arm; raise TrainingError for an unknown arm."""
        if arm not in self._codecs:
            self.method(arm)
            self._codecs[arm] = Codec.of(self.experiment.transport_of(arm))
        return self._codecs[arm]

    def attack(self, arm: str, seed: int, merchant: str) -> Attack | None:
        """Return the attack of a Byzantine merchant in a simulation; None for an honest one."""
        if not self.experiment.is_byzantine(arm):
            return None
        if seed not in self._byzantine:
            self._byzantine = {seed: byzantine_merchants(self.experiment, self.everybody, seed)}
        config = self.experiment.byzantine
        built: Attack | None = (
            ATTACKS.build(config.attack, config.options) if merchant in self._byzantine[seed] else None
        )
        return built
