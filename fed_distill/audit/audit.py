"""Audit a released student with every attack that the available information allows.

An audit can find leaks but cannot exclude them: a weak attack proves little. Each AUC is reported beside the same score
for the student before training, which shows the effect of the choice of non-members, and the canaries' lower bound on
epsilon, which is valid for any attack.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fed_distill.audit.canaries import CanaryAudit
from fed_distill.audit.label_shares import ShareInference
from fed_distill.audit.membership import certainty, lira, log_likelihood, scaled_confidence
from fed_distill.audit.roc import FloatArray, Separation, separation
from fed_distill.audit.shadows import Recipe, train_shadows
from fed_distill.audit.victim import Victim
from fed_distill.audit.white_box import WhiteBoxAudit

EXAMPLE_VARIANCE_FROM = 64
"""Minimum number of shadow students for per-example variances in LiRA (Carlini et al. 2022, section VI-B)."""

THREAT_MODELS: Mapping[str, str] = {
    "loss": (
        "Anyone who can query the released student and knows an example with its label. "
        "A low loss is taken for membership, by one threshold for all examples."
    ),
    "loss_drop": (
        "A merchant or the server: as for loss, and it also has the student from before training. "
        "What counts is how much training has raised the confidence in the label."
    ),
    "certainty": (
        "Anyone who sees the soft labels that the released student gives to an example, without knowing its label. "
        "A prediction of low entropy is taken for membership."
    ),
    "lira_offline": (
        "As for loss_drop, and the attacker has other examples of the same kind and the training procedure: "
        "it trains shadow students without the example and asks how unusual the released student's confidence is."
    ),
    "lira_online": (
        "As for lira_offline, and it also trains shadow students with the example: the likelihood ratio of its being "
        "in and out. The most powerful attacker here: it has all candidates, without their membership."
    ),
    "proxy_soft_labels": (
        "Whoever sees nothing but soft labels on the proxy set, as a merchant sends them or as the released student "
        "gives them. The attacker distils a student of its own from them and scores that one as in loss_drop."
    ),
    "canaries": (
        "The strictest test, not a likely attacker: it writes unusual examples, has each put into one merchant's data "
        "by a coin flip, and guesses the flips from the released student. What it shows bounds epsilon from below."
    ),
    "white_box": (
        "Stricter still: it sees every release of the mechanism, and its canaries are of the worst kind, each in "
        "coordinates that nothing else moves. What it audits is the code that samples, clips and adds noise, not the "
        "run's data."
    ),
    "label_shares": (
        "The server, or whoever reads one merchant's uplink: it estimates how many of the merchant's examples are of "
        "which class. Example-level privacy does not promise to hide that."
    ),
}
"""Attacker's knowledge and method, by the attack's name."""


@dataclass(frozen=True)
class AttackResult:
    """The result of a membership attack; names are those in ``THREAT_MODELS``.

    control_auc: AUC of the same score for the student before training, which has no members: a value above 0.5 is due
    to the choice of non-members. None if the score is a difference to that student.
    """

    name: str
    separation: Separation
    control_auc: float | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form."""
        return {**self.separation.to_json(), "control_auc": self.control_auc}


