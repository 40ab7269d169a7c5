"""The four cells of a campaign: was the customer treated, and did the customer buy. The form of uplift as a task.

A model of the cells predicts P(W = w, Y = y | x), for a treatment W and an outcome Y of a customer with history x.
By their ratios a campaign is planned: the propensity e(x) = P(W = 1 | x), the responses μ_w(x) = P(Y = 1 | W = w, x)
and, if nothing but x decides on both treatment and outcome (unconfoundedness; Rosenbaum and Rubin 1983), the effect of
the treatment, the uplift τ(x) = μ_1(x) - μ_0(x). A cell is observed for every customer, which an effect never is, so
that the cells are ordinary classes: every student, method, privacy mechanism and export works on them.
"""

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import Task

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MARKETING_EFFECT = Task(
    "marketing-effect",
    ("treated_bought", "treated_not_bought", "control_bought", "control_not_bought"),
    pair=True,
    positive="treated_bought",
)
"""Cell of (history, campaign): a history is the titles of what the customer bought before the campaign began."""


def cell_of(treated: Flags, bought: Flags) -> Labels:
    """Return the class of each customer, int64 ``[n]``."""
    return 2 * (~treated).astype(np.int64) + (~bought).astype(np.int64)


def treated_of(labels: Labels) -> Flags:
    """Return which customers were treated, bool ``[n]``."""
    return labels < 2


def bought_of(labels: Labels) -> Flags:
    """Return which customers bought, bool ``[n]``."""
    bought: Flags = labels % 2 == 0
    return bought


def cells(propensity: Floats, without: Floats, treated: Floats) -> Floats:
    """Return the probabilities of the cells, ``[n, 4]``.

    :param propensity: e(x) ``[n]``
    :param without: μ_0(x), the response without treatment ``[n]``
    :param treated: μ_1(x), the response to the treatment ``[n]``
    """
    other = 1.0 - propensity
    return np.stack(
        [propensity * treated, propensity * (1.0 - treated), other * without, other * (1.0 - without)], axis=1
    )


def propensities(probabilities: npt.NDArray[np.floating]) -> Floats:
    """Return e(x) ``[n]`` of probabilities of the cells ``[n, 4]``."""
    found: Floats = probabilities[:, :2].sum(axis=1, dtype=np.float64)
    return found


def responses(probabilities: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Return μ_0(x) and μ_1(x), each ``[n]``, of probabilities of the cells ``[n, 4]``.

    Of an arm that a model gives no probability at all, the response is 1/2.
    """
    exact = probabilities.astype(np.float64)
    return _ratio(exact[:, 2], exact[:, 3]), _ratio(exact[:, 0], exact[:, 1])


def effects(probabilities: npt.NDArray[np.floating]) -> Floats:
    """Return the uplift τ(x) = μ_1(x) - μ_0(x) ``[n]``, from -1 to 1, of probabilities of the cells ``[n, 4]``."""
    without, treated = responses(probabilities)
    return treated - without


def _ratio(bought: Floats, not_bought: Floats) -> Floats:
    both = bought + not_bought
    ratio: Floats = np.divide(bought, both, out=np.full(len(both), 0.5), where=both > 0)
    return ratio
