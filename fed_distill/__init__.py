"""fed-distill: federated distillation for e-commerce search and recommendation.

``run(Experiment.read("experiments/quickstart.toml"))`` does what ``fed-distill run`` does, and returns tables.
``load_student("runs/quickstart")`` loads the student that a run has trained, and ``load_exported("exported")`` one that
``fed-distill export`` wrote, without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fed_distill.config import Experiment
    from fed_distill.data.dataset import Dataset
    from fed_distill.experiment.simulation import run
    from fed_distill.methods.base import Method
    from fed_distill.models.base import TextModel
    from fed_distill.payloads.base import Payload
    from fed_distill.reporting.callbacks import Callback
    from fed_distill.reporting.result import Result
    from fed_distill.serving.runtime import load_exported
    from fed_distill.serving.student import Student, load_student

__all__ = [
    "Callback",
    "Dataset",
    "Experiment",
    "Method",
    "Payload",
    "Result",
    "Student",
    "TextModel",
    "load_exported",
    "load_student",
    "run",
]
__version__ = "0.1.0"

_PLACES = {
    "Callback": "fed_distill.reporting.callbacks",
    "Dataset": "fed_distill.data.dataset",
    "Experiment": "fed_distill.config",
    "Method": "fed_distill.methods.base",
    "Payload": "fed_distill.payloads.base",
    "Result": "fed_distill.reporting.result",
    "Student": "fed_distill.serving.student",
    "TextModel": "fed_distill.models.base",
    "load_exported": "fed_distill.serving.runtime",
    "load_student": "fed_distill.serving.student",
    "run": "fed_distill.experiment.simulation",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for; the command line and light scripts need not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """List the public names, which are imported on access."""
    return sorted({*globals(), *__all__})
