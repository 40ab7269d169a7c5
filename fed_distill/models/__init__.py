"""Teachers and students with one interface: encoding of texts as tensors, and logits from tensors.

Attributes are imported on access: names are checked without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fed_distill.models.names import STUDENTS, TEACHERS

if TYPE_CHECKING:
    from fed_distill.models.base import Outputs, TextModel
    from fed_distill.models.building import build_student, load_model, load_teacher, rebuild
    from fed_distill.models.prediction import predict

__all__ = [
    "STUDENTS",
    "TEACHERS",
    "Outputs",
    "TextModel",
    "build_student",
    "load_model",
    "load_teacher",
    "predict",
    "rebuild",
]
_PLACES = {
    **dict.fromkeys(("Outputs", "TextModel"), "fed_distill.models.base"),
    **dict.fromkeys(("build_student", "load_model", "load_teacher", "rebuild"), "fed_distill.models.building"),
    "predict": "fed_distill.models.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
