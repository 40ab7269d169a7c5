"""Who is there, and where: sites that come, go, come back as another, and claim what is another's."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fed_distill.errors import DataError
from fed_distill.runtime.grid import InProcessGrid
from fed_distill.transport.requests import PROTOCOL
from server.exchange import Exchange
from server.roster import Roster

NORTH, SOUTH, NEW = 2, 3, 4


class Stage:
    """Sites by node id, of which those in ``there`` can be reached; each has the merchants in ``has``."""

    def __init__(self, has, there):
        self.has, self.there, self.public, self.asked = has, set(there), {}, []
        app = ClientApp()

        @app.query("merchants")
        def merchants(message, context):
            self.asked.append(context.node_id)
            if self.has[context.node_id] is None:
                raise RuntimeError("disk on fire")
            names = self.has[context.node_id]
            content = {"names": names, "examples": [len(names)] * len(names), "protocol": PROTOCOL}
            content["public"] = self.public.get(context.node_id, "ours")
            return Message(RecordDict({"merchants": ConfigRecord(content)}), reply_to=message)

        self.grid = InProcessGrid(app, {}, sites=3)
        self.grid.get_node_ids = lambda: sorted(self.there)

    def roster(self, **options):
        return Roster(Exchange(self.grid, 0.0), **options)


@pytest.fixture
def stage():
    return Stage({NORTH: ["a", "b"], SOUTH: ["c"], NEW: []}, [NORTH, SOUTH])


def test_all_are_there_at_first_and_nobody_is_asked_again(stage):
    roster = stage.roster()
    assert (roster.merchants, roster.nodes()) == (["a", "b", "c"], [NORTH, SOUTH])
    assert roster.away() == roster.away() == frozenset()
    assert stage.asked == [NORTH, SOUTH]


def test_who_is_gone_is_away_until_it_is_back_and_says_what_it_has_now(stage):
    roster = stage.roster()
    stage.there = {SOUTH}
    assert roster.away() == {"a", "b"}
    stage.there, stage.has[NORTH] = {NORTH, SOUTH}, ["a", "d"]
    assert roster.away() == {"b"}
    assert (roster.node_of("a"), roster.announced("a")) == (NORTH, 2)
    assert roster.merchants == ["a", "b", "c"]  # d may join the next run


def test_a_site_that_comes_back_as_another_node_brings_its_merchants(stage):
    roster = stage.roster()
    stage.there, stage.has[NEW] = {NEW, SOUTH}, ["a", "b"]
    assert roster.away() == frozenset()
    assert [roster.node_of(name) for name in "abc"] == [NEW, NEW, SOUTH]


def test_what_another_site_has_cannot_be_claimed_while_that_is_there(stage, caplog):
    roster = stage.roster()
    stage.there, stage.has[NEW] = {NORTH, SOUTH, NEW}, ["a", "x"]
    assert roster.away() == frozenset()
    assert roster.node_of("a") == NORTH
    assert f"merchant 'a' is at two sites: it stays with site {NORTH}" in caplog.text
    assert f"merchant 'x' of site {NEW} was not there when the run began" in caplog.text


def test_a_site_that_is_back_before_its_former_self_was_missed_has_its_merchants_then(stage):
    roster = stage.roster()
    stage.there, stage.has[NEW] = {NORTH, SOUTH, NEW}, ["a", "b"]
    assert (roster.away(), roster.node_of("a")) == (frozenset(), NORTH)
    stage.there = {SOUTH, NEW}
    assert (roster.away(), roster.node_of("a"), roster.node_of("b")) == (frozenset(), NEW, NEW)


def test_one_that_fails_to_say_what_it_has_is_asked_again_at_the_next_look(stage):
    roster = stage.roster()
    stage.there, stage.has[NEW] = {SOUTH, NEW}, None
    assert roster.away() == {"a", "b"}
    stage.has[NEW] = ["a", "b"]
    assert roster.away() == frozenset()


def test_one_that_comes_back_with_another_proxy_set_stays_away(stage, caplog):
    roster = stage.roster()
    roster.check_public("ours")
    stage.there = {SOUTH}
    roster.away()
    stage.there, stage.public[NORTH] = {NORTH, SOUTH}, "another"
    assert roster.away() == {"a", "b"}
    assert "the site of a, b has other classes or another proxy set than the server" in caplog.text


def test_another_proxy_set_at_the_start_ends_the_run(stage):
    stage.public[SOUTH] = "another"
    with pytest.raises(DataError, match="the site of c has other classes or another proxy set"):
        stage.roster().check_public("ours")
