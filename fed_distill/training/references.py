"""References that a merchant makes itself: what the global student, or its own of before, says of its examples.

Computed once before a training, without gradient, example by example: so a loss that compares with them still looks at
one example only, as DP needs it.
"""

from collections.abc import Mapping

from fed_distill.models.base import TextModel
from fed_distill.models.prediction import predict, represent
from fed_distill.models.weights import Weights
from fed_distill.text.encoded import Encoded
from fed_distill.training.plan import Plan, References


def predicted(plan: Plan, student: TextModel, private: Encoded, weights: Mapping[str, Weights]) -> References:
    """The references that ``plan`` asks for, on the encoded examples ``private``.

    weights: of the students by whom, ``global`` and ``previous``; ``student``'s own are overwritten.
    """
    made = {}
    for name, wanted in plan.predicted.items():
        student.load_state_dict(dict(weights[wanted.by]))
        made[name] = (predict if wanted.what == "probabilities" else represent)(student, private)
    return made
