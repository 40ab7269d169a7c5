"""A promise names its unit, who is trusted, and everything that leaves a merchant."""

from dataclasses import asdict

import pytest

from fed_distill.config import Experiment, FederationConfig
from fed_distill.config.privacy import NoPrivacy, table_of_unit
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.account import Spent
from fed_distill.mechanisms.account import account as account_of
from fed_distill.mechanisms.lookup import mechanism
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.local_steps import LocalSteps
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.votes import Votes
from fed_distill.privacy.accounting import REPORTED_DELTAS

KINDS = (
    StudentUpdate,
    SoftLabels,
    SelectedSoftLabels,
    DensitySelectedSoftLabels,
    ExpertSoftLabels,
    Votes,
    ClassMeans,
    ControlVariate,
    LowRankUpdate,
    LocalSteps,
    Prototypes,
)

SPENT = Spent(3, 1.5, 1e-7, 0.8, 1.1, epsilon_5=1.2, epsilon_6=1.4)
units = pytest.mark.parametrize("unit", ["example", "group", "merchant", "vote"])


def config(unit="example", **changes):
    return table_of_unit(unit)(unit=unit, epsilon=2.0, **changes)


def sent(unit):
    """What a method may send that the unit can protect."""
    return (Votes,) if unit == "vote" else (StudentUpdate,)


def account(privacy, *args, **changes):
    return account_of(mechanism(privacy.unit, privacy), privacy, *args, **changes)


def revealed(privacy, *args, **changes):
    return mechanism(privacy.unit, privacy).disclose(privacy, *args, **changes)


def how(listed, part):
    return next(one.how for one in listed if part in one.what)


def test_of_several_groups_the_worst_counts():
    one = Spent(2, 1.0, 1e-5, 0.9, 1.1, epsilon_5=1.0, epsilon_6=1.3)
    other = Spent(1, 1.5, 1e-6, 0.8, 0.8, untold=2, epsilon_5=1.2, epsilon_6=1.25)
    assert Spent.joined([one, Spent(), other]) == Spent(3, 1.5, 1e-5, 0.8, 1.1, 2, epsilon_5=1.2, epsilon_6=1.3)
    assert Spent.joined([Spent(untold=1)]) == Spent(untold=1)


def test_what_is_spent_can_be_sent_as_numbers():
    assert Spent(**asdict(SPENT)) == SPENT
    assert all(isinstance(value, int | float) for value in asdict(SPENT).values())


@units
def test_every_unit_says_what_it_protects_and_who_is_trusted(unit):
    told, words = account(config(unit), SPENT, sent(unit)), mechanism(unit).words
    assert (told["protects"], told["trusted"]) == (words.hides, words.trusted)
    assert (told["epsilon"], told["delta"], told["merchants"]) == (1.5, 1e-7, 3)
    assert told["noise_multiplier"] == {"least": 0.8, "most": 1.1}
    assert told["epsilon_at"] == {f"{REPORTED_DELTAS[0]:.0e}": 1.2, f"{REPORTED_DELTAS[1]:.0e}": 1.4}


def test_an_epsilon_without_a_bound_is_none():
    told = account(config(), Spent(1, float("inf"), 1e-5, 0.0, 0.0, 0, 2.0, float("inf")), (StudentUpdate,))
    assert told["epsilon"] is None and told["epsilon_at"] == {"1e-05": 2.0, "1e-06": None}


def test_it_says_what_a_group_is():
    told = account(config("group", group="pair"), SPENT, (StudentUpdate,))
    assert told["largest_group"] is None and "second text" in told["group"]
    assert account(config(), SPENT, (StudentUpdate,))["group"] is None


def test_all_that_leaves_is_listed():
    listed = revealed(config(), (StudentUpdate, SoftLabels))
    assert len({one.what for one in listed}) == len(listed) == 11
    assert "noised" in how(listed, "update of its student's weights")
    assert how(listed, "training losses") == "not sent"
    assert how(listed, "participation in a round") == "not hidden"
    assert "deviation 20" in how(listed, "number of training examples")
    assert "public proxy" in how(listed, "which embedding rows it sends, and how often they are used")
    assert "which embedding rows" not in " ".join(one.what for one in revealed(config(), (SoftLabels,)))
    assert "which embedding rows" in " ".join(one.what for one in revealed(config(), (LowRankUpdate,)))


