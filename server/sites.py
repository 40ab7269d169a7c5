"""The server's view of the sites: which merchants there are, and one question and answer each round.

Merchants are named, never numbered: which site hosts one is this file's business alone, so that a run's result
does not depend on how merchants are spread over sites.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fed_distill.errors import DataError, UplinkRejected
from fed_distill.transport.messages import Downlink, Uplink, Weights
from fed_distill.transport.records import (
    decode_uplink,
    encode_downlink,
    serialized_bytes,
    to_array_record,
    unprefixed,
)
from fed_distill.transport.requests import EVALUATE, QUERY_MERCHANTS, TRAIN, Refusal, TrainRequest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundReplies:
    """What came back in one round: uplinks ordered by merchant, refusals, and serialized bytes a merchant."""

    uplinks: tuple[Uplink, ...]
    refusals: tuple[Refusal, ...]
    downlink_bytes: float
    uplink_bytes: float


class Sites:
    """The merchants that are reachable through a Flower grid."""

    def __init__(self, grid: Grid, minimum: int = 1, poll_seconds: float = 1.0) -> None:
        """Wait until ``minimum`` sites are connected, then ask each for its merchants."""
        self._grid = grid
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < minimum:
            _log.info("waiting for sites: %d of %d are connected", len(nodes), minimum)
            time.sleep(poll_seconds)
            nodes = sorted(grid.get_node_ids())
        self._node_of: dict[str, int] = {}
        self._examples: dict[str, int] = {}
        asked = [Message(RecordDict(), node, QUERY_MERCHANTS) for node in nodes]
        replies, failures = self._ask(asked)
        for reply in replies:
            for name, examples in _announced(reply.content.config_records["merchants"]):
                if name in self._node_of:
                    raise DataError(f"merchant {name!r} is at two sites: each merchant belongs to one")
                self._node_of[name], self._examples[name] = reply.metadata.src_node_id, examples
        if not self._node_of:
            reasons = "; ".join(failure.reason for failure in failures) or "each site answered with none"
            raise DataError(f"no site has any merchant: {reasons}")

    @property
    def merchants(self) -> list[str]:
        """Names of all merchants, sorted."""
        return sorted(self._node_of)

    def train(self, request: TrainRequest, down: Downlink, starts: Mapping[str, Mapping[str, Weights]]) -> RoundReplies:
        """One round: each site trains those of ``request.merchants`` that it hosts.

        ``starts``: for merchants that begin with a student of their own, its weights by student name.
        """
        content = encode_downlink(down)
        records = {name: to_array_record(weights) for name, weights in _kinds(starts).items()}
        alone = replace(request, merchants=request.merchants[:1], students=request.students[:1])
        down_bytes = float(serialized_bytes(RecordDict({**content, "request": alone.to_record()})))
        start_bytes = {
            name: serialized_bytes(RecordDict({f"start.{name}": record})) for name, record in records.items()
        }
        messages = []
        for node, part in self._by_node(request).items():
            needed = {name for merchant in part.merchants for name in starts.get(merchant, {})}
            message = RecordDict(dict(content.items()))
            message["request"] = part.to_record()
            for name in sorted(needed):
                message[f"start.{name}"] = records[name]
            messages.append(Message(message, node, TRAIN, group_id=str(down.round)))
        uplinks: list[Uplink] = []
        up_bytes = 0
        replies, refusals = self._ask(messages)
        for reply in replies:
            for single in _singles(reply.content):
                if "refusal" in single.config_records:
                    head = single.config_records["refusal"]
                    refusals.append(Refusal(str(head.get("merchant", "")), str(head.get("reason", "no reason given"))))
                    continue
                try:
                    uplink = decode_uplink(single)
                    self._check_sender(uplink, request, reply.metadata.src_node_id, uplinks)
                except UplinkRejected as error:
                    refusals.append(Refusal("", str(error)))
                    continue
                uplinks.append(uplink)
                up_bytes += serialized_bytes(single)
        started = sum(start_bytes[name] for merchant in request.merchants for name in starts.get(merchant, {}))
        return RoundReplies(
            tuple(sorted(uplinks, key=lambda uplink: uplink.merchant)),
            tuple(refusals),
            down_bytes + started / len(request.merchants),
            up_bytes / max(len(uplinks), 1),
        )

    def evaluate(self, request: TrainRequest, weights: Weights) -> dict[str, tuple[int, int]]:
        """(right, all) test examples of each merchant that has any, under one student."""
        content = encode_downlink(Downlink(round=0, weights=weights))
        messages = []
        for node, part in self._by_node(request).items():
            message = RecordDict(dict(content.items()))
            message["request"] = part.to_record()
            messages.append(Message(message, node, EVALUATE))
        counts: dict[str, tuple[int, int]] = {}
        for reply in self._ask(messages)[0]:
            site = reply.metadata.src_node_id
            for merchant, value in reply.content.metric_records.get("counts", MetricRecord()).items():
                try:
                    self._check_owner(merchant, request, site)
                    counts[merchant] = _counts(merchant, value)
                except UplinkRejected as error:
                    _log.warning("test counts left out: %s", error)
        return dict(sorted(counts.items()))

    def _by_node(self, request: TrainRequest) -> dict[int, TrainRequest]:
        nodes: dict[int, list[int]] = {}
        for place, merchant in enumerate(request.merchants):
            nodes.setdefault(self._node_of[merchant], []).append(place)
        return {
            node: replace(
                request,
                merchants=tuple(request.merchants[place] for place in places),
                students=tuple(request.students[place] for place in places),
            )
            for node, places in sorted(nodes.items())
        }

    def _check_owner(self, merchant: str, request: TrainRequest, node: int) -> None:
        if merchant not in request.merchants or self._node_of[merchant] != node:
            raise UplinkRejected(f"a reply for merchant {merchant!r} came from site {node}, which was not asked for it")

    def _check_sender(self, uplink: Uplink, request: TrainRequest, node: int, before: Sequence[Uplink]) -> None:
        self._check_owner(uplink.merchant, request, node)
        announced = self._examples[uplink.merchant]
        if uplink.examples > announced:
            raise UplinkRejected(
                f"merchant {uplink.merchant} claims {uplink.examples} training examples, but announced {announced}"
            )
        if any(uplink.merchant == other.merchant for other in before):
            raise UplinkRejected(f"merchant {uplink.merchant} sent two uplinks in one round")

    def _ask(self, messages: Sequence[Message]) -> tuple[list[Message], list[Refusal]]:
        """The replies, and for each site that failed why."""
        answered, failures = [], []
        for reply in self._grid.send_and_receive(messages):
            if reply.has_error():
                node = reply.metadata.src_node_id
                failures.append(Refusal("", f"site {node} failed: {reply.error.reason}"))
                _log.warning("%s", failures[-1].reason)
            else:
                answered.append(reply)
        return answered, failures


def _kinds(starts: Mapping[str, Mapping[str, Weights]]) -> dict[str, Weights]:
    return {name: weights for by_name in starts.values() for name, weights in by_name.items()}


def _singles(content: RecordDict) -> list[RecordDict]:
    """The parts of a site's reply, one a merchant, in the order in which they were put in."""
    prefixes = dict.fromkeys(f"{name.partition('/')[0]}/" for name in content)
    return [unprefixed(content, prefix) for prefix in prefixes]


def _announced(record: ConfigRecord) -> list[tuple[str, int]]:
    """A site's merchants and how many training examples each has."""
    names, examples = record["names"], record["examples"]
    if not isinstance(names, list) or not isinstance(examples, list) or len(names) != len(examples):
        raise DataError("a site did not answer with the names and sizes of its merchants")
    return [(str(name), int(str(size))) for name, size in zip(names, examples, strict=True)]


def _counts(merchant: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not 0 <= value[0] <= value[1] or not value[1]:
        raise UplinkRejected(f"merchant {merchant}: {value!r} is not (right, all) of its test examples")
    return int(value[0]), int(value[1])
