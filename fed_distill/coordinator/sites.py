"""The server's view of the sites: the merchants, and one request and reply per round.

Merchants are identified by name. Only this module maps merchants to sites, so that results do not depend on the
assignment. A round's answers are processed in chunks, so that the server's memory does not grow with the number of
merchants.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fed_distill.coordinator.exchange import Deadline, Exchange, NoReply, log_failure, readable
from fed_distill.coordinator.received import ReceivedSoftLabels
from fed_distill.coordinator.roster import NOWHERE, Roster
from fed_distill.errors import UplinkRejected
from fed_distill.mechanisms.account import Spent
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Context
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink, Kinds, Uplink
from fed_distill.transport.records import (
    MOST_EXAMPLES,
    by_merchant,
    encode_downlink,
    serialized_bytes,
    to_array_record,
)
from fed_distill.transport.requests import (
    ANSWER,
    EVALUATE,
    JOIN,
    QUERY_PRIVACY,
    TRAIN,
    Cause,
    Refusal,
    TrainRequest,
    packed,
)
from fed_distill.transport.values import check_values

CHUNK_BYTES = 2 * 2**30
"""Bytes of students' weights in one chunk of answers, about the memory for them at the server and in a site's reply."""
SMALLEST_CHUNK = 16
"""Minimum number of merchants in a chunk, independent of the student's size, so that a site can train a cohort."""
LARGEST_CHUNK = 1024
"""Maximum number of merchants in a chunk, independent of the student's size: larger cohorts are not faster."""
PLAIN = Codec()
"""The codec without compression."""
CAUSES_FROM_SITES: Mapping[str, Cause] = {"budget": "budget", "hours": "hours"}
"""Causes of a refusal that a site may report beside a fault; only the server sets ``late`` and ``absent``."""

_log = logging.getLogger(__name__)


