"""The merchants of a run, the site of each, and the sites that are online.

The merchants of a run are those online at its start; sampling and budgets are based on them. Their sites may disconnect
and reconnect, also as another Flower node; a site that reconnects announces its merchants again.

Sites do not trust each other. A site with another protocol, another proxy set or an invalid announcement is excluded by
name, and does not stop the run. A merchant belongs to one site, and another site cannot take it over by announcing it:

- A merchant that several sites announce at the start is excluded from the run. The server cannot verify its site, and a
  hostile site could satisfy any rule that selects one: by being first, by a low id, by a second hostile site. A hostile
  site can exclude merchants, which is logged with its name, but it cannot impersonate them.
- Later, a merchant stays with its first site. Another node can announce it only while that site is offline, as its site
  may have reconnected as another Flower node.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from flwr.app import ConfigRecord, RecordDict

from fed_distill.coordinator.exchange import Exchange, NoReply, log_failure, readable
from fed_distill.errors import DataError
from fed_distill.storage.versions import versions
from fed_distill.transport.records import MOST_EXAMPLES
from fed_distill.transport.requests import PROTOCOL, QUERY_MERCHANTS

INTRODUCTION = 60.0
"""Seconds for a reconnected site to announce its merchants, in a run without a deadline."""
NOWHERE = 0
"""Node id for a merchant that its reconnected site no longer announces; Flower does not use this id."""
LONGEST_MERCHANT = 200
"""Maximum length of a merchant's name."""
_LISTED, _CUT = 3, 60
"""Maximum number of names in a line of the log, and maximum length of each."""

Announced = Mapping[str, int | None]
"""Number of training examples by merchant of a site; None if it is private."""

_log = logging.getLogger(__name__)


