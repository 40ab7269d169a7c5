"""What each arm of an experiment runs on at a site, built once: its method, its codec, its Byzantine merchants."""

from dataclasses import dataclass, field

from fed_distill.adversaries import ATTACKS
from fed_distill.adversaries.attacks import Attack
from fed_distill.adversaries.byzantine import byzantine_merchants
from fed_distill.config import Experiment
from fed_distill.errors import TrainingError
from fed_distill.methods import METHODS
from fed_distill.methods.base import Method
from fed_distill.transport.coding.codec import Codec


@dataclass
class Arms:
    """The arms of ``experiment``; everybody: names of all merchants there are, here or elsewhere."""

    experiment: Experiment
    everybody: tuple[str, ...]
    _methods: dict[str, Method] = field(default_factory=dict)
    _codecs: dict[str, Codec] = field(default_factory=dict)
    _byzantine: dict[int, frozenset[str]] = field(default_factory=dict)

    def method(self, arm: str) -> Method:
        """The method of an arm. TrainingError for an arm that there is not."""
        if arm not in self._methods:
            arms = self.experiment.arms()
            if arm not in arms:
                raise TrainingError(f"a request for {arm!r}, which is no part of the run's experiment")
            self._methods[arm] = METHODS.build(arms[arm].method, arms[arm].options)
        return self._methods[arm]

    def codec(self, arm: str) -> Codec:
        """How messages of an arm are coded. TrainingError for an arm that there is not."""
        if arm not in self._codecs:
            self.method(arm)
            self._codecs[arm] = Codec.of(self.experiment.transport_of(arm))
        return self._codecs[arm]

    def attack(self, arm: str, seed: int, merchant: str) -> Attack | None:
        """What a Byzantine merchant of a simulation does; None for the honest."""
        if not self.experiment.is_byzantine(arm):
            return None
        if seed not in self._byzantine:
            self._byzantine = {seed: byzantine_merchants(self.experiment, self.everybody, seed)}
        config = self.experiment.byzantine
        built: Attack | None = (
            ATTACKS.build(config.attack, config.options) if merchant in self._byzantine[seed] else None
        )
        return built
