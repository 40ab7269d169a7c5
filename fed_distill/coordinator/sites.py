"""The server's view of the sites: which merchants there are, and one question and answer each round.

Merchants are named, never numbered: which site hosts one is this file's business alone, so that a run's result
does not depend on how merchants are spread over sites. A round's answers come in chunk by chunk, so that the
server's memory does not grow with the number of merchants.
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

CHUNK_BYTES = 2 * 2**30
"""Students' weights in one chunk of a round's answers: the server, and a site's reply, hold about so much at once."""
SMALLEST_CHUNK = 16
"""Merchants in a chunk at least, however large the student: fewer would leave a site nothing to train together."""
LARGEST_CHUNK = 1024
"""Merchants in a chunk at most, however small the student: a site trains no more than so many at once with profit."""
PLAIN = Codec()
"""Messages as ``transport.records`` writes them."""
TOLD_BY_SITES: Mapping[str, Cause] = {"budget": "budget", "hours": "hours"}
"""Causes of a refusal that a site may name beside a fault: whether it is late or absent is not its to say."""

_log = logging.getLogger(__name__)


def chunk_size(student_bytes: int) -> int:
    """Merchants in a chunk, for students of ``student_bytes``: as many as fit ``CHUNK_BYTES``, within both limits."""
    return min(max(CHUNK_BYTES // student_bytes, SMALLEST_CHUNK), LARGEST_CHUNK)


@dataclass(frozen=True)
class Chunk:
    """What came back from consecutive merchants: uplinks ordered by merchant, refusals, and serialized bytes.

    downlink_bytes: sum over the merchants asked, each as if it had been sent a message of its own. uplink_bytes: sum
    over ``uplinks``.
    """

    uplinks: tuple[Uplink, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    downlink_bytes: int = 0
    uplink_bytes: int = 0


@dataclass(frozen=True)
class _Sent:
    """A chunk's messages: by id the site and what it asked, and refusals for those that were not sent.

    title: what answers must say that they answer (``TrainRequest.title``).
    """

    asked: Mapping[str, tuple[int, TrainRequest]]
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
        """Ask each site for its merchants, until ``minimum`` sites that are of use are there.

        ``poll_seconds``: longest pause between two looks for sites or for replies. ``deadline``: seconds to wait for
        answers to what is no round; None for however long it takes. ``public``: fingerprint of the task and proxy set
        that sites must have (``PublicPart``); None for any.
        """
        self._exchange = Exchange(grid, poll_seconds)
        self._deadline = deadline
        self._roster = Roster(self._exchange, minimum, deadline, public)
        self._proxy = b""

    def away(self) -> frozenset[str]:
        """The merchants whose site is not there now, after a look at who is."""
        return self._roster.away()

    def choose_proxy(self, chosen: npt.NDArray[np.bool_]) -> None:
        """From now on sites use those of their proxy examples that are ``chosen``, ``[candidates]``."""
        self._proxy = packed(chosen)

    @property
    def merchants(self) -> list[str]:
        """Names of all merchants, sorted."""
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
        """One round: each site that is there trains those of ``request.merchants`` that it hosts.

        ``starts``: for merchants that begin with a student of their own, its weights by student name. Merchants are
        cut, in sorted order, into chunks of ``chunk``; all are asked at once, so that no site waits for another, and
        answers are taken chunk by chunk as the result is iterated. ``codec``: how messages are coded; ``kinds``: of
        payloads that uplinks may hold, which must fit ``context``. ``received``: where soft labels are cached,
        what merchants sent before, and where it is kept now. ``deadline``: seconds to wait for answers; None for
        however long it takes. ``away``: merchants whose site is not there, if that was just looked for. ``weights``: of
        the global student, if other than ``down`` has: an uplink may be as large as they let it be.
        """
        away = self._roster.away() if away is None else away
        until = Deadline(deadline)
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
                Refusal(name, f"merchant {name}: its site is away", "absent") for name in part.merchants if name in away
            )
            size = each * len(there.merchants) + started
            sent.append(replace(pushed, refusals=absent + pushed.refusals, downlink_bytes=size))
        return map(partial(self._collect, decode, received, until, set()), sent)

    def evaluate(self, request: TrainRequest, weights: Weights) -> tuple[dict[str, tuple[int, int]], list[str]]:
        """(right, all) test examples of each merchant that has any, under one student; and of whom nothing is told, as
        their sites do not answer or keep that to themselves."""
        content = encode_downlink(Downlink(0, (StudentWeights(weights),)))
        parts = self._by_node(request)
        asked = {node: part.merchants for node, part in parts.items()}
        contents = {node: RecordDict({**content, "request": part.to_record()}) for node, part in parts.items()}
        counts: dict[str, tuple[int, int]] = {}
        answered, _ = self._exchange.ask(contents, EVALUATE, self._deadline)
        for node, answer in answered.items():
            found = answer.metric_records.get("counts", MetricRecord())
            own = [name for name in asked[node] if name in found]
            if len(found) > len(own):
                self._tell_unasked(node, len(found) - len(own))
            for merchant in own:
                try:
                    counts[merchant] = _counts(merchant, found[merchant])
                except UplinkRejected as error:
                    _log.warning("test counts left out: %s", readable(str(error)))
        untold = [name for name in request.merchants if name not in counts]
        return {name: found for name, found in sorted(counts.items()) if found[1]}, untold

    def join(self, request: TrainRequest) -> None:
        """Have every merchant pay for a federation of which it will be drawn by a coin in each round; who is away now
        pays when it first takes part."""
        request = replace(request, proxy=self._proxy)
        parts = self._by_node(request)
        contents = {node: RecordDict({"request": part.to_record()}) for node, part in parts.items()}
        answered, _ = self._exchange.ask(contents, JOIN, self._deadline)
        for node, answer in answered.items():
            refused, unasked = by_merchant(answer, parts[node].places)
            if unasked:
                self._tell_unasked(node, unasked)
            for merchant, single in refused.items():
                if "refusal" in single.config_records:
                    _log.warning("%s", _refusal(merchant, single.config_records["refusal"]).reason)

    def spent(self, arm: str, seed: int) -> Spent:
        """What an arm has cost the merchants, by their ledgers, as their sites tell; of some it may stay untold."""
        asked = ConfigRecord({"arm": arm, "seed": seed})
        contents = {node: RecordDict({"request": asked}) for node in self._roster.nodes()}
        answered, silent = self._exchange.ask(contents, QUERY_PRIVACY, self._deadline)
        hosted = Counter(map(self._roster.node_of, self.merchants))
        known = [
            _spent(self._exchange.title(node), answer.metric_records, hosted[node]) for node, answer in answered.items()
        ]
        return Spent.joined([*known, Spent(untold=len(silent))])

    def _by_node(self, request: TrainRequest) -> dict[int, TrainRequest]:
        """The request to each site for its own merchants; who is nowhere is asked nothing."""
        nodes: dict[int, list[int]] = {}
        for place, merchant in enumerate(request.merchants):
            nodes.setdefault(self._roster.node_of(merchant), []).append(place)
        return {node: request.part(places) for node, places in sorted(nodes.items()) if node != NOWHERE}

    def _push(self, messages: Sequence[tuple[RecordDict, int, TrainRequest]], title: str, until: Deadline) -> _Sent:
        asked: dict[str, tuple[int, TrainRequest]] = {}
        refusals: list[Refusal] = []
        for content, node, request in messages:
            key = self._exchange.send(content, node, TRAIN, until, title)
            if isinstance(key, NoReply):
                refusals += _refusals(key, request)
            else:
                asked[key] = (node, request)
        return _Sent(asked, tuple(refusals), 0, title)

    def _collect(
        self,
        decode: Callable[[RecordDict], Uplink],
        received: ReceivedSoftLabels | None,
        until: Deadline,
        odd: set[int],
        sent: _Sent,
    ) -> Chunk:
        """Wait for a chunk's answers; those that cannot be used are refusals.

        A site answers once for each merchant that it is asked for, and nothing else of its reply is looked into. odd:
        sites that have been refused for more in this round.
        """
        uplinks: dict[str, Uplink] = {}
        refusals, uplink_bytes = list(sent.refusals), 0
        for key, reply in self._exchange.replies({key: node for key, (node, _) in sent.asked.items()}, until):
            node, request = sent.asked[key]
            silence = reply if isinstance(reply, NoReply) else self._replayed(reply, node, sent.title)
            if silence is not None:
                refusals += _refusals(silence, request)
                continue
            assert isinstance(reply, Message)
            content = RecordDict({name: record for name, record in reply.content.items() if name != ANSWER})
            answers, unasked = by_merchant(content, request.places)
            if unasked and node not in odd:
                odd.add(node)
                refusals.append(Refusal("", self._tell_unasked(node, unasked)))
            for merchant in request.merchants:
                single = answers.get(merchant)
                if single is None:
                    reason = f"merchant {merchant}: {self._exchange.title(node)} sent nothing for it"
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

    def _tell_unasked(self, node: int, number: int) -> str:
        """Say that a site has sent more than it was asked for, which is dropped."""
        reason = f"{self._exchange.title(node)} sent what it was not asked for; answers dropped: {number:,}"
        return log_failure(NoReply(node, reason)).reason

    def _replayed(self, reply: Message, node: int, title: str) -> NoReply | None:
        """A NoReply for a reply that does not say that it answers this very request, but one of an earlier round."""
        to = reply.content.config_records.get(ANSWER, ConfigRecord()).get("to")
        if to == title:
            return None
        theirs = readable("nothing that it names" if to is None else str(to))
        site = self._exchange.title(node)
        return log_failure(NoReply(node, f"{site} failed: it was asked for {title}, and its reply is to {theirs}"))

    def _check_size(self, uplink: Uplink) -> None:
        announced = self._roster.announced(uplink.merchant)
        if announced is not None and uplink.examples > announced:
            raise UplinkRejected(f"it claims {uplink.examples} training examples, but announced {announced}")


def _refusals(silence: NoReply, request: TrainRequest) -> list[Refusal]:
    """A site without a usable answer: of those that may have one another time, each merchant is named."""
    if silence.cause == "fault":
        return [Refusal("", silence.reason)]
    return [Refusal(name, f"merchant {name}: {silence.reason}", silence.cause) for name in request.merchants]


def _chunks(request: TrainRequest, size: int) -> Iterator[TrainRequest]:
    """Requests of ``size`` consecutive merchants each, in sorted order."""
    places = sorted(range(len(request.merchants)), key=lambda place: request.merchants[place])
    for first in range(0, len(places), size):
        yield request.part(places[first : first + size])


def _kinds(starts: Mapping[str, Mapping[str, Weights]]) -> dict[str, Weights]:
    return {name: weights for by_name in starts.values() for name, weights in by_name.items()}


def _refusal(merchant: str, record: ConfigRecord) -> Refusal:
    """What a site says of a merchant that did not train."""
    reason = str(record.get("reason", "no reason given"))
    return Refusal(merchant, _about(merchant, reason), TOLD_BY_SITES.get(str(record.get("cause")), "fault"))


def _about(merchant: str, reason: str) -> str:
    """A reason that names its merchant."""
    name = f"merchant {merchant}"
    return readable(reason if name in reason else f"{name}: {reason}")


def _spent(site: str, records: Mapping[str, MetricRecord], hosted: int) -> Spent:
    """What a site tells of the ledgers of its ``hosted`` merchants, or that it tells nothing that could be believed."""
    try:
        told = {name: float(str(value)) for name, value in records["spent"].items()}
        bounded = {name: value for name, value in told.items() if not name.startswith("epsilon")}
        if not all(value >= 0.0 for value in told.values()) or not all(map(math.isfinite, bounded.values())):
            raise ValueError("a number that is none, negative or without end")
        merchants = int(told["merchants"])
        if merchants != told["merchants"] or not merchants <= hosted or told["delta"] > 1.0:
            raise ValueError(f"{told['merchants']:g} of {hosted} merchants, and delta = {told['delta']:g}")
        return Spent(
            merchants,
            told["epsilon"],
            told["delta"],
            told["noise_least"],
            told["noise_most"],
            epsilon_5=told["epsilon_5"],
            epsilon_6=told["epsilon_6"],
        )
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        _log.warning("what %s tells of its ledgers cannot be read: %s", site, readable(str(error)))
        return Spent(untold=1)


def _counts(merchant: str, value: object) -> tuple[int, int]:
    sound = isinstance(value, list) and len(value) == 2 and 0 <= value[0] <= value[1] <= MOST_EXAMPLES
    if not isinstance(value, list) or not sound or value != [int(one) for one in value]:
        raise UplinkRejected(f"merchant {merchant}: {value!r} is not (right, all) of its test examples")
    return int(value[0]), int(value[1])