class Roster:
    """The merchants behind an exchange."""

    def __init__(
        self, exchange: Exchange, minimum: int = 1, deadline: float | None = None, public: str | None = None
    ) -> None:
        """Wait until ``minimum`` usable sites are connected and have announced their merchants.

        :param deadline: seconds for an answer, after which the request is repeated
        :param public: required fingerprint of the sites' task and proxy set (``PublicPart``); None: any
        :raises DataError: ``minimum`` sites are connected, but none has a merchant that can participate
        """
        self._exchange, self._deadline, self._public = exchange, deadline, public
        self._node_of: dict[str, int] = {}
        self._examples: dict[str, int | None] = {}
        self._doubles: set[int] = set()
        there = self._gather(minimum)
        for node, announced in there.items():
            self._node_of |= dict.fromkeys(announced, node)
            self._examples |= announced
        self._there = frozenset(there)
        self._home = dict(self._node_of)
        self.merchants = sorted(self._node_of)

    def node_of(self, merchant: str) -> int:
        """Return the last known site of one of ``merchants``."""
        return self._node_of[merchant]

    def announced(self, merchant: str) -> int | None:
        """Return the number of training examples that a merchant announced; None if it is private."""
        return self._examples[merchant]

    def nodes(self) -> list[int]:
        """Return all sites of ``merchants``, online or not."""
        return sorted(set(self._node_of.values()) - {NOWHERE})

    def away(self) -> frozenset[str]:
        """Update the connected sites, and return the merchants whose site is offline."""
        now = frozenset(self._exchange.nodes())
        for gone in sorted(self._there - now):
            _log.warning("%s is offline", self._exchange.title(gone))
        if self._there - now:  # a site may reconnect as a new node before its old node is missed
            self._there, self._doubles = self._there - self._doubles, set()
        self._there &= now
        seconds = INTRODUCTION if self._deadline is None else min(INTRODUCTION, self._deadline)
        answered, _ = self._introduced(now - self._there, now, seconds)
        for node, announced in answered.items():
            self._take_back(node, announced)
        return frozenset(name for name, node in self._node_of.items() if node not in self._there)

    def _gather(self, minimum: int) -> dict[int, Announced]:
        """Wait for at least ``minimum`` usable sites, and return them with their merchants."""
        introduced: dict[int, Announced] = {}
        failed: dict[int, NoReply] = {}
        waiting = ""
        while True:
            now = frozenset(self._exchange.nodes())
            introduced = {node: announced for node, announced in introduced.items() if node in now}
            failed = {node: silence for node, silence in failed.items() if node in now}
            answered, silent = self._introduced(now - introduced.keys() - failed.keys(), now, self._deadline)
            introduced |= answered
            failed |= {one.node: one for one in silent if one.cause == "fault"}
            kept, disputes = self._undisputed(introduced)
            useful = sum(bool(kept[node]) or not announced for node, announced in introduced.items())
            some = any(kept.values())
            if (some and useful >= minimum) or (not some and len(introduced) + len(failed) >= minimum):
                break
            reasons = "; ".join([*(one.reason for one in failed.values()), *disputes])
            if waiting != (waiting := f"{useful} of {minimum} are online" + (f"; {reasons}" if reasons else "")):
                _log.warning("waiting for sites: %s", waiting)
            time.sleep(self._exchange.poll_seconds)
        for dispute in disputes:
            _log.warning("%s", dispute)
        if not some:
            reasons = "; ".join([*(one.reason for one in failed.values()), *disputes])
            raise DataError(f"no site has a merchant: {reasons or 'all sites announced none'}")
        return kept

    def _undisputed(self, introduced: Mapping[int, Announced]) -> tuple[dict[int, Announced], list[str]]:
        """Return each site's merchants without those that several sites announce, and messages about the latter."""
        claims: dict[str, list[int]] = defaultdict(list)
        for node, announced in sorted(introduced.items()):
            for name in announced:
                claims[name].append(node)
        disputed: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, nodes in claims.items():
            if len(nodes) > 1:
                disputed[tuple(nodes)].append(name)
        kept: dict[int, Announced] = {
            node: {name: size for name, size in announced.items() if len(claims[name]) == 1}
            for node, announced in introduced.items()
        }
        lines = [
            f"{_listed(names)} announced by {_listed(list(map(self._exchange.title, nodes)))}: a merchant belongs to "
            "one site, and is excluded if several sites announce it"
            for nodes, names in disputed.items()
        ]
        return kept, lines

    def _introduced(
        self, nodes: Collection[int], there: Collection[int], seconds: float | None
    ) -> tuple[dict[int, Announced], list[NoReply]]:
        """Request the sites' announcements; return them, and a ``NoReply`` for each site without an announcement, with
        an invalid one, with another protocol, or with another proxy set."""
        requests = {node: RecordDict() for node in sorted(nodes)}
        answered, silent = self._exchange.ask(requests, QUERY_MERCHANTS, seconds) if requests else ({}, [])
        useful: dict[int, Announced] = {}
        records = {
            node: content.config_records.get("merchants", ConfigRecord()) for node, content in sorted(answered.items())
        }
        for node, record in records.items():
            self._exchange.name(node, record.get("name"), there)
        for node, record in records.items():
            try:
                useful[node] = self._checked(node, record)
            except DataError as error:
                silent.append(log_failure(NoReply(node, readable(f"{self._exchange.title(node)} {error}"))))
        return useful, silent

    def _checked(self, node: int, record: ConfigRecord) -> Announced:
        """Return a site's merchants; raise DataError with the reason if the site is unusable."""
        theirs = str(record.get("protocol", "unknown"))
        if theirs != str(PROTOCOL):
            raise DataError(
                f"has protocol {theirs[:20]}, and this server {PROTOCOL}: install fed-distill "
                f"{versions()['fed-distill']} there ({_versions(record)})"
            )
        announced = _announced(record)
        if self._public is not None and record.get("public") != self._public:
            merchants = _listed([name for name, _ in announced])
            raise DataError(
                f"({merchants}) has other classes or another proxy set than the server: install this experiment's"
                " proxy.json (fed-distill sites init FOLDER --sites SITE --experiment FILE)"
            )
        self._compare_versions(node, record)
        known = dict(announced)
        if doubles := [name for name, times in Counter(name for name, _ in announced).items() if times > 1]:
            self._leave_out(node, doubles, "announced twice")
        if odd := [name for name in known if not 0 < len(name) <= LONGEST_MERCHANT or not name.isprintable()]:
            reason = f"a name must have 1 to {LONGEST_MERCHANT} printable characters"
            self._leave_out(node, odd, reason)
        kept = {name: size for name, size in known.items() if name not in {*doubles, *odd}}
        if announced and not kept:
            raise DataError("has no merchant that can participate")
        return kept

    def _leave_out(self, node: int, merchants: Sequence[str], reason: str) -> None:
        log_failure(NoReply(node, readable(f"{self._exchange.title(node)}: {_listed(merchants)} excluded: {reason}")))

    def _take_back(self, node: int, announced: Announced) -> None:
        """Add a site that connects during a run; errors of it are logged and do not stop the run."""
        self._there |= {node}
        for name in (name for name, at in self._node_of.items() if at == node):
            self._node_of[name] = NOWHERE
        title, taken, new, elsewhere = self._exchange.title(node), [], [], []
        for name, examples in announced.items():
            if name not in self._node_of:
                new.append(name)
            elif self._node_of[name] in self._there and self._home[name] != node:
                elsewhere.append(name)
                self._doubles.add(node)
            else:
                self._node_of[name], self._examples[name] = node, examples
                taken.append(name)
        if new:
            _log.warning("%s: %s not online at the start of the run: can join the next run", title, _listed(new))
        if elsewhere:
            _log.warning("%s: %s also announced by its connected site, and stays there", title, _listed(elsewhere))
        _log.warning("%s is online again, with %s", title, _listed(taken) if taken else "no merchant of this run")

    def _compare_versions(self, node: int, record: ConfigRecord) -> None:
        here = " ".join(f"{name} {version}" for name, version in versions().items())
        if (theirs := _versions(record)) not in ("", here):
            title = self._exchange.title(node)
            log_failure(
                NoReply(node, readable(f"{title} has {theirs}, the server {here}: results may differ slightly"))
            )


def _versions(record: ConfigRecord) -> str:
    reported = record.get("versions", [])
    return " ".join(map(str, reported)) if isinstance(reported, list) else ""


def _announced(record: ConfigRecord) -> list[tuple[str, int | None]]:
    """Parse a site's merchants with their numbers of training examples, None if private; raise DataError if invalid."""
    names, sizes = record.get("names"), record.get("examples")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("sent an announcement without names of merchants")
    if "examples" not in record:
        return [(str(name), None) for name in names]
    if not isinstance(sizes, list) or len(sizes) != len(names):
        raise DataError("sent an announcement without names and sizes of merchants")
    if not all(type(size) is int and 0 <= size <= MOST_EXAMPLES for size in sizes):
        raise DataError("announced invalid numbers of examples of merchants")
    return [(str(name), int(str(size))) for name, size in zip(names, sizes, strict=True)]


def _listed(names: Sequence[str]) -> str:
    """List the first names, truncated, and the number of others."""
    shown = ", ".join(name[:_CUT] for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
