"""fed-distill: federated distillation for e-commerce search and recommendation.

``run(Experiment.read("experiments/quickstart.toml"))`` does what ``fed-distill run`` does, and returns tables.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fed_distill.config import Experiment
    from fed_distill.experiment.simulation import run
    from fed_distill.reporting.result import Result

__all__ = ["Experiment", "Result", "run"]
__version__ = "0.1.0"

_PLACES = {
    "Experiment": "fed_distill.config",
    "Result": "fed_distill.reporting.result",
    "run": "fed_distill.experiment.simulation",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that ``fed-distill --help`` need not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
