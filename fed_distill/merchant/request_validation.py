"""What no honest server asks of a merchant: numbers so large that the answer could tell one example from another, or
what does not fit together."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from fed_distill.errors import ModelError, NotAllowed, TrainingError
from fed_distill.models import TextModel
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Context
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import TrainRequest, built_from

LARGEST_WEIGHT = 1e6
"""Size of a value in a downlink at most."""
LARGEST_RATE = 1e4
"""Learning rate at most: beyond it weights may overflow, and whether they do would tell of examples."""


def check_request(request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]) -> None:
    """Raise TrainingError for what no honest server asks: its answer could tell one example from another."""
    records = [*starts.values(), *(one for payload in down.payloads for one in payload.to_records().values())]
    if down.round < 1:
        raise TrainingError(f"a downlink of round {down.round}: the first one is 1")
    check_values(value for record in records for value in record.values())
    if not 0.0 <= request.learning_rate <= LARGEST_RATE:
        raise TrainingError(f"a learning rate of {request.learning_rate}, not from 0 to {LARGEST_RATE:g}")
    if request.population < 1 or any(rounds < 1 for rounds in request.rounds):
        raise TrainingError("a request without a positive number of merchants and of each one's rounds")


def check_values(sent: Iterable[Tensor]) -> None:
    """Raise TrainingError unless all values that the server has sent are finite and of a usual size."""
    for value in sent:
        if value.is_floating_point() and value.numel() and not float(value.abs().max()) <= LARGEST_WEIGHT:
            raise TrainingError(f"a downlink with values that are not finite, or beyond {LARGEST_WEIGHT:g}")


def check_names(request: TrainRequest, merchants: Collection[str], arms: Collection[str] | None = None) -> None:
    """Raise TrainingError unless a request is for ``merchants`` of this site, each once, for students that it
    describes, and for one of the experiment's ``arms``, where it must be."""
    if arms is not None and request.arm not in arms:
        raise TrainingError(f"a request for {request.arm!r}, which is no part of the run's experiment")
    if not request.blueprints:
        raise TrainingError("a request that describes no student")
    if len(request.places) != len(request.merchants):
        raise TrainingError("a request that names a merchant twice")
    for merchant in request.merchants:
        if merchant not in merchants:
            raise TrainingError(f"a request for merchant {merchant!r}, who is not at this site")
    for kind in {*request.students}:
        if kind not in request.blueprints:
            raise TrainingError(f"a request for a student {kind!r} that it does not describe")


def outlined(blueprint: str) -> TextModel:
    """The student of a blueprint without memory for its weights, which are on torch's ``meta`` device.

    Raises TrainingError for what describes no student, NotAllowed for one that may not be imported.
    """
    try:
        with torch.device("meta"):
            return built_from(blueprint)
    except (NotAllowed, TrainingError):
        raise
    except ModelError as error:
        raise TrainingError(f"a request with a student that cannot be built: {error}") from error
    except Exception as error:  # settings from outside can break a constructor in any way
        raise TrainingError(f"a request with a student that cannot be built: {type(error).__name__}") from error


def weight_bytes(student: TextModel) -> int:
    """Bytes of all weights and buffers."""
    return sum(value.nbytes for value in student.state_dict().values())


def check_shapes(down: Downlink, context: Context) -> None:
    """Raise TrainingError unless all payloads of a downlink have the shapes of this site's proxy set, classes and
    student."""
    for payload in down.payloads:
        try:
            payload.check_shape(context)
        except ValueError as error:
            raise TrainingError(f"a downlink whose {error}") from error


def check_fit(weights: Weights, student: TextModel) -> None:
    """Raise TrainingError unless ``weights`` are all of the student's, of its shapes and types."""
    wanted = student.state_dict()
    if weights.keys() != wanted.keys():
        odd = sorted(weights.keys() ^ wanted.keys())[0]
        raise TrainingError(f"weights and student of a request differ: only one of them has {odd!r}")
    for name, value in weights.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise TrainingError(
                f"weights {name!r} of a request are {list(value.shape)}, {value.dtype}; its student wants "
                f"{list(wanted[name].shape)}, {wanted[name].dtype}"
            )
