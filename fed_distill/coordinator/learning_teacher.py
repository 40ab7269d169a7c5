"""The server's teacher where a method has it learn from merchants: trained by a plan, and asked anew.

It learns a copy of its weights for each federation, so that all others, and later runs, have the teacher as it was
fine-tuned.
"""

import copy
from dataclasses import dataclass
from functools import cached_property

from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.students import ServerTraining
from fed_distill.evaluation.metrics import Metrics
from fed_distill.methods.base import GlobalState, replace
from fed_distill.models import TextModel
from fed_distill.seeds import Randomness
from fed_distill.training.optimization import Pace


@dataclass(frozen=True)
class LearningTeacher:
    """fine_tuned: the teacher that it is at first, and which stays as it is. learning_rate: of its steps."""

    fine_tuned: TextModel
    learning_rate: float

    @cached_property
    def model(self) -> TextModel:
        """A copy that may learn, made when it is needed; its weights are set before each use."""
        return copy.deepcopy(self.fine_tuned)

    def taught(self, state: GlobalState, server: ServerTraining, randomness: Randomness) -> GlobalState:
        """``state`` after its ``teacher_plan``: what the teacher has become, and what it says of the proxy set now."""
        weights = state.teacher_weights or self.fine_tuned.state_dict()
        trained = server.train(self.model, weights, state.teacher_plan, randomness, Pace(self.learning_rate))
        self.model.load_state_dict(trained)
        labels = server.proxy_labels(self.model).to(state.teacher_labels.dtype)
        return replace(state, teacher_weights=trained, teacher_labels=labels)

    def validation(self, state: GlobalState, evaluator: Evaluator) -> Metrics:
        """Metrics of what the teacher has become on the common validation set."""
        self.model.load_state_dict(dict(state.teacher_weights))
        return evaluator.validation(self.model)
