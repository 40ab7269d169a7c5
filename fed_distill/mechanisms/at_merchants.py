"""Units whose noise a merchant adds itself, before anything leaves it: DP-SGD, by example or by groups of examples.

A merchant first releases how many members it has, with noise (the setting ``size_noise``), once a federation; sampling
rates, steps and noise follow from that number and not from the exact one. Then each round's private steps are paid.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fed_distill.config import DPSGDConfig, Experiment, FederationConfig, PrivacyConfig, ProtectedConfig
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.base import Protecting, Terms
from fed_distill.mechanisms.revealed import Revealed, noise, scores, validation
from fed_distill.models import TextModel
from fed_distill.models.adapters import check_per_example
from fed_distill.payloads.base import Payload
from fed_distill.privacy.accounting import Spend, default_delta, noise_for
from fed_distill.privacy.dp_sgd import ExampleDP, sampling_rate
from fed_distill.training.plan import Plan
from fed_distill.training.preparation import private_steps
from fed_distill.training.robust import passes
from fed_distill.transport.messages import Kinds

TRUSTED = "the merchant itself, which adds noise before anything leaves it, and whoever supplies the code that it runs"
"""Who must be trusted where merchants add the noise."""


@dataclass(frozen=True)
class AtMerchants(Protecting):
    """DP-SGD whose members are examples, or with ``grouped`` groups of them."""

    settings: DPSGDConfig = field(default_factory=DPSGDConfig)
    freezes: ClassVar[bool] = True
    grouped: ClassVar[bool] = False
    """Whether a member of the unit is a group of examples."""

    def covers(self, kind: type[Payload]) -> str | None:
        """All that is computed by or from what was trained."""
        return kind.covered

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """ConfigError for a payload that no noise covers, or settings that private steps would undo."""
        self._refuse(federation.method, [kind for kind in sends if self.covers(kind) is None])
        config, training = self.settings, experiment.training
        scaled = [key for key in ("rate_scales", "row_rate_power") if getattr(config, key)]
        if scaled and experiment.training_of(federation.title).optimizer != "sgd":
            raise ConfigError(
                f"privacy.{scaled[0]} needs optimizer sgd, adamw would undo it: set privacy.training.optimizer to it"
            )
        counted = [key for key in ("rows", "row_rate_power") if getattr(config, key)]
        if counted and not training.submodel:
            raise ConfigError(f"privacy.{counted[0]} needs training.submodel, which counts the rows that are used")
        self._check_weighting(federation)
        if passes(training) > 1:
            raise ConfigError(
                f"privacy.unit = {self.name!r} clips the gradient of one pass over an example: set "
                "training.adversarial.attack = 'none' and training.r_drop = 0"
            )

    def _check_weighting(self, federation: FederationConfig) -> None:
        weighting = self.settings.weighting
        if weighting != "examples" and federation.aggregator_options.get("weight", weighting) != weighting:
            raise ConfigError(f"privacy.weighting = {weighting!r} and another weight in aggregator_options: drop one")
        if weighting != "examples" and federation.aggregator != "fedavg":
            raise ConfigError(
                f"privacy.weighting = {weighting!r} is for aggregator fedavg, not {federation.aggregator}"
            )

    def check_covered(self, method: str, sends: Kinds) -> None:
        """ConfigError if ``method`` sends something that is computed neither by nor from what was trained."""
        self._refuse(method, [kind for kind in sends if self.covers(kind) is None])

    def check_student(self, student: TextModel) -> None:
        """ConfigError for a student whose gradients have no parts by example."""
        check_per_example(student)

    def kind(self) -> str:
        """By what examples are grouped; empty where they are not."""
        return ""

    def expected_batch(self, experiment: Experiment) -> int:
        """Expected members of a private step."""
        return self.settings.batch_size or experiment.training.merchants.batch_size

    def aggregator_options(self, terms: Terms) -> dict[str, Any]:
        """Those of the configured aggregator, and how merchants are weighted."""
        options = super().aggregator_options(terms)
        if self.settings.weighting != "examples":
            options["weight"] = self.settings.weighting
        return options

    def delta(self, config: ProtectedConfig, members: int) -> float:
        """Delta of the promise to each of so many members."""
        return default_delta(members) if config.delta is None else config.delta

    def size_spend(self) -> Spend:
        """What it costs to release how many members there are, once a federation."""
        return Spend(self.settings.size_noise, 1.0, 1)

    def price(self, experiment: Experiment, plan: Plan, members: int, rounds: int) -> tuple[Spend, float]:
        """What one of ``rounds`` rounds costs a merchant of so many members of the unit, and at which delta."""
        config, batch_size = experiment.promise, self.expected_batch(experiment)
        rate, delta = sampling_rate(members, batch_size), self.delta(config, members)
        steps = private_steps(plan, members, batch_size)
        if config.noise_multiplier is not None:
            return Spend(config.noise_multiplier, rate, steps), delta
        assert config.epsilon is not None
        told = (self.size_spend(),)
        found = noise_for(config.epsilon, delta, rate, steps * rounds, told, config.accountant)
        return Spend(found, rate, steps), delta

    def learner_privacy(self, spend: Spend, members: int) -> ExampleDP:
        """How a merchant of so many members trains for that price."""
        return ExampleDP.configured(self.settings, spend.noise_multiplier, examples=members)

    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """All that leaves a merchant that adds the noise itself."""
        parts = [Revealed(kind.disclosure, self.covers(kind) or "not covered at all") for kind in sends]
        if any(kind.tells_rows for kind in sends):
            parts.append(
                Revealed("which embedding rows it sends, and how often they are used", "those of the public proxy set")
            )
        return [
            *parts,
            Revealed(
                "number of groups" if self.grouped else "number of training examples",
                f"sent with noise of standard deviation {self.settings.size_noise:g}, once a federation, counted in "
                "epsilon",
            ),
            Revealed("training losses", "not sent"),
            Revealed("that it takes part in a round", "not hidden"),
            Revealed(
                "that it cannot train, or that its budget is spent", "sent as a message without figures of its data"
            ),
            Revealed("how long training takes", "not hidden: it grows with the number of examples"),
            *scores(config, personal),
            validation(reproducible_noise),
            noise("each site", reproducible_noise),
        ]
