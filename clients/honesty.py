"""What no honest server asks of a merchant: numbers so large that the answer could tell one example from another."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from fed_distill.errors import TrainingError
from fed_distill.transport.messages import Downlink, Weights
from fed_distill.transport.requests import TrainRequest

LARGEST_WEIGHT = 1e6
"""Size of a value in a downlink at most."""
LARGEST_RATE = 1e4
"""Learning rate at most: beyond it weights may overflow, and whether they do would tell of examples."""


def check_request(request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]) -> None:
    """Raise TrainingError for what no honest server asks: its answer could tell one example from another."""
    sent = [*(down.weights or {}).values(), *(value for one in starts.values() for value in one.values())]
    sent += [] if down.soft_labels is None else [down.soft_labels]
    sent += (down.control_variate or {}).values()
    sent += [] if down.class_means is None else [down.class_means.probabilities]
    if down.round < 1:
        raise TrainingError(f"a downlink of round {down.round}: the first one is 1")
    check_values(sent)
    if not 0.0 <= request.learning_rate <= LARGEST_RATE:
        raise TrainingError(f"a learning rate of {request.learning_rate}, not from 0 to {LARGEST_RATE:g}")
    if request.population < 1 or any(rounds < 1 for rounds in request.rounds):
        raise TrainingError("a request without a positive number of merchants and of each one's rounds")


def check_values(sent: Iterable[Tensor]) -> None:
    """Raise TrainingError unless all values that the server has sent are finite and of a usual size."""
    for value in sent:
        if value.is_floating_point() and value.numel() and not float(value.abs().max()) <= LARGEST_WEIGHT:
            raise TrainingError(f"a downlink with values that are not finite, or beyond {LARGEST_WEIGHT:g}")
