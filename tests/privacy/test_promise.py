"""A promise names its unit, who is trusted, and everything that leaves a merchant."""

import pytest

from fed_distill.config import PrivacyConfig
from fed_distill.errors import ConfigError
from fed_distill.privacy.promise import TRUSTED, UNITS, Spent, account, check_covered, revealed
from fed_distill.transport.messages import PARTS


def config(unit="example", **changes):
    return PrivacyConfig(unit=unit, epsilon=2.0, **changes)


def test_of_several_groups_the_worst_counts():
    joined = Spent.joined([Spent(2, 1.0, 1e-3, 0.9, 1.1), Spent(), Spent(1, 1.5, 1e-4, 0.8, 0.8)])
    assert joined == Spent(3, 1.5, 1e-3, 0.8, 1.1)
    assert Spent.joined([Spent()]) == Spent()


@pytest.mark.parametrize("unit", ["example", "merchant", "vote"])
def test_every_unit_says_what_it_protects_and_who_is_trusted(unit):
    told = account(config(unit), Spent(3, 1.5, 1e-3, 0.8, 1.1), ("votes",) if unit == "vote" else ("weights",))
    assert (told["protects"], told["trusted"]) == (UNITS[unit], TRUSTED[unit])
    assert (told["epsilon"], told["delta"], told["merchants"]) == (1.5, 1e-3, 3)
    assert told["noise_multiplier"] == {"least": 0.8, "most": 1.1}


def test_all_that_leaves_is_listed():
    parts = {one.what: one.how for one in revealed(config(), ("weights", "soft_labels"))}
    assert len(parts) == 9
    assert "noised" in parts["weights of its trained student"]
    assert parts["training losses"] == "not sent"
    assert "deviation 20" in parts["number of training examples"]
    assert "public proxy" in parts["which table rows it sends, and how often they are used"]
    assert "which table rows" not in " ".join(one.what for one in revealed(config(), ("soft_labels",)))
    assert "which table rows" in " ".join(one.what for one in revealed(config(), ("low_rank_update",)))


def test_scores_are_told_exactly_or_not_at_all():
    exact, kept = (
        next(one.how for one in revealed(config(report_scores=told), ("weights",)) if "test examples" in one.what)
        for told in (True, False)
    )
    assert exact.startswith("exact")
    assert kept == "not sent"


@pytest.mark.parametrize("unit", ["example", "merchant", "vote"])
def test_scores_of_personal_students_which_no_noise_covers_are_listed(unit):
    def told(report_scores):
        listed = revealed(config(unit, report_scores=report_scores), ("weights",), personal=True)
        return next(one.how for one in listed if "personal student" in one.what)

    assert "without noise" in told(True) and "not covered by the promise" in told(True)
    assert told(False) == "not sent"
    assert not any("personal" in one.what for one in revealed(config(unit), ("weights",)))


@pytest.mark.parametrize("unit", ["example", "merchant", "vote"])
def test_what_is_computed_on_private_examples_is_covered_by_no_unit(unit):
    with pytest.raises(
        ConfigError, match=f"privacy.unit = '{unit}' does not cover all that method fd sends: its student"
    ):
        check_covered(unit, "fd", ("weights", "class_means"))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_either_accounted_for_or_refused(part):
    check_covered("none", "own", (part,))
    try:
        check_covered("example", "own", (part,))
    except ConfigError:
        return
    first = revealed(config(), (part,))[0]
    assert first.what not in {one.what for one in revealed(config(), ())}
    assert first.how
