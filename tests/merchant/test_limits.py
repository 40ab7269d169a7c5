"""A site's own rules are read strictly and win over what is asked."""

from datetime import time

import pytest

from fed_distill.errors import BudgetExceeded, ConfigError, NotAllowed, NotNow
from fed_distill.merchant.limits import Limits, Rules

RULES = """
[default]
max_epsilon = 4.0
units = ["example"]

[merchants."Müller & Söhne"]
min_noise = 1.0
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "limits.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_merchant_has_its_own_rules_and_else_those_of_the_site(write):
    limits = Limits.read(write(RULES))
    assert (limits.of("a").max_epsilon, limits.of("a").units) == (4.0, ("example",))
    own = limits.of("Müller & Söhne")
    assert (own.max_epsilon, own.min_noise, own.units) == (4.0, 1.0, ("example",))


def test_a_delta_that_promises_nothing_is_refused_in_any_case(write):
    Limits.read(None).of("a").check_delta("a", 0.009, 100)
    with pytest.raises(BudgetExceeded, match=r"a delta of at most 0\.01, not 0\.02"):
        Limits.read(None).of("a").check_delta("a", 0.02, 100)
    own = Limits.read(write("[default]\nmax_delta = 1e-5")).of("a")
    with pytest.raises(BudgetExceeded, match="at most 1e-05"):
        own.check_delta("a", 1e-4, 100)


def test_without_a_file_everything_is_allowed():
    limit = Limits.read(None).of("a")
    for unit in ("none", "example", "group", "merchant", "vote"):
        limit.check_unit("a", unit)
    limit.check_noise("a", 0.0)
    assert limit.max_epsilon is None
    Limits.read(None).rules.check_scores()


@pytest.mark.parametrize("text", ["", "[rules]\nmax_rounds = 3", "[default]\nmax_epsilon = 8.0", "[merchants.a]"])
def test_what_a_file_does_not_name_is_closed(write, text):
    limits = Limits.read(write(text))
    for unit in ("example", "group"):
        limits.of("a").check_unit("a", unit)
    for unit in ("none", "merchant", "vote"):
        with pytest.raises(BudgetExceeded, match=f"its limits allow units example, group, not '{unit}'"):
            limits.of("a").check_unit("a", unit)
    assert limits.of("a").max_epsilon == 8.0
    with pytest.raises(BudgetExceeded, match=r"a delta of at most 1e-05, not 1\.1e-05"):
        limits.of("a").check_delta("a", 1.1e-5, 50)
    with pytest.raises(NotAllowed, match=r"rule scores: .* scores = true allows them"):
        limits.rules.check_scores()


def test_a_file_may_name_what_is_open(write):
    limits = Limits.read(write('[rules]\nscores = true\n[default]\nunits = ["none"]'))
    limits.of("a").check_unit("a", "none")
    limits.rules.check_scores()
    with pytest.raises(BudgetExceeded, match="allow units none, not 'example'"):
        limits.of("a").check_unit("a", "example")


def test_a_unit_that_is_not_allowed_and_too_little_noise_are_refused_by_name(write):
    limits = Limits.read(write(RULES))
    with pytest.raises(BudgetExceeded, match="merchant a: its limits allow units example, not 'none'"):
        limits.of("a").check_unit("a", "none")
    own = limits.of("Müller & Söhne")
    own.check_noise("Müller & Söhne", 1.0)
    with pytest.raises(BudgetExceeded, match=r"at least 1, not 0\.99"):
        own.check_noise("Müller & Söhne", 0.99)


@pytest.mark.parametrize(
    ("hours", "open_at", "closed_at"),
    [
        ("08:00-18:00", ["08:00", "12:00", "17:59"], ["07:59", "18:00", "23:00", "00:00"]),
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["21:59", "06:00", "12:00"]),
    ],
)
def test_hours_begin_with_their_first_minute_and_end_before_their_last_also_over_midnight(hours, open_at, closed_at):
    rules = Rules(hours=hours)
    for now in open_at:
        rules.check("fedavg", 1, time.fromisoformat(now))
    for now in closed_at:
        with pytest.raises(NotNow, match=f"rule hours: {hours}.*{now}"):
            rules.check("fedavg", 1, time.fromisoformat(now))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default]\nmax_epsilom = 1", r"unknown key default\.max_epsilom"),
        ("[default]\nmax_epsilon = -1", r"default\.max_epsilon must be greater than 0"),
        ('[merchants.a]\nunits = ["all"]', r"merchants\.a\.units\.1"),
        ("[default", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(write, text, message):
    with pytest.raises(ConfigError, match=message):
        Limits.read(write(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the limits in .*nowhere"):
        Limits.read(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    "line", ['imports = ["evil"]', 'imports = ["../evil:Evil"]', "max_steps = 0", "max_seconds = 0"]
)
def test_rules_for_work_and_imports_are_read_strictly(write, line):
    with pytest.raises(ConfigError, match=line.partition(" ")[0]):
        Limits.read(write(f"[rules]\n{line}"))


def test_hours_with_a_time_zone_are_refused(write):
    with pytest.raises(ConfigError, match="names a time zone"):
        Limits.read(write('[rules]\nhours = "22:00Z-06:00Z"'))
