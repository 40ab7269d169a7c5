"""Messages to sites and their replies."""

import pytest

from fed_distill.coordinator import exchange
from fed_distill.coordinator.exchange import Deadline, Exchange


class SilentGrid:
    """Never has a reply."""

    def pull_messages(self, keys):
        return []


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only sleeping lets pass."""
    now = [0.0]
    monkeypatch.setattr(exchange.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(exchange.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.mark.parametrize(
    ("sites", "named"),
    [
        (2, "site north, site 1"),
        (7, "site north, site 1, site 2, site 3, site 4 and 2 more"),
    ],
)
def test_the_log_says_who_is_waited_for_at_intervals_that_double(caplog, clock, sites, named):
    messages = Exchange(SilentGrid(), poll_seconds=1.0)
    messages.name(0, "north", {0})
    replies = [*messages.replies({str(node): node for node in range(sites)}, Deadline(200.0))]
    assert [reply.cause for _, reply in replies] == ["late"] * sites
    waiting = [line for line in caplog.messages if " are missing after " in line]
    counts, _, _ = zip(*(line.partition(" are missing after ") for line in waiting), strict=True)
    assert counts == (f"{sites} of {sites} replies",) * 2
    assert [line.partition(": ")[2] for line in waiting] == [named] * 2
    times = [float(line.partition(" after ")[2].partition(" s")[0]) for line in waiting]
    assert times == [pytest.approx(60.0, abs=1.0), pytest.approx(120.0, abs=1.0)]
