"""Mechanisms with noise added by each merchant: DP-SGD, by example or by groups of examples.

Once per federation, a merchant releases its noised number of members (setting ``size_noise``); sampling rates, steps
and noise follow from this number, not from the exact one. Methods that send how close texts are to a merchant's own
compute it from a noised sum of text features (setting ``expertise_noise``), which is released once per federation too.
Each round's private steps are then charged. Their noise multiplier is the same in all rounds, calibrated for the steps
of all rounds together, which the method declares.
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
from fed_distill.training.private_training import PrivateTraining
from fed_distill.training.robust import passes
from fed_distill.transport.messages import Kinds

TRUSTED = "the merchant itself, which adds noise before anything leaves it, and the supplier of the code that it runs"
"""Trusted parties if merchants add the noise."""
SIZE, EXPERTISE = "size", "expertise"
ONCE = SIZE, EXPERTISE
"""What a merchant is charged for once per federation, beside training."""
_FROM_NOISED_SUM = (
    "computed by a student trained with DP-SGD; which examples, and how close they are, from a sum of text features "
    "with noise, drawn once per federation and counted in epsilon"
)


@dataclass(frozen=True)
class AtMerchants(Protecting):
    """DP-SGD with examples as members, or groups of examples if ``grouped``."""

    settings: DPSGDConfig = field(default_factory=DPSGDConfig)
    freezes: ClassVar[bool] = True
    grouped: ClassVar[bool] = False
    """Whether a member of the privacy unit is a group of examples."""

    def covers(self, kind: type[Payload]) -> str | None:
        """Cover all payloads that are computed from trained weights, and for built-in units those ``from_texts``.

        The sum of text features (``privacy.text_sum``) moves by at most 1 with a member, and by at most 2 with an
        example of a group, which is ``moved_by`` of the built-in units. That of a custom unit may be smaller.
        """
        if kind.from_texts:
            return _FROM_NOISED_SUM if self.stated_move is None else None
        return kind.covered

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Raise ConfigError for a payload that is not covered, or for settings that conflict with private steps."""
        self._refuse(federation.method, [kind for kind in sends if self.covers(kind) is None])
        config, training = self.settings, experiment.training
        scaled = [key for key in ("rate_scales", "row_rate_power") if getattr(config, key)]
        if scaled and experiment.training_of(federation.title).optimizer != "sgd":
            raise ConfigError(
                f"privacy.{scaled[0]} requires privacy.training.optimizer = 'sgd': adamw would cancel its effect"
            )
        counted = [key for key in ("rows", "row_rate_power") if getattr(config, key)]
        if counted and not training.submodel:
            raise ConfigError(f"privacy.{counted[0]} requires training.submodel, which counts the used rows: set it")
        self._check_weighting(federation)
        if passes(training) > 1:
            raise ConfigError(
                f"privacy.unit = {self.name!r} clips the gradient of one pass over an example: set "
                "training.adversarial.attack = 'none' and training.r_drop = 0"
            )

        if training.unlabeled.epochs:
            raise ConfigError(
                f"privacy.unit = {self.name!r} covers labelled examples only: set training.unlabeled.epochs = 0"
            )

    def _check_weighting(self, federation: FederationConfig) -> None:
        weighting = self.settings.weighting
        if weighting != "examples" and federation.aggregator_options.get("weight", weighting) != weighting:
            raise ConfigError(f"privacy.weighting = {weighting!r} and another weight in aggregator_options: remove one")
        if weighting != "examples" and federation.aggregator != "fedavg":
            raise ConfigError(
                f"privacy.weighting = {weighting!r} is for aggregator fedavg, not {federation.aggregator}"
            )

    def check_covered(self, method: str, sends: Kinds) -> None:
        """Raise ConfigError if ``method`` sends a payload that is not computed from trained weights."""
        self._refuse(method, [kind for kind in sends if self.covers(kind) is None])

    def check_student(self, student: TextModel) -> None:
        """Raise ConfigError for a student without per-example gradients."""
        check_per_example(student)

    def kind(self) -> str:
        """Return the key that examples are grouped by, or "" if they are not."""
        return ""

    def expected_batch(self, experiment: Experiment) -> int:
        """Expected members of a private step."""
        return self.settings.batch_size or experiment.training.merchants.batch_size

    def aggregator_options(self, terms: Terms) -> dict[str, Any]:
        """Return the options of the configured aggregator and the weighting of merchants."""
        options = super().aggregator_options(terms)
        if self.settings.weighting != "examples":
            options["weight"] = self.settings.weighting
        return options

    def delta(self, config: ProtectedConfig, members: int) -> float:
        """Return the delta of the guarantee for each of ``members``."""
        return default_delta(members) if config.delta is None else config.delta

    def size_spend(self) -> Spend:
        """Return the cost of releasing the number of members, once per federation."""
        return Spend(self.settings.size_noise, 1.0, 1)

    def expertise_spend(self) -> Spend:
        """Return the cost of releasing the sum of text features, once per federation."""
        return Spend(self.settings.expertise_noise, 1.0, 1)

    def spends_once(self, sends: Kinds) -> dict[str, Spend]:
        """Return the cost of each release that is made ``ONCE`` by merchants that send payloads of these kinds."""
        found = {SIZE: self.size_spend()}
        return {**found, EXPERTISE: self.expertise_spend()} if any(kind.from_texts for kind in sends) else found

    def check_training(self, training: PrivateTraining) -> None:
        """Raise ConfigError for a round without a step on private examples."""
        idle = training.idle_round()
        if idle is not None:
            raise ConfigError(
                f"privacy.unit = {self.name!r} protects steps on private examples, of which the method plans none in "
                f"round {idle}: choose another method"
            )

    def price(
        self, experiment: Experiment, training: PrivateTraining, members: int, taken: int, sends: Kinds
    ) -> tuple[Spend, float]:
        """Return cost and delta of a merchant's training in all rounds in which it takes part.

        Its noise multiplier is that of each round; without a fixed one it is calibrated for these steps together.

        :param training: private training in all rounds of the federation
        :param members: number of members of the privacy unit
        :param taken: number of rounds in which the merchant takes part
        :param sends: kinds of payloads in the uplinks
        :raises ConfigError: a round has no private step
        """
        self.check_training(training)
        config, batch_size = experiment.promise, self.expected_batch(experiment)
        rate, delta = sampling_rate(members, batch_size), self.delta(config, members)
        steps = training.most_steps(taken, members, batch_size)
        if config.noise_multiplier is not None:
            return Spend(config.noise_multiplier, rate, steps), delta
        assert config.epsilon is not None
        once = self.spends_once(sends).values()
        return Spend(noise_for(config.epsilon, delta, rate, steps, once, config.accountant), rate, steps), delta

    def learner_privacy(self, spend: Spend, members: int) -> ExampleDP:
        """Return the private steps of a merchant with ``members`` members, for the price ``spend``."""
        return ExampleDP.configured(self.settings, spend.noise_multiplier, examples=members)

    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """List what leaves a merchant."""
        parts = [Revealed(kind.disclosure, self.covers(kind) or "not covered at all") for kind in sends]
        if any(kind.tells_rows for kind in sends):
            parts.append(
                Revealed("which embedding rows it sends, and how often they are used", "those of the public proxy set")
            )
        if any(kind.from_texts for kind in sends):
            parts.append(
                Revealed(
                    "the sum of its labelled examples' text features",
                    f"used with noise of standard deviation {self.settings.expertise_noise:g} per feature, drawn once "
                    "per federation, counted in epsilon; what it sends is computed from the noised sum",
                )
            )
        return [
            *parts,
            Revealed(
                "number of groups" if self.grouped else "number of training examples",
                f"sent with noise of standard deviation {self.settings.size_noise:g} once per federation, counted in "
                "epsilon",
            ),
            Revealed("training losses", "not sent"),
            Revealed("its participation in a round", "not hidden"),
            Revealed("its refusals and exhausted budget", "sent as a message without figures of its data"),
            Revealed("the duration of training", "not hidden: it grows with the number of examples"),
            *scores(config, personal),
            validation(reproducible_noise),
            noise("each site", reproducible_noise),
        ]
