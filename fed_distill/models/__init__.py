"""Teachers, assistants and students with one interface: encoding of texts as tensors, and logits from tensors."""

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
