"""Flower's own strategies as aggregators: the merchants' weights are passed to ``aggregate_train`` as messages.

Flower's strategies merge weights, so that updates are added to the global weights before they are merged. Server
optimizers (FedAvgM, FedAdam ...) use the merchants' mean: they receive this mean, computed here in one pass, as the
only message. Robust strategies compare merchants and receive all of them, so that their memory grows with the number of
merchants; weights that a merchant did not send are as in the downlink. Arrays are passed in the order of their names,
as some strategies identify them by position.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.serverapp import strategy as flower
from pydantic import Field
from torch import Tensor

from fed_distill.aggregation.running import mean_weights
from fed_distill.config import PositiveFloat
from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.models.weights import Weights, updated
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink

_MOMENTS = ("m_t", "v_t")
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


@dataclass
class _FlowerAggregator:
    """Runs one Flower strategy, given by the subclass, whose fields are the strategy's options.

    The strategy receives every merchant's whole weights, all in memory at once.
    """

    strategy: ClassVar[type[flower.FedAvg]]
    _running: flower.FedAvg = field(init=False, repr=False)
    _merges: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        options = {option.name: getattr(self, option.name) for option in fields(self) if option.init}
        with _quiet():
            self._running = self.strategy(fraction_train=0.0, fraction_evaluate=0.0, **options)

    def minimum(self) -> int:
        """Minimum number of merchants in a merge."""
        return 1

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """Return the strategy's aggregate, weighted by examples if the strategy uses weights.

        Weights that are not floating-point are unchanged.

        :raises ConfigError: too few merchants sent an update
        """
        names = sorted(name for name, value in current.items() if value.is_floating_point())
        messages = self._messages(current, uplinks, names)
        if not messages:
            raise UplinkRejected("no merchant sent an update that could be merged")
        if len(messages) < self.minimum():
            raise ConfigError(
                f"aggregator {type(self).__name__.lower()} with its options requires {self.minimum()} merchants a "
                f"round, but {len(messages)} sent an update: decrease its options, increase federation.participation, "
                "or use another"
            )
        self._merges += 1
        running: Any = self._running
        with _quiet():
            if hasattr(running, "current_arrays"):
                running.current_arrays = None
            running.configure_train(self._merges, _record(current, names), ConfigRecord(), None)
            record, _ = running.aggregate_train(self._merges, messages)
        merged = {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}
        return {
            name: merged[name].to(value.dtype).reshape(value.shape) if name in merged else value
            for name, value in current.items()
        }

    def _messages(self, current: Weights, uplinks: Iterable[Uplink], names: Sequence[str]) -> list[Message]:
        """Return the messages for the strategy: every merchant's whole weights."""
        return [
            _message(uplink.examples, updated(current, sent), names)
            for uplink in uplinks
            if (sent := uplink.get(StudentUpdate)) is not None
        ]

    def state(self) -> dict[str, Tensor]:
        """Return the number of merges, and the server optimizer's moments if the strategy has any."""
        kept = {"merges": torch.tensor(self._merges)}
        for moment in _MOMENTS:
            for name, value in (getattr(self._running, moment, None) or {}).items():
                kept[f"{moment}/{name}"] = torch.from_numpy(np.array(value))
        for number, value in enumerate(getattr(self._running, "momentum_vector", None) or []):
            kept[f"momentum_vector/{number}"] = torch.from_numpy(np.array(value))
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state``."""
        self._merges = int(state["merges"])
        running: Any = self._running
        for moment in _MOMENTS:
            found = {
                key.partition("/")[2]: value.numpy() for key, value in state.items() if key.startswith(f"{moment}/")
            }
            if found:
                setattr(running, moment, found)
        momentum = [
            state[f"momentum_vector/{number}"].numpy()
            for number in range(len(state))
            if f"momentum_vector/{number}" in state
        ]
        if momentum:
            running.momentum_vector = momentum


@dataclass
class _ServerOptimizer(_FlowerAggregator):
    """A strategy with an optimizer step on the merchants' mean weights."""

    def _messages(self, current: Weights, uplinks: Iterable[Uplink], names: Sequence[str]) -> list[Message]:
        """Return the mean as the only message, which is also the strategy's mean."""
        return [_message(1, mean_weights(current, uplinks), names)]


