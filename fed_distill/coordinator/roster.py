"""Which merchants there are, which site hosts each, and which of the sites are there now.

The merchants of a run are those that are there when it begins: by them it samples and plans budgets. Their sites may
leave and come back, also as another Flower node; a site that comes back is asked anew what it has.

Sites are strangers to each other, and one that is of no use ends no run: it speaks another protocol, has another proxy
set, or says what cannot be understood, and is left out by name. A merchant belongs to one site, and no site can take
another's over by announcing it too:

- who is announced more than once when a run begins takes no part in it. The server cannot tell whose it is, and any
  rule that decided between two sites could be met on purpose: by being the first, by a low number, by a second site
  that sides with the first. So a hostile site can keep merchants out, and is named for it, but never speak for them;
- after that a merchant is the site's that it was at first, whoever announces it; another may only bring it (a site that
  is back as another node of Flower's) as long as that one is away.
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
"""Seconds that a site which comes back in a run without a deadline has to say what it has, until the next round."""
NOWHERE = 0
"""In place of the site of a merchant that its site came back without; no node of Flower's has this id."""
LONGEST_MERCHANT = 200
"""Characters of a merchant's name at most."""
_LISTED, _CUT = 3, 60
"""Names that one line of the log lists at most, and characters of each."""

Announced = Mapping[str, int | None]
"""A site's merchants, and how many training examples each has; None where the site keeps that private."""

_log = logging.getLogger(__name__)


