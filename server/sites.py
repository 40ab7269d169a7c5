"""The server's view of the sites: which merchants there are, and one question and answer each round.

Merchants are named, never numbered: which site hosts one is this file's business alone, so that a run's result
does not depend on how merchants are spread over sites. A round's answers come in chunk by chunk, so that the
server's memory does not grow with the number of merchants.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fed_distill.errors import DataError, TrainingError, UplinkRejected
from fed_distill.privacy.promise import Spent
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink, Uplink, Weights
from fed_distill.transport.records import (
    MOST_EXAMPLES,
    by_prefix,
    encode_downlink,
    serialized_bytes,
    to_array_record,
)
from fed_distill.transport.requests import (
    EVALUATE,
    JOIN,
    QUERY_MERCHANTS,
    QUERY_PRIVACY,
    TRAIN,
    Refusal,
    TrainRequest,
    packed,
)
from server.received import Received

CHUNK_BYTES = 2 * 2**30
"""Students' weights in one chunk of a round's answers: the server, and a site's reply, hold about so much at once."""
SMALLEST_CHUNK = 16
"""Merchants in a chunk at least, however large the student: fewer would leave a site nothing to train together."""
LARGEST_CHUNK = 1024
"""Merchants in a chunk at most, however small the student: a site trains no more than so many at once with profit."""
LONGEST_REASON = 500
"""Characters of a refusal's reason that are kept."""
PLAIN = Codec()
"""Messages as ``transport.records`` writes them."""
_FIRST_PAUSE = 0.05

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
    """A chunk's messages by id, each with its site and what it asked; refusals for those that could not be sent."""

    asked: Mapping[str, tuple[int, TrainRequest]]
    refusals: tuple[Refusal, ...]
    downlink_bytes: int