@dataclass
class FedAvgM(_ServerOptimizer):
    """FedAvg with server momentum (Hsu et al., 2019)."""

    strategy = flower.FedAvgM
    server_learning_rate: PositiveFloat = 1.0
    server_momentum: Decay = 0.9


@dataclass
class FedAdam(_ServerOptimizer):
    """Adam at the server on the mean update (Reddi et al., ICLR 2021, algorithm 2), with Flower's bias correction of
    the moments, which the paper omits.

    eta: server learning rate. beta_1, beta_2: decay of the moments. tau: degree of adaptivity.
    """

    strategy = flower.FedAdam
    eta: PositiveFloat = 1e-2
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: PositiveFloat = 1e-3


@dataclass
class FedYogi(_ServerOptimizer):
    """Yogi at the server (Reddi et al., ICLR 2021); options as of ``fedadam``."""

    strategy = flower.FedYogi
    eta: PositiveFloat = 1e-2
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: PositiveFloat = 1e-3


@dataclass
class FedAdagrad(_ServerOptimizer):
    """Adagrad at the server (Reddi et al., ICLR 2021). eta: server learning rate. tau: degree of adaptivity."""

    strategy = flower.FedAdagrad
    eta: PositiveFloat = 1e-2
    tau: PositiveFloat = 1e-3


@dataclass
class FedMedian(_FlowerAggregator):
    """Coordinate-wise median (Yin et al., ICML 2018)."""

    strategy = flower.FedMedian


@dataclass
class FedTrimmedAvg(_FlowerAggregator):
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018). beta: share cut off at each end."""

    strategy = flower.FedTrimmedAvg
    beta: float = 0.2


@dataclass
class Krum(_FlowerAggregator):
    """The update nearest to its neighbours (Blanchard et al., NeurIPS 2017). num_malicious_nodes: Byzantine merchants
    expected."""

    strategy = flower.Krum
    num_malicious_nodes: Count = 1

    def minimum(self) -> int:
        """2f + 3, for f Byzantine merchants."""
        return 2 * self.num_malicious_nodes + 3


@dataclass
class MultiKrum(_FlowerAggregator):
    """Mean of the ``num_nodes_to_select`` updates that Krum ranks first (Blanchard et al., NeurIPS 2017)."""

    strategy = flower.MultiKrum
    num_malicious_nodes: Count = 1
    num_nodes_to_select: PositiveCount = 3

    def minimum(self) -> int:
        """2f + 3, for f Byzantine merchants, and as many as are selected."""
        return max(2 * self.num_malicious_nodes + 3, self.num_nodes_to_select)


@dataclass
class Bulyan(_FlowerAggregator):
    """Krum selection, then a trimmed mean (El Mhamdi et al., ICML 2018). num_malicious_nodes: Byzantine merchants
    expected."""

    strategy = flower.Bulyan
    num_malicious_nodes: Count = 1

    def minimum(self) -> int:
        """4f + 3, for f Byzantine merchants."""
        return 4 * self.num_malicious_nodes + 3


def _record(weights: Weights, names: Sequence[str]) -> ArrayRecord:
    return ArrayRecord({name: Array(weights[name].numpy()) for name in names})


def _message(examples: int, weights: Weights, names: Sequence[str]) -> Message:
    content = RecordDict({"arrays": _record(weights, names), "metrics": MetricRecord({"num-examples": examples})})
    metadata = Metadata(
        run_id=0, message_id="", src_node_id=0, dst_node_id=0, reply_to_message_id="", group_id="",
        created_at=0.0, ttl=0.0, message_type=MessageType.TRAIN,
    )  # fmt: skip
    build: Any = Message  # its declared overloads take no metadata, and make their own from a running Flower task
    message: Message = build(content=content, metadata=metadata)
    return message


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the strategy's log messages about sampling, which does not apply here."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
