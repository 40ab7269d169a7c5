"""References that a merchant computes itself: predictions of the global or its previous student on its examples.

They are computed once before a training, without gradient and independently for each example, so that losses with them
depend on one example only, as DP requires.
"""

from collections.abc import Mapping

from fed_distill.models.base import TextModel
from fed_distill.models.prediction import predict, represent
from fed_distill.models.weights import Weights
from fed_distill.text.encoded import Encoded
from fed_distill.training.plan import Plan, References


def predicted(plan: Plan, student: TextModel, private: Encoded, weights: Mapping[str, Weights]) -> References:
    """Compute the references of ``plan`` on the encoded examples ``private``.

    :param weights: weights of the predicting students, ``global`` and ``previous``; those of ``student`` are
        overwritten
    """
    made = {}
    for name, wanted in plan.predicted.items():
        student.load_state_dict(dict(weights[wanted.by]))
        made[name] = (predict if wanted.what == "probabilities" else represent)(student, private)
    return made