class Sites:
    """The merchants that are reachable through a Flower grid."""

    def __init__(self, grid: Grid, minimum: int = 1, poll_seconds: float = 1.0) -> None:
        """Wait until ``minimum`` sites are connected, then ask each for its merchants.

        ``poll_seconds``: longest pause between two looks for sites or for replies.
        """
        self._grid = grid
        self._poll_seconds = poll_seconds
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < minimum:
            _log.info("waiting for sites: %d of %d are connected", len(nodes), minimum)
            time.sleep(poll_seconds)
            nodes = sorted(grid.get_node_ids())
        self._node_of: dict[str, int] = {}
        self._examples: dict[str, int | None] = {}
        self._public: dict[int, str] = {}
        asked = [Message(RecordDict(), node, QUERY_MERCHANTS) for node in nodes]
        replies, failures = self._ask(asked)
        for reply in replies:
            record, node = reply.content.config_records["merchants"], reply.metadata.src_node_id
            self._public[node] = str(record.get("public", ""))
            for name, examples in _announced(record):
                if name in self._node_of:
                    raise DataError(f"merchant {name!r} is at two sites: each merchant belongs to one")
                self._node_of[name], self._examples[name] = node, examples
        if not self._node_of:
            reasons = "; ".join(failure.reason for failure in failures) or "each site answered with none"
            raise DataError(f"no site has any merchant: {reasons}")
        self._merchants = sorted(self._node_of)
        self._proxy = b""

    def check_public(self, fingerprint: str) -> None:
        """DataError naming the merchants of a site whose task or proxy set is not the server's (``PublicPart``)."""
        for node, theirs in self._public.items():
            if theirs != fingerprint:
                merchants = [name for name, at in self._node_of.items() if at == node]
                raise DataError(
                    f"the site of {', '.join(merchants[:3]) or node} has other classes or another proxy set than the "
                    "server: give it the proxy.json of this experiment (fed-distill sites init --experiment)"
                )

    def choose_proxy(self, chosen: npt.NDArray[np.bool_]) -> None:
        """From now on sites use those of their proxy examples that are ``chosen``, ``[candidates]``."""
        self._proxy = packed(chosen)

    @property
    def merchants(self) -> list[str]:
        """Names of all merchants, sorted."""
        return list(self._merchants)

    def train(
        self,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Mapping[str, Weights]],
        chunk: int = LARGEST_CHUNK,
        codec: Codec = PLAIN,
        proxy_shape: tuple[int, int] | None = None,
        received: Received | None = None,
    ) -> Iterator[Chunk]:
        """One round: each site trains those of ``request.merchants`` that it hosts.

        ``starts``: for merchants that begin with a student of their own, its weights by student name. Merchants are
        cut, in sorted order, into chunks of ``chunk``; all are asked at once, so that no site waits for another, and
        answers are taken chunk by chunk as the result is iterated. ``codec``: how messages are coded; ``proxy_shape``:
        (proxy examples, classes) that soft labels must have where they are. ``received``: where soft labels are cached,
        what merchants sent before, and where it is kept now.
        """
        request = replace(request, proxy=self._proxy)
        content = codec.encode_downlink(down, (request.seed, request.arm, "server", down.round, "coding"))
        decode = partial(codec.decode_uplink, base=down.weights, proxy_shape=proxy_shape)
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
            started = sum(start_bytes[name] for merchant in part.merchants for name in starts.get(merchant, {}))
            messages = []
            for node, own in self._by_node(part).items():
                message = RecordDict(dict(content.items()))
                message["request"] = own.to_record()
                for name in sorted({name for merchant in own.merchants for name in starts.get(merchant, {})}):
                    message[f"start.{name}"] = records[name]
                messages.append((Message(message, node, TRAIN, group_id=str(down.round)), own))
            sent.append(self._push(messages, each * len(part.merchants) + started))
        return map(partial(self._collect, decode, received), sent)

    def evaluate(self, request: TrainRequest, weights: Weights) -> dict[str, tuple[int, int]]:
        """(right, all) test examples of each merchant that has any, under one student."""
        content = encode_downlink(Downlink(round=0, weights=weights))
        messages = []
        for node, part in self._by_node(request).items():
            message = RecordDict(dict(content.items()))
            message["request"] = part.to_record()
            messages.append(Message(message, node, EVALUATE))
        counts: dict[str, tuple[int, int]] = {}
        asked = frozenset(request.merchants)
        for reply in self._ask(messages)[0]:
            site = reply.metadata.src_node_id
            for merchant, value in reply.content.metric_records.get("counts", MetricRecord()).items():
                try:
                    self._check_owner(merchant, asked, site)
                    counts[merchant] = _counts(merchant, value)
                except UplinkRejected as error:
                    _log.warning("test counts left out: %s", error)
        return dict(sorted(counts.items()))

    def join(self, request: TrainRequest) -> None:
        """Have every merchant pay for a federation of which it will be drawn by a coin in each round."""
        request = replace(request, proxy=self._proxy)
        messages = [
            Message(RecordDict({"request": part.to_record()}), node, JOIN)
            for node, part in self._by_node(request).items()
        ]
        for reply in self._ask(messages)[0]:
            for record in reply.content.config_records.values():
                refusal = _refusal(record, request, reply.metadata.src_node_id)
                _log.warning("%s", refusal.reason)

    def spent(self, arm: str, seed: int) -> Spent:
        """What an arm has cost the merchants, by their ledgers, as their sites tell."""
        asked = ConfigRecord({"arm": arm, "seed": seed})
        nodes = sorted(set(self._node_of.values()))
        replies, failures = self._ask([Message(RecordDict({"request": asked}), node, QUERY_PRIVACY) for node in nodes])
        if failures:
            raise TrainingError(f"{arm}: what it cost cannot be told: {failures[0].reason}")
        return Spent.joined(_spent(reply.content.metric_records) for reply in replies)

    def _by_node(self, request: TrainRequest) -> dict[int, TrainRequest]:
        nodes: dict[int, list[int]] = {}
        for place, merchant in enumerate(request.merchants):
            nodes.setdefault(self._node_of[merchant], []).append(place)
        return {node: request.part(places) for node, places in sorted(nodes.items())}

    def _push(self, messages: Sequence[tuple[Message, TrainRequest]], downlink_bytes: int) -> _Sent:
        """Send one message at a time, which keeps the payload that a grid must take at once small."""
        asked: dict[str, tuple[int, TrainRequest]] = {}
        refusals: list[Refusal] = []
        for message, request in messages:
            node = message.metadata.dst_node_id
            keys = [key for key in self._grid.push_messages([message]) if key]
            if keys:
                asked[keys[0]] = (node, request)
            else:  # how a grid says that it could not send a message
                refusals.append(_failure(node, "its request could not be sent"))
        return _Sent(asked, tuple(refusals), downlink_bytes)

    def _collect(self, decode: Callable[[RecordDict], Uplink], received: Received | None, sent: _Sent) -> Chunk:
        """Wait for a chunk's answers; those that cannot be used are refusals."""
        uplinks: dict[str, Uplink] = {}
        refusals, uplink_bytes = list(sent.refusals), 0
        refused: set[str] = set()
        for reply, node, request in self._replies(sent.asked):
            if reply.has_error():
                refusals.append(_failure(node, reply.error.reason))
                continue
            for single in by_prefix(reply.content).values():
                if "refusal" in single.config_records:
                    refusal = _refusal(single.config_records["refusal"], request, node)
                    if refusal.merchant not in refused:
                        refused.add(refusal.merchant)
                        refusals.append(refusal)
                    continue
                try:
                    uplink = decode(single)
                    self._check_sender(uplink, request, reply.metadata.src_node_id, uplinks)
                except UplinkRejected as error:
                    refusals.append(Refusal("", _readable(str(error))))
                    continue
                uplinks[uplink.merchant] = uplink
                uplink_bytes += serialized_bytes(single)
                if received is not None:
                    received.keep(uplink)
        ordered = tuple(uplinks[merchant] for merchant in sorted(uplinks))
        return Chunk(ordered, tuple(refusals), sent.downlink_bytes, uplink_bytes)

    def _replies(self, asked: Mapping[str, tuple[int, TrainRequest]]) -> Iterator[tuple[Message, int, TrainRequest]]:
        """Each message's reply when it is there, with the site and the request; a pull gives only what is there."""
        missing, pause = dict(asked), _FIRST_PAUSE
        while missing:
            for reply in self._grid.pull_messages(list(missing)):
                yield reply, *missing.pop(reply.metadata.reply_to_message_id)
                pause = _FIRST_PAUSE
            if missing:
                time.sleep(min(pause, self._poll_seconds))
                pause *= 2

    def _check_owner(self, merchant: str, asked: Collection[str], node: int) -> None:
        if merchant not in asked or self._node_of[merchant] != node:
            raise UplinkRejected(f"a reply for merchant {merchant!r} came from site {node}, which was not asked for it")

    def _check_sender(self, uplink: Uplink, request: TrainRequest, node: int, before: Collection[str]) -> None:
        self._check_owner(uplink.merchant, request.merchants, node)
        announced = self._examples[uplink.merchant]
        if announced is not None and uplink.examples > announced:
            raise UplinkRejected(
                f"merchant {uplink.merchant} claims {uplink.examples} training examples, but announced {announced}"
            )
        if uplink.merchant in before:
            raise UplinkRejected(f"merchant {uplink.merchant} sent two uplinks in one round")

    def _ask(self, messages: Sequence[Message]) -> tuple[list[Message], list[Refusal]]:
        """The replies, and for each site that failed why."""
        answered, failures = [], []
        for reply in self._grid.send_and_receive(messages):
            if reply.has_error():
                failures.append(_failure(reply.metadata.src_node_id, reply.error.reason))
            else:
                answered.append(reply)
        return answered, failures


