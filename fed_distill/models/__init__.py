"""Teachers, assistants and students behind one small interface: text to tensors, tensors to logits."""

from fed_distill.models.base import Outputs, TextModel
from fed_distill.models.building import STUDENTS, TEACHERS, build_student, load_model, load_teacher, rebuild
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