def test_a_merchant_whose_groups_are_hidden_sends_how_many_there_are():
    listed = revealed(config("group"), (StudentUpdate,))
    assert "deviation 20" in how(listed, "number of groups")
    assert "number of training examples" not in " ".join(one.what for one in listed)


@units
def test_validation_of_every_round_is_listed_with_the_rows_that_it_uses(unit):
    simulated, real = (
        how(revealed(config(unit), sent(unit), reproducible_noise=one), "validation scores") for one in (True, False)
    )
    assert "merchants' held-out rows" in simulated and "not covered by the guarantee" in simulated
    assert "server's own" in real and "held-out" not in real


@pytest.mark.parametrize(
    ("unit", "whose"), [("example", "site"), ("group", "site"), ("merchant", "server"), ("vote", "server")]
)
def test_it_says_whether_the_noise_can_be_reproduced_and_whose_secret_it_is(unit, whose):
    seed, secret = (
        how(revealed(config(unit), sent(unit), reproducible_noise=one), "the noise") for one in (True, False)
    )
    assert "subtract" in seed and "secret" not in seed
    assert f"secret of {'each ' if whose == 'site' else 'the '}{whose}" in secret and "subtract" not in secret
    told = account(config(unit), SPENT, sent(unit), reproducible_noise=False)
    assert told["reproducible_noise"] is False and secret in [one["how"] for one in told["reveals"]]


def test_scores_are_told_exactly_or_not_at_all():
    exact, kept = (
        how(revealed(config(report_scores=told), (StudentUpdate,)), "correct test examples") for told in (True, False)
    )
    assert "exactly" in exact and "not covered by the guarantee" in exact
    assert kept == "not sent"


@units
def test_scores_of_personal_students_which_no_noise_covers_are_listed(unit):
    def told(report_scores):
        return how(revealed(config(unit, report_scores=report_scores), sent(unit), personal=True), "personal student")

    assert "without noise" in told(True) and "not covered by the guarantee" in told(True)
    assert told(False) == "not sent"
    assert not any("personal" in one.what for one in revealed(config(unit), sent(unit)))


@units
def test_what_is_computed_on_private_examples_is_covered_by_no_unit(unit):
    with pytest.raises(
        ConfigError, match=f"privacy.unit = '{unit}' does not cover all payloads of method fd: its student"
    ):
        mechanism(unit).check(
            Experiment(privacy=config(unit)), FederationConfig(method="fd"), (StudentUpdate, ClassMeans)
        )
    with pytest.raises(ConfigError, match="computed from private examples without noise"):
        mechanism(unit).check_covered("fd", (ClassMeans,))


@pytest.mark.parametrize("unit", ["example", "group"])
def test_expertise_is_covered_where_a_noised_sum_is_paid_for_and_said_so(unit):
    mechanism(unit).check(Experiment(privacy=config(unit)), FederationConfig(method="expert-fd"), (ExpertSoftLabels,))
    listed = revealed(config(unit, expertise_noise=7.5), (ExpertSoftLabels,))
    assert "drawn once per federation and counted in epsilon" in how(listed, "how close each of these is to its own")
    assert "deviation 7.5" in how(listed, "text features")
    assert not any("text features" in one.what for one in revealed(config(unit), (SoftLabels,)))


@pytest.mark.parametrize("unit", ["merchant", "vote"])
def test_expertise_is_refused_where_the_server_adds_the_noise(unit):
    with pytest.raises(ConfigError, match=r"how close each of these is to its own texts.* without noise"):
        mechanism(unit).check_covered("expert-fd", (ExpertSoftLabels,))


def test_without_privacy_every_payload_is_disclosed_as_not_protected():
    listed = mechanism("none").disclose(NoPrivacy(), KINDS)
    assert len({one.what for one in listed}) == len(KINDS)
    assert {one.how for one in listed} == {"not protected"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_either_accounted_for_or_refused(kind):
    experiment, own = Experiment(privacy=config()), FederationConfig(method="own")
    mechanism("none").check(Experiment(), own, (kind,))
    try:
        mechanism("example").check(experiment, own, (kind,))
    except ConfigError:
        return
    first = revealed(config(), (kind,))[0]
    assert first.what not in {one.what for one in revealed(config(), ())}
    assert first.how