def _failure(node: int, reason: str | None) -> Refusal:
    refusal = Refusal("", _readable(f"site {node} failed: {reason}"))
    _log.warning("%s", refusal.reason)
    return refusal


def _chunks(request: TrainRequest, size: int) -> Iterator[TrainRequest]:
    """Requests of ``size`` consecutive merchants each, in sorted order."""
    places = sorted(range(len(request.merchants)), key=lambda place: request.merchants[place])
    for first in range(0, len(places), size):
        yield request.part(places[first : first + size])


def _kinds(starts: Mapping[str, Mapping[str, Weights]]) -> dict[str, Weights]:
    return {name: weights for by_name in starts.values() for name, weights in by_name.items()}


def _refusal(record: ConfigRecord, request: TrainRequest, node: int) -> Refusal:
    """What a site says of a merchant that did not train; of one that it was not asked for, what it did wrong."""
    merchant, reason = str(record.get("merchant", "")), str(record.get("reason", "no reason given"))
    if merchant not in request.merchants:
        return _failure(node, "it refused for merchants that it was not asked for")
    return Refusal(merchant, _readable(reason), bool(record.get("budget", False)))


def _readable(reason: str) -> str:
    """What a site says of itself, without what a log or terminal could stumble over."""
    return "".join(sign if sign.isprintable() else " " for sign in reason[:LONGEST_REASON])


def _announced(record: ConfigRecord) -> list[tuple[str, int | None]]:
    """A site's merchants and how many training examples each has, None where the site keeps that private."""
    names = record["names"]
    if "examples" not in record and isinstance(names, list):
        return [(str(name), None) for name in names]
    examples = record.get("examples")
    if not isinstance(names, list) or not isinstance(examples, list) or len(names) != len(examples):
        raise DataError("a site did not answer with the names and sizes of its merchants")
    if not all(isinstance(size, int) and 0 <= size <= MOST_EXAMPLES for size in examples):
        raise DataError("a site announced merchants whose numbers of examples are no such numbers")
    return [(str(name), int(str(size))) for name, size in zip(names, examples, strict=True)]


def _spent(records: Mapping[str, MetricRecord]) -> Spent:
    """What a site tells of its ledgers."""
    values: dict[str, Any] = dict(records["spent"])
    try:
        merchants = int(values.pop("merchants"))
        return Spent(merchants, **{name: float(value) for name, value in values.items()})
    except (TypeError, ValueError, KeyError) as error:
        raise UplinkRejected(f"a site's account of its ledgers cannot be read: {error}") from error


def _counts(merchant: str, value: object) -> tuple[int, int]:
    sound = isinstance(value, list) and len(value) == 2 and 0 <= value[0] <= value[1] <= MOST_EXAMPLES
    if not isinstance(value, list) or not sound or not value[1] or value != [int(one) for one in value]:
        raise UplinkRejected(f"merchant {merchant}: {value!r} is not (right, all) of its test examples")
    return int(value[0]), int(value[1])