def chunk_size(student_bytes: int) -> int:
    """Return the number of merchants in a chunk: as many students as fit ``CHUNK_BYTES``, within both limits."""
    return min(max(CHUNK_BYTES // student_bytes, SMALLEST_CHUNK), LARGEST_CHUNK)


@dataclass(frozen=True)
class Chunk:
    """Answers of consecutive merchants: uplinks ordered by merchant, refusals, and serialized bytes.

    downlink_bytes: sum over the requested merchants, as if each had received its own message. uplink_bytes: sum over
    ``uplinks``.
    """

    uplinks: tuple[Uplink, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    downlink_bytes: int = 0
    uplink_bytes: int = 0


@dataclass(frozen=True)
class _Sent:
    """A chunk's messages: site and request by message id, and refusals for messages that could not be sent.

    title: title that replies must refer to (``TrainRequest.title``).
    """

    requests: Mapping[str, tuple[int, TrainRequest]]
    refusals: tuple[Refusal, ...]
    downlink_bytes: int
    title: str


class Sites:
    """The merchants that are reachable through a Flower grid."""

    def __init__(
        self,
        grid: Grid,
        minimum: int = 1,
        poll_seconds: float = 1.0,
        deadline: float | None = None,
        public: str | None = None,
    ) -> None:
        """Request the merchants of each site, until ``minimum`` usable sites are connected.

        :param poll_seconds: maximum polling interval for sites and replies
        :param deadline: seconds to wait for replies outside of rounds; None: no limit
        :param public: required fingerprint of the sites' task and proxy set (``PublicPart``); None: any
        """
        self._exchange = Exchange(grid, poll_seconds)
        self._deadline = deadline
        self._roster = Roster(self._exchange, minimum, deadline, public)
        self._proxy = b""

    def away(self) -> frozenset[str]:
        """Update the connected sites, and return the merchants whose site is offline."""
        return self._roster.away()

    def choose_proxy(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Restrict the sites' proxy sets to the ``chosen`` examples, bool ``[candidates]``, in all later requests."""
        self._proxy = packed(chosen)

    @property
    def merchants(self) -> list[str]:
        """Return the sorted names of all merchants."""
        return list(self._roster.merchants)

    def train(
        self,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Mapping[str, Weights]],
        chunk: int = LARGEST_CHUNK,
        codec: Codec = PLAIN,
        kinds: Kinds = (),
        context: Context | None = None,
        received: ReceivedSoftLabels | None = None,
        deadline: float | None = None,
        away: frozenset[str] | None = None,
    ) -> Iterator[Chunk]:
        """Run one round: each connected site trains its merchants of ``request.merchants``.

        Merchants are divided, in sorted order, into chunks. All requests are sent at once, so that sites do not wait
        for each other, and replies are processed chunk by chunk as the result is iterated.

        :param starts: initial weights by student name, for merchants without an own student
        :param chunk: number of merchants in a chunk
        :param codec: compression of messages
        :param kinds: allowed payloads of uplinks, which must fit ``context``
        :param received: cache of merchants' soft labels, if they are cached
        :param deadline: seconds to wait for replies; None: no limit
        :param away: merchants whose site is offline, if that was just updated
        :raises TrainingError: a part of the downlink is not finite; nothing was sent
        """
        away = self._roster.away() if away is None else away
        until = Deadline(deadline)
        check_values(down, _kinds(starts), f"{request.title(down.round)}: ")
        request = replace(request, proxy=self._proxy)
        content = codec.encode_downlink(down, (request.seed, request.arm, "server", down.round, "coding"))
        context = context or Context(down.weights, 0, 0)
        room, shape = codec.room_for(kinds, context), (context.proxy, context.classes)
        decode = partial(codec.decode_uplink, kinds=kinds, base=down.weights, proxy_shape=shape, room=room)
        if received is not None:
            decode = partial(decode, known=received.of)
        records = {name: to_array_record(weights) for name, weights in _kinds(starts).items()}
        alone = request.part([0])
        each = serialized_bytes(RecordDict({**content, "request": alone.to_record()}))
        start_bytes = {
            name: serialized_bytes(RecordDict({f"start.{name}": record})) for name, record in records.items()
        }
        sent = []
        for part in _chunks(request, chunk):
            there = part.part([place for place, name in enumerate(part.merchants) if name not in away])
            started = sum(start_bytes[name] for merchant in there.merchants for name in starts.get(merchant, {}))
            messages = []
            for node, own in self._by_node(there).items():
                message = RecordDict(dict(content.items()))
                message["request"] = own.to_record()
                for name in sorted({name for merchant in own.merchants for name in starts.get(merchant, {})}):
                    message[f"start.{name}"] = records[name]
                messages.append((message, node, own))
            pushed = self._push(messages, request.title(down.round), until)
            absent = tuple(
                Refusal(name, f"merchant {name}: its site is offline", "absent")
                for name in part.merchants
                if name in away
            )
            size = each * len(there.merchants) + started
            sent.append(replace(pushed, refusals=absent + pushed.refusals, downlink_bytes=size))
        return map(partial(self._collect, decode, received, until, set()), sent)

    def evaluate(self, request: TrainRequest, weights: Weights) -> tuple[dict[str, tuple[int, int]], list[str]]:
        """Evaluate one student at the merchants.

        :return: (correct, all) test examples by merchant with test examples, and the merchants whose sites did not
            report them
        """
        down = Downlink(0, (StudentWeights(weights),))
        check_values(down, {}, f"{request.arm}, seed {request.seed}, evaluation at merchants: ")
        content = encode_downlink(down)
        parts = self._by_node(request)
        requested = {node: part.merchants for node, part in parts.items()}
        contents = {node: RecordDict({**content, "request": part.to_record()}) for node, part in parts.items()}
        counts: dict[str, tuple[int, int]] = {}
        answered, _ = self._exchange.ask(contents, EVALUATE, self._deadline)
        for node, answer in answered.items():
            found = answer.metric_records.get("counts", MetricRecord())
            own = [name for name in requested[node] if name in found]
            if len(found) > len(own):
                self._log_unrequested(node, len(found) - len(own))
            for merchant in own:
                try:
                    counts[merchant] = _counts(merchant, found[merchant])
                except UplinkRejected as error:
                    _log.warning("invalid test counts are ignored: %s", readable(str(error)))
        unreported = [name for name in request.merchants if name not in counts]
        return {name: found for name, found in sorted(counts.items()) if found[1]}, unreported

    def join(self, request: TrainRequest) -> None:
        """Charge every merchant for a federation with Poisson sampling; merchants that are offline are charged when
        they first participate."""
        request = replace(request, proxy=self._proxy)
        parts = self._by_node(request)
        contents = {node: RecordDict({"request": part.to_record()}) for node, part in parts.items()}
        answered, _ = self._exchange.ask(contents, JOIN, self._deadline)
        for node, answer in answered.items():
            refused, unrequested = by_merchant(answer, parts[node].places)
            if unrequested:
                self._log_unrequested(node, unrequested)
            for merchant, single in refused.items():
                if "refusal" in single.config_records:
                    _log.warning("%s", _refusal(merchant, single.config_records["refusal"]).reason)

    def spent(self, arm: str, seed: int) -> Spent:
        """Return the merchants' spent budgets in an arm, as reported by their sites from the ledgers."""
        request = ConfigRecord({"arm": arm, "seed": seed})
        contents = {node: RecordDict({"request": request}) for node in self._roster.nodes()}
        answered, silent = self._exchange.ask(contents, QUERY_PRIVACY, self._deadline)
        hosted = Counter(map(self._roster.node_of, self.merchants))
        known = [
            _spent(self._exchange.title(node), answer.metric_records, hosted[node]) for node, answer in answered.items()
        ]
        return Spent.joined([*known, Spent(untold=len(silent))])

    def _by_node(self, request: TrainRequest) -> dict[int, TrainRequest]:
        """Split the request by site; merchants without a site are omitted."""
        nodes: dict[int, list[int]] = {}
        for place, merchant in enumerate(request.merchants):
            nodes.setdefault(self._roster.node_of(merchant), []).append(place)
        return {node: request.part(places) for node, places in sorted(nodes.items()) if node != NOWHERE}

    def _push(self, messages: Sequence[tuple[RecordDict, int, TrainRequest]], title: str, until: Deadline) -> _Sent:
        pushed: dict[str, tuple[int, TrainRequest]] = {}
        refusals: list[Refusal] = []
        for content, node, request in messages:
            key = self._exchange.send(content, node, TRAIN, until, title)
            if isinstance(key, NoReply):
                refusals += _refusals(key, request)
            else:
                pushed[key] = (node, request)
        return _Sent(pushed, tuple(refusals), 0, title)

    def _collect(
        self,
        decode: Callable[[RecordDict], Uplink],
        received: ReceivedSoftLabels | None,
        until: Deadline,
        odd: set[int],
        sent: _Sent,
    ) -> Chunk:
        """Wait for a chunk's answers; unusable ones become refusals.

        Of each reply, only the first answer for each requested merchant is read. odd: sites with unrequested answers in
        this round, which are refused once.
        """
        uplinks: dict[str, Uplink] = {}
        refusals, uplink_bytes = list(sent.refusals), 0
        for key, reply in self._exchange.replies({key: node for key, (node, _) in sent.requests.items()}, until):
            node, request = sent.requests[key]
            silence = reply if isinstance(reply, NoReply) else self._replayed(reply, node, sent.title)
            if silence is not None:
                refusals += _refusals(silence, request)
                continue
            assert isinstance(reply, Message)
            content = RecordDict({name: record for name, record in reply.content.items() if name != ANSWER})
            answers, unrequested = by_merchant(content, request.places)
            if unrequested and node not in odd:
                odd.add(node)
                refusals.append(Refusal("", self._log_unrequested(node, unrequested)))
            for merchant in request.merchants:
                single = answers.get(merchant)
                if single is None:
                    reason = f"merchant {merchant}: {self._exchange.title(node)} sent no answer for it"
                    refusals.append(Refusal(merchant, reason))
                    continue
                if "refusal" in single.config_records:
                    refusals.append(_refusal(merchant, single.config_records["refusal"]))
                    continue
                try:
                    uplink = decode(single)
                    self._check_size(uplink)
                except UplinkRejected as error:
                    refusals.append(Refusal(merchant, _about(merchant, str(error))))
                    continue
                uplinks[merchant] = uplink
                uplink_bytes += serialized_bytes(single)
                if received is not None:
                    received.keep(uplink)
        ordered = tuple(uplinks[merchant] for merchant in sorted(uplinks))
        return Chunk(ordered, tuple(refusals), sent.downlink_bytes, uplink_bytes)

    def _log_unrequested(self, node: int, number: int) -> str:
        """Log that a site sent unrequested answers, which are dropped."""
        reason = f"{self._exchange.title(node)} sent unrequested answers; dropped: {number:,}"
        return log_failure(NoReply(node, reason)).reason

    def _replayed(self, reply: Message, node: int, title: str) -> NoReply | None:
        """Return a NoReply for a reply to another request, for example of an earlier round."""
        to = reply.content.config_records.get(ANSWER, ConfigRecord()).get("to")
        if to == title:
            return None
        theirs = readable("no named request" if to is None else str(to))
        site = self._exchange.title(node)
        return log_failure(NoReply(node, f"{site} failed: the request was {title}, but its reply is to {theirs}"))

    def _check_size(self, uplink: Uplink) -> None:
        announced = self._roster.announced(uplink.merchant)
        if announced is not None and uplink.examples > announced:
            raise UplinkRejected(f"it has {uplink.examples} training examples, but announced {announced}")


def _refusals(silence: NoReply, request: TrainRequest) -> list[Refusal]:
    """Return a refusal for each requested merchant of a site without a usable reply."""
    if silence.cause == "fault":
        return [Refusal("", silence.reason)]
    return [Refusal(name, f"merchant {name}: {silence.reason}", silence.cause) for name in request.merchants]


def _chunks(request: TrainRequest, size: int) -> Iterator[TrainRequest]:
    """Yield requests for ``size`` consecutive merchants each, in sorted order."""
    places = sorted(range(len(request.merchants)), key=lambda place: request.merchants[place])
    for first in range(0, len(places), size):
        yield request.part(places[first : first + size])


def _kinds(starts: Mapping[str, Mapping[str, Weights]]) -> dict[str, Weights]:
    return {name: weights for by_name in starts.values() for name, weights in by_name.items()}


def _refusal(merchant: str, record: ConfigRecord) -> Refusal:
    """Parse a site's refusal of a merchant."""
    reason = str(record.get("reason", "no reason given"))
    return Refusal(merchant, _about(merchant, reason), CAUSES_FROM_SITES.get(str(record.get("cause")), "fault"))


def _about(merchant: str, reason: str) -> str:
    """Add the merchant's name to a reason that lacks it."""
    name = f"merchant {merchant}"
    return readable(reason if name in reason else f"{name}: {reason}")


def _spent(site: str, records: Mapping[str, MetricRecord], hosted: int) -> Spent:
    """Parse a site's report on the ledgers of its ``hosted`` merchants; an invalid one is logged and ignored."""
    try:
        reported = {name: float(str(value)) for name, value in records["spent"].items()}
        bounded = {name: value for name, value in reported.items() if not name.startswith("epsilon")}
        if not all(value >= 0.0 for value in reported.values()) or not all(map(math.isfinite, bounded.values())):
            raise ValueError("a number is missing, negative or not finite")
        merchants = int(reported["merchants"])
        if merchants != reported["merchants"] or not merchants <= hosted or reported["delta"] > 1.0:
            raise ValueError(f"{reported['merchants']:g} of {hosted} merchants, and delta = {reported['delta']:g}")
        return Spent(
            merchants,
            reported["epsilon"],
            reported["delta"],
            reported["noise_least"],
            reported["noise_most"],
            epsilon_5=reported["epsilon_5"],
            epsilon_6=reported["epsilon_6"],
        )
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        _log.warning("the report of %s on its ledgers is invalid: %s", site, readable(str(error)))
        return Spent(untold=1)


def _counts(merchant: str, value: object) -> tuple[int, int]:
    sound = isinstance(value, list) and len(value) == 2 and 0 <= value[0] <= value[1] <= MOST_EXAMPLES
    if not isinstance(value, list) or not sound or value != [int(one) for one in value]:
        raise UplinkRejected(f"merchant {merchant}: {value!r} is not (correct, all) test examples")
    return int(value[0]), int(value[1])