@dataclass(frozen=True)
class Audit:
    """Results of all attacks on one released student. by_group: see ``Victim``. shadows: number of shadow students."""

    attacks: tuple[AttackResult, ...]
    by_group: bool
    shadows: int
    confidence: float
    canaries: CanaryAudit | None = None
    label_shares: ShareInference | None = None
    white_box: WhiteBoxAudit | None = None

    def __post_init__(self) -> None:
        if self.canaries is not None and self.canaries.bound.confidence != self.confidence:
            raise ValueError(
                f"confidence {self.confidence} of the audit differs from that of its canaries, "
                f"{self.canaries.bound.confidence}: use one confidence"
            )

    @property
    def strongest(self) -> AttackResult:
        """The membership attack with the largest AUC. As the best of several it may exceed 0.5 by chance: see its
        interval."""
        return max(self.attacks, key=lambda attack: attack.separation.auc)

    @property
    def epsilon_lower_bound(self) -> float | None:
        """The canaries' bound at ``confidence``; None without canaries."""
        return None if self.canaries is None else self.canaries.bound.epsilon

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form. Rates are maxima over attacks; ``nonmembers`` limits their resolution."""
        used = [attack.name for attack in self.attacks]
        used += [name for name in ("canaries", "label_shares", "white_box") if getattr(self, name) is not None]
        return {
            "auc": self.strongest.separation.auc,
            "strongest": self.strongest.name,
            "tpr_at_1pct": self._largest_rate(0.01),
            "tpr_at_01pct": self._largest_rate(0.001),
            "epsilon_lower_bound": self.epsilon_lower_bound,
            "delta": None if self.canaries is None else self.canaries.bound.delta,
            "confidence": self.confidence,
            "nonmembers": "held-out groups" if self.by_group else "held-back examples",
            "shadows": self.shadows,
            "attacks": {attack.name: attack.to_json() for attack in self.attacks},
            "canaries": None if self.canaries is None else self.canaries.to_json(),
            "label_shares": None if self.label_shares is None else self.label_shares.to_json(),
            "white_box": None if self.white_box is None else self.white_box.to_json(),
            "threat_models": {name: THREAT_MODELS[name] for name in used},
        }

    def _largest_rate(self, false_positive_rate: float) -> float:
        return max(attack.separation.true_positive_rates[false_positive_rate].value for attack in self.attacks)


def audit(
    victim: Victim,
    *,
    seed: int,
    recipe: Recipe | None = None,
    shadows: int = 16,
    canaries: CanaryAudit | None = None,
    label_shares: ShareInference | None = None,
    white_box: WhiteBoxAudit | None = None,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Run every attack on ``victim`` that the given information allows.

    :param victim: the attacked student
    :param seed: seed of the attacks
    :param recipe: its training, DP included; without it, attacks with shadow or distilled students are skipped
    :param shadows: even number of shadow students for LiRA, 0 for none
    :param canaries: result of ``canary_audit``, to be included
    :param label_shares: result of ``infer_shares``, to be included
    :param white_box: result of a white-box audit, to be included
    :param confidence: confidence of all intervals
    :param progress: called with (steps done, total steps) of the shadow students
    :raises DataError: there are fewer than two members or non-members, or one has no label
    """
    attacks = query_attacks(victim, confidence)
    if recipe is not None:
        attacks.append(proxy_attack(victim, recipe, seed, confidence))
        if shadows:
            attacks += lira_attacks(victim, recipe, shadows, seed, confidence, progress)
    used = shadows if recipe is not None else 0
    return Audit(tuple(attacks), victim.by_group, used, confidence, canaries, label_shares, white_box)


def query_attacks(victim: Victim, confidence: float) -> list[AttackResult]:
    """Run attacks that query the released student and the student before training."""
    candidates = victim.candidates
    labels = candidates.labels
    after, before = victim.released(candidates), victim.start(candidates)
    drop = scaled_confidence(after, labels) - scaled_confidence(before, labels)
    return [
        _attack(victim, "loss", log_likelihood(after, labels), log_likelihood(before, labels), confidence),
        _attack(victim, "loss_drop", drop, None, confidence),
        _attack(victim, "certainty", certainty(after), certainty(before), confidence),
    ]


def proxy_attack(victim: Victim, recipe: Recipe, seed: int, confidence: float) -> AttackResult:
    """Run the attack on the victim's soft labels on the proxy set."""
    candidates = victim.candidates
    distilled = recipe.distil(victim.released(recipe.proxy), seed)
    after, before = distilled(candidates), victim.start(candidates)
    drop = scaled_confidence(after, candidates.labels) - scaled_confidence(before, candidates.labels)
    return _attack(victim, "proxy_soft_labels", drop, None, confidence)


def lira_attacks(
    victim: Victim,
    recipe: Recipe,
    shadows: int,
    seed: int,
    confidence: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[AttackResult]:
    """Run the likelihood-ratio attack without and with shadow students trained on the example."""
    candidates = victim.candidates
    after = scaled_confidence(victim.released(candidates), candidates.labels)
    before = scaled_confidence(victim.start(candidates), candidates.labels)
    trained = train_shadows(recipe, candidates, shadows, seed, victim.by_group, progress)
    found = []
    for name, online in (("lira_offline", False), ("lira_online", True)):
        scores, control = (
            lira(values, trained, online=online, variance="example" if shadows >= EXAMPLE_VARIANCE_FROM else "pooled")
            for values in (after, before)
        )
        found.append(_attack(victim, name, scores, control, confidence))
    return found


def _attack(
    victim: Victim, name: str, scores: FloatArray, control: FloatArray | None, confidence: float
) -> AttackResult:
    """Evaluate the scores of the candidates, members first."""
    count = len(victim.members)
    measured = separation(scores[:count], scores[count:], confidence)
    yardstick = None if control is None else separation(control[:count], control[count:], confidence).auc
    return AttackResult(name, measured, yardstick)
