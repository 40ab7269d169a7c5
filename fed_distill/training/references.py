"""References that a merchant computes itself: predictions of a student on its own examples, before training.

They are computed once before a training, without gradient and independently for each example, so that losses with them
depend on one example only, as DP requires.
"""

from collections.abc import Mapping

from fed_distill.models.base import TextModel
from fed_distill.models.prediction import predict, represent
from fed_distill.models.weights import Weights
from fed_distill.text.encoded import Encoded
from fed_distill.training.plan import Predicted, References


def predicted(
    wanted_by: Mapping[str, Predicted], student: TextModel, examples: Encoded, weights: Mapping[str, Weights]
) -> References:
    """Compute the references of a plan on a merchant's encoded ``examples``.

    :param wanted_by: the references by name, see ``Plan.predicted``
    :param weights: weights of the predicting students by ``Predicted.by``; those of ``student`` are
        overwritten
    """
    made = {}
    for name, wanted in wanted_by.items():
        student.load_state_dict(dict(weights[wanted.by]))
        made[name] = (predict if wanted.what == "probabilities" else represent)(student, examples)
    return made