class Roster:
    """The merchants behind an exchange."""

    def __init__(
        self, exchange: Exchange, minimum: int = 1, deadline: float | None = None, public: str | None = None
    ) -> None:
        """Wait until ``minimum`` sites that are of use are connected and have said what they have. DataError if none of
        so many connected sites has a merchant that can take part.

        deadline: seconds for an answer, after which a site is asked again. public: fingerprint of the server's task and
        proxy set (``PublicPart``), which those of all sites must be; None for any.
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
        """The site of one of ``merchants``, where it was last."""
        return self._node_of[merchant]

    def announced(self, merchant: str) -> int | None:
        """How many training examples a merchant has said to have; None where its site keeps that private."""
        return self._examples[merchant]

    def nodes(self) -> list[int]:
        """All sites of ``merchants``, whether they are there or not."""
        return sorted(set(self._node_of.values()) - {NOWHERE})

    def away(self) -> frozenset[str]:
        """Look which sites are there, take in who came back, and tell the merchants whose site is away."""
        now = frozenset(self._exchange.nodes())
        for gone in sorted(self._there - now):
            _log.warning("%s is away", self._exchange.title(gone))
        if self._there - now:  # whoever came before its former self was missed has its merchants now
            self._there, self._doubles = self._there - self._doubles, set()
        self._there &= now
        seconds = INTRODUCTION if self._deadline is None else min(INTRODUCTION, self._deadline)
        answered, _ = self._introduced(now - self._there, now, seconds)
        for node, announced in answered.items():
            self._take_back(node, announced)
        return frozenset(name for name, node in self._node_of.items() if node not in self._there)

    def _gather(self, minimum: int) -> dict[int, Announced]:
        """The sites that are connected, with their merchants, at least ``minimum`` that are of use."""
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
            if waiting != (waiting := f"{useful} of {minimum} are there" + (f"; {reasons}" if reasons else "")):
                _log.warning("waiting for sites: %s", waiting)
            time.sleep(self._exchange.poll_seconds)
        for dispute in disputes:
            _log.warning("%s", dispute)
        if not some:
            reasons = "; ".join([*(one.reason for one in failed.values()), *disputes])
            raise DataError(f"no site has any merchant: {reasons or 'each site answered with none'}")
        return kept

    def _undisputed(self, introduced: Mapping[int, Announced]) -> tuple[dict[int, Announced], list[str]]:
        """Each site's merchants without those that another announces too, and what is to be said of these."""
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
            "one site, and takes no part in a run for which several announce it"
            for nodes, names in disputed.items()
        ]
        return kept, lines

    def _introduced(
        self, nodes: Collection[int], there: Collection[int], seconds: float | None
    ) -> tuple[dict[int, Announced], list[NoReply]]:
        """What sites say that they have, and those that are of no use: they do not say it, or not so that it can be
        understood, speak another protocol, or have another proxy set."""
        asked = {node: RecordDict() for node in sorted(nodes)}
        answered, silent = self._exchange.ask(asked, QUERY_MERCHANTS, seconds) if asked else ({}, [])
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
        """A site's merchants. DataError, which says what the site does wrong, if it is of no use."""
        theirs = str(record.get("protocol", "unknown"))
        if theirs != str(PROTOCOL):
            raise DataError(
                f"speaks protocol {theirs[:20]} and this server {PROTOCOL}: install fed-distill "
                f"{versions()['fed-distill']} there ({_versions(record)})"
            )
        announced = _announced(record)
        if self._public is not None and record.get("public") != self._public:
            merchants = _listed([name for name, _ in announced])
            raise DataError(
                f"({merchants}) has other classes or another proxy set than the server: give it this experiment's"
                " proxy.json (fed-distill sites init FOLDER --sites SITE --experiment FILE)"
            )
        self._compare_versions(node, record)
        known = dict(announced)
        if doubles := [name for name, times in Counter(name for name, _ in announced).items() if times > 1]:
            self._leave_out(node, doubles, "it announces them twice")
        if odd := [name for name in known if not 0 < len(name) <= LONGEST_MERCHANT or not name.isprintable()]:
            reason = f"a name has 1 to {LONGEST_MERCHANT} characters, all of which can be printed"
            self._leave_out(node, odd, reason)
        kept = {name: size for name, size in known.items() if name not in {*doubles, *odd}}
        if announced and not kept:
            raise DataError("has no merchant that can take part")
        return kept

    def _leave_out(self, node: int, merchants: Sequence[str], reason: str) -> None:
        log_failure(NoReply(node, readable(f"{self._exchange.title(node)}: {_listed(merchants)} left out: {reason}")))

    def _take_back(self, node: int, announced: Announced) -> None:
        """A site that comes in the middle of a run; nothing that is wrong with it may stop the others."""
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
            _log.warning("%s: %s not there when the run began: it can join the next", title, _listed(new))
        if elsewhere:
            _log.warning("%s: %s is at another site too, and stays there", title, _listed(elsewhere))
        _log.warning("%s is back, with %s", title, _listed(taken) if taken else "no merchant of this run")

    def _compare_versions(self, node: int, record: ConfigRecord) -> None:
        here = " ".join(f"{name} {version}" for name, version in versions().items())
        if (theirs := _versions(record)) not in ("", here):
            title = self._exchange.title(node)
            log_failure(
                NoReply(node, readable(f"{title} has {theirs}, the server {here}: results may differ a little"))
            )


def _versions(record: ConfigRecord) -> str:
    told_versions = record.get("versions", [])
    return " ".join(map(str, told_versions)) if isinstance(told_versions, list) else ""


def _announced(record: ConfigRecord) -> list[tuple[str, int | None]]:
    """A site's merchants and how many training examples each has, None where the site keeps that private. DataError for
    anything else."""
    names, sizes = record.get("names"), record.get("examples")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("did not answer with the names of its merchants")
    if "examples" not in record:
        return [(str(name), None) for name in names]
    if not isinstance(sizes, list) or len(sizes) != len(names):
        raise DataError("did not answer with the names and sizes of its merchants")
    if not all(type(size) is int and 0 <= size <= MOST_EXAMPLES for size in sizes):
        raise DataError("announced merchants whose numbers of examples are no such numbers")
    return [(str(name), int(str(size))) for name, size in zip(names, sizes, strict=True)]


def _listed(names: Sequence[str]) -> str:
    """A few of them, each cut, and how many more there are."""
    shown = ", ".join(name[:_CUT] for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
