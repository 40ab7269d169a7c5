"""Validation of requests: reject inconsistent ones, and values so large that an answer could reveal single examples."""

from collections.abc import Collection, Mapping

from fed_distill.errors import ModelError, NotAllowed, TrainingError
from fed_distill.models import TextModel
from fed_distill.models.outline import without_memory
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Context
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import TrainRequest, built_from
from fed_distill.transport.values import check_values

LARGEST_RATE = 1e4
"""Maximum learning rate: above it weights may overflow, and an overflow would depend on single examples."""


def check_request(request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]) -> None:
    """Raise TrainingError for a request with values out of range, whose answer could reveal single examples."""
    if down.round < 1:
        raise TrainingError(f"the downlink has round {down.round}: rounds start at 1")
    check_values(down, starts)
    if not 0.0 <= request.learning_rate <= LARGEST_RATE:
        raise TrainingError(f"the learning rate must be from 0 to {LARGEST_RATE:g}, not {request.learning_rate}")
    if request.population < 1 or any(rounds < 1 for rounds in request.rounds):
        raise TrainingError("the request must have positive numbers of merchants and of rounds for each")


def check_names(request: TrainRequest, merchants: Collection[str], arms: Collection[str] | None = None) -> None:
    """Raise TrainingError for a request with invalid names.

    :param merchants: merchants of this site
    :param arms: arms of the experiment; None if the request needs none
    """
    if arms is not None and request.arm not in arms:
        raise TrainingError(f"the request is for {request.arm!r}, which is not an arm of the run's experiment")
    if not request.blueprints:
        raise TrainingError("the request has no student")
    if len(request.places) != len(request.merchants):
        raise TrainingError("the request names a merchant twice")
    for merchant in request.merchants:
        if merchant not in merchants:
            raise TrainingError(f"the request is for merchant {merchant!r}, which is not at this site")
    for kind in {*request.students}:
        if kind not in request.blueprints:
            raise TrainingError(f"the request is for a student {kind!r}, but has no blueprint for it")


def outlined(blueprint: str) -> TextModel:
    """Build the student of a blueprint without memory for its weights (``without_memory``).

    :raises TrainingError: the blueprint is invalid
    :raises NotAllowed: the site does not allow the import
    """
    try:
        with without_memory():
            return built_from(blueprint)
    except (NotAllowed, TrainingError):
        raise
    except ModelError as error:
        raise TrainingError(f"the student of the request cannot be built: {error}") from error
    except Exception as error:  # settings from outside can break a constructor in any way
        raise TrainingError(f"the student of the request cannot be built: {type(error).__name__}") from error


def weight_bytes(student: TextModel) -> int:
    """Return the size of all weights and buffers in bytes."""
    return sum(value.nbytes for value in student.state_dict().values())


def check_shapes(down: Downlink, context: Context) -> None:
    """Raise TrainingError unless all payloads of a downlink fit the site's proxy set, classes and student in shape."""
    for payload in down.payloads:
        try:
            payload.check_shape(context)
        except ValueError as error:
            raise TrainingError(f"invalid downlink: {error}") from error


def check_fit(weights: Weights, student: TextModel) -> None:
    """Raise TrainingError unless ``weights`` match the student's in names, shapes and types."""
    wanted = student.state_dict()
    if weights.keys() != wanted.keys():
        odd = sorted(weights.keys() ^ wanted.keys())[0]
        raise TrainingError(f"weights and student of the request differ: only one of them has {odd!r}")
    for name, value in weights.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise TrainingError(
                f"weights {name!r} of the request are {list(value.shape)}, {value.dtype}; its student requires "
                f"{list(wanted[name].shape)}, {wanted[name].dtype}"
            )
