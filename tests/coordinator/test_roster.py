"""Who is there, and where: sites that come, go, come back as another, and claim what is another's."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fed_distill.coordinator.exchange import Exchange
from fed_distill.coordinator.roster import Roster
from fed_distill.errors import DataError
from fed_distill.experiment.grid import InProcessGrid, context_of
from fed_distill.transport.requests import PROTOCOL

NORTH, SOUTH, NEW = 2, 3, 4


class Stage:
    """Sites by node id, of which those in ``there`` can be reached; each has the merchants in ``has``.

    says: what a site says otherwise than it should; None if it fails. looks: who is there at the next looks, or a
    function that gives it.
    """

    def __init__(self, has, there):
        self.has, self.there, self.says, self.looks, self.asked = has, set(there), {}, [], []
        app = ClientApp()

        @app.query("merchants")
        def merchants(message, context):
            self.asked.append(context.node_id)
            says = self.says.get(context.node_id, {})
            if says is None or self.has[context.node_id] is None:
                raise RuntimeError("disk on fire")
            names = self.has[context.node_id]
            content = {"names": names, "examples": [len(names)] * len(names), "protocol": PROTOCOL, "public": "ours"}
            return Message(RecordDict({"merchants": ConfigRecord({**content, **says})}), reply_to=message)

        self.grid = InProcessGrid(app, {}, sites=5)
        self.grid._contexts[1] = context_of(1, 5, {})
        self.grid.get_node_ids = self.look

    def look(self):
        if self.looks:
            now = self.looks.pop(0)
            self.there = now() if callable(now) else now
        return sorted(self.there)

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
    assert f"site {NEW}: a also announced by its connected site, and stays there" in caplog.text
    assert f"site {NEW}: x not online at the start of the run" in caplog.text


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
    roster = stage.roster(public="ours")
    stage.there = {SOUTH}
    roster.away()
    stage.there, stage.says[NORTH] = {NORTH, SOUTH}, {"public": "another"}
    assert roster.away() == {"a", "b"}
    assert f"site {NORTH} (a, b) has other classes or another proxy set than the server" in caplog.text


USELESS = {
    "proxy set": ({"public": "another"}, "(c) has other classes or another proxy set than the server: install this"),
    "no proxy set": ({"public": 7}, "(c) has other classes or another proxy set than the server: install this"),
    "protocol": ({"protocol": 2}, f"speaks protocol 2 and this server {PROTOCOL}: install fed-distill"),
    "no names": ({"names": "c"}, "sent an announcement without names of merchants"),
    "numbers": ({"names": [1, 2], "examples": [1, 2]}, "sent an announcement without names of merchants"),
    "sizes": ({"examples": [1, 2]}, "sent an announcement without names and sizes of merchants"),
    "size": ({"examples": [True]}, "announced invalid numbers of examples of merchants"),
    "unprintable": ({"names": ["\x1b[31mc"]}, "has no merchant that can participate"),
    "twice": ({"names": ["c", "c"], "examples": [1, 2]}, "has no merchant that can participate"),
    "disk on fire": (None, "failed: RuntimeError: disk on fire"),
}


@pytest.mark.parametrize("case", USELESS)
def test_a_site_of_no_use_is_named_and_left_out_and_does_not_count_as_one_that_is_waited_for(stage, case, caplog):
    says, reason = USELESS[case]
    stage.says[SOUTH] = says
    stage.there = {NORTH, SOUTH}
    stage.looks = [{NORTH, SOUTH}, {NORTH, SOUTH}, {NORTH, SOUTH, NEW}]
    stage.has[NEW] = ["d"]
    roster = stage.roster(public="ours", minimum=2)
    assert roster.merchants == ["a", "b", "d"]
    assert f"site {SOUTH} {reason}" in caplog.text
    assert stage.asked == [NORTH, SOUTH, NEW]  # and is not asked again as long as it stays
    assert len([line for line in caplog.messages if line.startswith("waiting for sites: 1 of 2")]) == 1


def test_only_useless_sites_end_the_run_with_the_reasons_of_all(stage):
    stage.says = {NORTH: {"public": "another"}, SOUTH: {"protocol": 2}}
    with pytest.raises(DataError, match=r"no site has a merchant: site 2 \(a, b\) has other .*; site 3 has protocol"):
        stage.roster(public="ours")


def test_one_that_failed_is_asked_again_when_it_has_gone_and_come_back(stage):
    stage.says[SOUTH] = None

    def mended():
        stage.says = {}
        return {NORTH}

    stage.looks = [{NORTH, SOUTH}, mended, {NORTH, SOUTH}]
    assert stage.roster(minimum=2).merchants == ["a", "b", "c"]


def test_names_that_cannot_be_printed_and_those_announced_twice_are_left_out_and_the_others_stay(stage, caplog):
    long = "x" * 200
    stage.has[SOUTH] = ["c", "", "\u202ecod", "a\nb", long, long + "x", "d", "d", "Kühl 手机"]
    assert stage.roster().merchants == sorted(["a", "b", "c", long, "Kühl 手机"])
    assert f"site {SOUTH}: d excluded: announced twice" in caplog.text
    odd = f"site {SOUTH}: ,  cod, a b and 1 more excluded: a name must have 1 to 200 printable characters"
    assert odd in caplog.messages


def test_nobody_gets_a_merchant_by_announcing_it_too(stage, caplog):
    """Whether it is the first or the last, has the lowest number, or has another that sides with it."""
    for node in (1, NEW):
        stage.has = {NORTH: ["a", "b"], SOUTH: ["c"], node: ["a", "c", "z"]}
        stage.there = set(stage.has)
        roster = stage.roster()
        assert roster.merchants == ["b", "z"]
        assert roster.node_of("b") == NORTH
    stage.has = {NORTH: ["a", "b"], SOUTH: ["a"], NEW: ["b"], 5: ["c"]}
    stage.there = set(stage.has)
    assert stage.roster().merchants == ["c"]
    assert "a announced by site 2, site 3: a merchant belongs to one site" in caplog.text


def test_a_site_whose_merchants_are_all_disputed_is_of_no_use(stage):
    stage.has |= {SOUTH: ["a"], NEW: ["d"]}
    stage.looks = [{NORTH, SOUTH}, {NORTH, SOUTH}, {NORTH, NEW}]
    assert stage.roster(minimum=2).merchants == ["a", "b", "d"]  # a is nobody else's any more


def test_who_had_a_merchant_at_first_has_it_again_when_it_comes_back(stage, caplog):
    roster = stage.roster()
    stage.there, stage.has[NEW] = {NEW, SOUTH}, ["a", "b"]
    assert (roster.away(), roster.node_of("a")) == (frozenset(), NEW)
    stage.there = {NORTH, NEW, SOUTH}
    assert (roster.away(), roster.node_of("a"), roster.node_of("b")) == (frozenset(), NORTH, NORTH)
    stage.there = {NORTH, SOUTH}
    roster.away()
    stage.there = {NORTH, NEW, SOUTH}
    assert (roster.away(), roster.node_of("a")) == (frozenset(), NORTH)
    assert f"site {NEW}: a, b also announced by its connected site, and stays there" in caplog.text


def test_a_site_is_told_by_its_name_and_by_its_number_too_where_that_is_not_enough(stage, caplog):
    stage.says = {NORTH: {"name": "north"}, SOUTH: {"name": "7"}, NEW: {"name": "north"}}
    exchange = Exchange(stage.grid, 0.0)
    roster = Roster(exchange)
    assert [exchange.title(node) for node in (NORTH, SOUTH, NEW)] == ["site north", f"site 7 ({SOUTH})", f"site {NEW}"]
    stage.there = {NORTH, SOUTH, NEW}
    roster.away()
    assert [exchange.title(node) for node in (NORTH, NEW)] == [f"site north ({NORTH})", f"site north ({NEW})"]
    stage.there = {SOUTH}
    roster.away()
    assert f"site north ({NEW}) is away" in caplog.text
    stage.there = {SOUTH, NEW}
    roster.away()
    assert exchange.title(NEW) == "site north"  # the other is gone


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Köln-2.a", "site Köln-2.a"),
        ("x failed: \x1b[2K\u202e(3)", "site x_failed____2K__3_"),
        ("n" * 1000, "site " + "n" * 60),
        ("", f"site {NORTH}"),
        (7, f"site {NORTH}"),
        (["north"], f"site {NORTH}"),
    ],
)
def test_a_name_is_made_harmless(stage, name, title):
    exchange = Exchange(stage.grid, 0.0)
    exchange.name(NORTH, name, {NORTH})
    assert exchange.title(NORTH) == title
