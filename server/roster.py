"""Which merchants there are, which site hosts each, and which of the sites are there now.

The merchants of a run are those that are there when it begins: by them it samples and plans budgets. Their sites may
leave and come back, also as another Flower node; a site that comes back is asked anew what it has.
"""

import logging
import time
from collections.abc import Collection, Iterable

from flwr.app import ConfigRecord, RecordDict

from fed_distill.errors import DataError
from fed_distill.results.versions import versions
from fed_distill.transport.records import MOST_EXAMPLES
from fed_distill.transport.requests import PROTOCOL, QUERY_MERCHANTS
from server.exchange import Exchange, Silence, readable, told

INTRODUCTION = 60.0
"""Seconds that a site which comes back in a run without a deadline has to say what it has, until the next round."""
NOWHERE = 0
"""In place of the site of a merchant that its site came back without; no node of Flower's has this id."""

_log = logging.getLogger(__name__)


class Roster:
    """The merchants behind an exchange."""

    def __init__(self, exchange: Exchange, minimum: int = 1, deadline: float | None = None) -> None:
        """Wait until ``minimum`` sites are connected and have said what they have; ``deadline``: seconds for that,
        after which a site is asked again. DataError if there is no merchant then, or one at two sites."""
        self._exchange, self._deadline = exchange, deadline
        self._node_of: dict[str, int] = {}
        self._examples: dict[str, int | None] = {}
        self._public: dict[int, str] = {}
        self._there: frozenset[int] = frozenset()
        self._doubles: set[int] = set()
        self._fingerprint: str | None = None
        failures = self._gather(minimum)
        if not self._node_of:
            reasons = "; ".join(failure.reason for failure in failures) or "each site answered with none"
            raise DataError(f"no site has any merchant: {reasons}")
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

    def check_public(self, fingerprint: str) -> None:
        """DataError naming the merchants of a site whose task or proxy set is not the server's (``PublicPart``).

        Of a site that comes back later, the merchants stay away instead.
        """
        self._fingerprint = fingerprint
        for node, theirs in self._public.items():
            if theirs != fingerprint:
                raise DataError(self._foreign(node, [name for name, at in self._node_of.items() if at == node]))

    def away(self) -> frozenset[str]:
        """Look which sites are there, take in who came back, and tell the merchants whose site is away."""
        now = frozenset(self._exchange.nodes())
        for gone in sorted(self._there - now):
            _log.warning("site %d is away", gone)
        if self._there - now:  # whoever came before its former self was missed has its merchants now
            self._there, self._doubles = self._there - self._doubles, set()
        self._there &= now
        seconds = INTRODUCTION if self._deadline is None else min(INTRODUCTION, self._deadline)
        answered, _ = self._introduced(now - self._there, seconds)
        for node, record in answered.items():
            self._take_back(node, record)
        return frozenset(name for name, node in self._node_of.items() if node not in self._there)

    def _gather(self, minimum: int) -> list[Silence]:
        """Take in all sites that are connected, at least ``minimum``; those that failed."""
        failed: dict[int, Silence] = {}
        while True:
            new = frozenset(self._exchange.nodes()) - self._there - failed.keys()
            answered, silent = self._introduced(new, self._deadline)
            failed |= {one.node: one for one in silent if one.cause == "fault"}
            for node, record in answered.items():
                self._take_in(node, record)
            if len(self._there) + len(failed) >= minimum:
                return list(failed.values())
            _log.info("waiting for sites: %d of %d are connected", len(self._there), minimum)
            time.sleep(self._exchange.poll_seconds)

    def _introduced(
        self, nodes: Collection[int], seconds: float | None
    ) -> tuple[dict[int, ConfigRecord], list[Silence]]:
        """What sites say that they have, and those that do not say it or speak another protocol."""
        asked = {node: RecordDict() for node in sorted(nodes)}
        answered, silent = self._exchange.ask(asked, QUERY_MERCHANTS, seconds) if asked else ({}, [])
        fit = {}
        for node, content in sorted(answered.items()):
            record = content.config_records.get("merchants", ConfigRecord())
            theirs = str(record.get("protocol", "unknown"))
            if theirs != str(PROTOCOL):
                reason = (
                    f"site {node} speaks protocol {theirs} and this server {PROTOCOL}: install fed-distill "
                    f"{versions()['fed-distill']} there ({_versions(record)})"
                )
                silent.append(told(Silence(node, readable(reason))))
                continue
            self._compare_versions(node, record)
            fit[node] = record
        return fit, silent

    def _take_in(self, node: int, record: ConfigRecord) -> None:
        """A site at the beginning of a run."""
        for name, examples in _announced(record):
            if name in self._node_of:
                raise DataError(f"merchant {name!r} is at two sites: each merchant belongs to one")
            self._node_of[name], self._examples[name] = node, examples
        self._public[node] = str(record.get("public", ""))
        self._there |= {node}

    def _take_back(self, node: int, record: ConfigRecord) -> None:
        """A site that comes in the middle of a run; nothing that is wrong with it may stop the others."""
        try:
            announced = _announced(record)
        except DataError as error:
            _log.warning("site %d is left out: %s", node, error)
            return
        if self._fingerprint is not None and str(record.get("public", "")) != self._fingerprint:
            _log.warning("%s", self._foreign(node, [name for name, _ in announced]))
            return
        self._there |= {node}
        for name in (name for name, at in self._node_of.items() if at == node):
            self._node_of[name] = NOWHERE
        taken = []
        for name, examples in announced:
            if name not in self._node_of:
                _log.warning(
                    "merchant %r of site %d was not there when the run began: it can join the next", name, node
                )
            elif self._node_of[name] != node and self._node_of[name] in self._there:
                _log.warning("merchant %r is at two sites: it stays with site %d", name, self._node_of[name])
                self._doubles.add(node)
            else:
                self._node_of[name], self._examples[name] = node, examples
                taken.append(name)
        _log.warning("site %d is back, with %s", node, ", ".join(taken) or "no merchant of this run")

    def _foreign(self, node: int, merchants: Iterable[str]) -> str:
        return (
            f"the site of {', '.join(list(merchants)[:3]) or node} has other classes or another proxy set than the "
            "server: give it this experiment's proxy.json "
            "(fed-distill sites init FOLDER --sites SITE --experiment FILE)"
        )

    def _compare_versions(self, node: int, record: ConfigRecord) -> None:
        here = " ".join(f"{name} {version}" for name, version in versions().items())
        if (theirs := _versions(record)) not in ("", here):
            told(Silence(node, readable(f"site {node} has {theirs}, the server {here}: results may differ a little")))


def _versions(record: ConfigRecord) -> str:
    told_versions = record.get("versions", [])
    return " ".join(map(str, told_versions)) if isinstance(told_versions, list) else ""


def _announced(record: ConfigRecord) -> list[tuple[str, int | None]]:
    """A site's merchants and how many training examples each has, None where the site keeps that private."""
    names = record.get("names")
    if "examples" not in record and isinstance(names, list):
        return [(str(name), None) for name in names]
    examples = record.get("examples")
    if not isinstance(names, list) or not isinstance(examples, list) or len(names) != len(examples):
        raise DataError("a site did not answer with the names and sizes of its merchants")
    if not all(isinstance(size, int) and 0 <= size <= MOST_EXAMPLES for size in examples):
        raise DataError("a site announced merchants whose numbers of examples are no such numbers")
    return [(str(name), int(str(size))) for name, size in zip(names, examples, strict=True)]
